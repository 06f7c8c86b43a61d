"""Schedules as HTTP shows them."""

from __future__ import annotations

from typing_extensions import TypedDict

from service.api.views import job_url, referenced
from service.models import JSON, Timestamp
from service.schedule_models import Misfire, ScheduleOptions, ScheduleRecord


class ScheduleOptionsView(TypedDict):
    """Options of the jobs that a schedule makes; null leaves it to the plugin, or sets no limit."""

    priority: int
    timeout_s: float | None
    max_attempts: int | None
    tags: list[str]
    metadata: dict[str, JSON]
    expires_after_s: float | None


class ScheduleLinksView(TypedDict):
    """Where to go from here; `last_job` is null until a tick has made one."""

    self: str
    payload: str
    pause: str
    resume: str
    run: str
    last_job: str | None


class ScheduleSummaryView(TypedDict):
    """A schedule without its payload, as lists show it.

    `next_at` is the next tick: null while it is paused, or when there is none any more. `last_at` is the newest tick
    that made a job, `last_job_id`.
    """

    id: str
    name: str
    plugin: str
    cron: str | None
    every_s: int | None
    timezone: str
    misfire: Misfire
    starts_at: Timestamp | None
    ends_at: Timestamp | None
    options: ScheduleOptionsView
    paused: bool
    next_at: Timestamp | None
    last_at: Timestamp | None
    last_job_id: str | None
    created_at: Timestamp
    links: ScheduleLinksView


class ScheduleView(ScheduleSummaryView):
    """A schedule; bytes in `payload` stand as references (`sha256`, `size`, `media_type`, `url`)."""

    payload: dict[str, JSON]


class ScheduleListView(TypedDict):
    """Every schedule, by name."""

    items: list[ScheduleSummaryView]


def schedule_url(schedule_id: str) -> str:
    """Where a schedule lives."""
    return f"/v1/schedules/{schedule_id}"


def schedule_summary(schedule: ScheduleRecord) -> ScheduleSummaryView:
    """`schedule` without its payload."""
    url, timing = schedule_url(schedule.id), schedule.timing
    return {
        "id": schedule.id,
        "name": schedule.name,
        "plugin": schedule.plugin,
        "cron": timing.cron,
        "every_s": timing.every_s,
        "timezone": timing.timezone,
        "misfire": timing.misfire,
        "starts_at": timing.starts_at,
        "ends_at": timing.ends_at,
        "options": _options(schedule.options),
        "paused": schedule.paused,
        "next_at": schedule.next_at,
        "last_at": schedule.last_at,
        "last_job_id": schedule.last_job_id,
        "created_at": schedule.created_at,
        "links": {
            "self": url,
            "payload": url + "/payload",
            "pause": url + "/pause",
            "resume": url + "/resume",
            "run": url + "/run",
            "last_job": None if schedule.last_job_id is None else job_url(schedule.last_job_id),
        },
    }


def schedule_view(schedule: ScheduleRecord) -> ScheduleView:
    """`schedule` with its payload, which must have been loaded."""
    payload = referenced(schedule.payload or {}, schedule_url(schedule.id) + "/payload")
    return {**schedule_summary(schedule), "payload": payload}


def _options(options: ScheduleOptions) -> ScheduleOptionsView:
    return {
        "priority": options.priority,
        "timeout_s": options.timeout_s,
        "max_attempts": options.max_attempts,
        "tags": list(options.tags),
        "metadata": dict(options.metadata),
        "expires_after_s": options.expires_after_s,
    }
