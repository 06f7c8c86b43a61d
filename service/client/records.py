"""What the service tells, typed. `document` is each time the whole record as it came."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from service.models import JSON, JobOptions, JobStatus, Progress, Timestamp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the service showed it. `payload` and `result` are None in lists; bytes stand in them as references.

    `artifacts` maps names to paths for `Client.read`.
    """

    id: str
    plugin: str
    plugin_version: str | None
    status: JobStatus
    tags: Sequence[str]
    attempt: int
    max_attempts: int
    progress: Progress | None
    payload: Mapping[str, JSON] | None
    result: Mapping[str, JSON] | None
    error: Mapping[str, JSON] | None
    batch_id: str | None
    parent_id: str | None
    schedule_id: str | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    artifacts: Mapping[str, str]
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job: its `n`th event, from 1 without gaps. `id` is where a stream resumes."""

    id: str
    job_id: str
    plugin: str
    n: int
    type: str  # submitted, started, progress, retrying, success, failed, cancelled and others
    at: Timestamp
    data: Mapping[str, JSON]
    document: Mapping[str, JSON]

    @property
    def is_last(self) -> bool:
        """True when nothing can happen to the job any more."""
        return self.type in LAST_EVENTS


#: The types of event with which jobs end.
LAST_EVENTS = frozenset({"success", "failed", "cancelled"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An installed plugin. The schemas are None in lists and until it is available; `reason` says what is wrong."""

    name: str
    version: str | None
    description: str | None
    distribution: str
    state: str  # loading, available or unavailable
    healthy: bool
    reason: str | None
    input_schema: Mapping[str, JSON] | None
    output_schema: Mapping[str, JSON] | None
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportColumn:
    """A column of a report: id, text, time, integer, number or json; `unit` None where there is none."""

    name: str
    type: str
    unit: str | None
    meaning: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report: `view` is its name in SQL, `times` those by which a window of it may be asked for."""

    name: str
    view: str
    about: str
    columns: Sequence[ReportColumn]
    times: Sequence[str]
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """Bytes that the service sent, and what they are."""

    data: bytes
    media_type: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be made with others; bytes may stand in `payload`."""

    plugin: str
    payload: Mapping[str, Any]
    options: JobOptions | None = None
    idempotency_key: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """What became of one `NewJob`: the job `id`, or None and the `problem` details of its refusal."""

    index: int
    id: str | None
    replayed: bool
    problem: Mapping[str, JSON] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedBatch:
    """Jobs that were made together, an item for each that was asked for.

    `id` is None where all of them had been made before, in several batches or none.
    """

    id: str | None
    accepted: int
    refused: int
    items: Sequence[BatchItem]
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How far the jobs of a batch are; `finished_at` once all have ended."""

    id: str
    total: int
    counts: Mapping[JobStatus, int]
    created_at: Timestamp
    finished_at: Timestamp | None
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What a job of a batch has come to; `result` and `error` are None while it has not ended."""

    id: str
    plugin: str
    status: JobStatus
    result: Mapping[str, JSON] | None
    error: Mapping[str, JSON] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A schedule to be made. Exactly one of `cron` and `every_s` says when; bytes may stand in `payload`.

    None leaves to the service what it is: UTC, `misfire` once, from now on, without end.
    """

    name: str
    plugin: str
    payload: Mapping[str, Any]
    cron: str | None = None
    every_s: int | None = None
    timezone: str | None = None
    misfire: str | None = None  # once, skip or all
    starts_at: str | None = None
    ends_at: str | None = None
    options: Mapping[str, JSON] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Jobs made by the clock, each `every_s` seconds or by `cron`; `payload` is None in lists."""

    id: str
    name: str
    plugin: str
    payload: Mapping[str, JSON] | None
    cron: str | None
    every_s: int | None
    timezone: str
    misfire: str  # once, skip or all
    options: Mapping[str, JSON]
    paused: bool
    next_at: Timestamp | None
    last_at: Timestamp | None
    last_job_id: str | None
    created_at: Timestamp
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some of a list; `next` leads on."""

    items: Sequence[Job]
    next: str | None


# Each of these raises KeyError, TypeError or ValueError for what is no such document.


def job(document: Mapping[str, Any]) -> Job:
    """A job of its document."""
    progress = document["progress"]
    return Job(
        id=document["id"],
        plugin=document["plugin"],
        plugin_version=document["plugin_version"],
        status=JobStatus(document["status"]),
        tags=document["tags"],
        attempt=document["attempt"],
        max_attempts=document["max_attempts"],
        progress=progress and Progress(fraction=progress["fraction"], message=progress["message"]),
        payload=document.get("payload"),
        result=document.get("result"),
        error=document["error"],
        batch_id=document["batch_id"],
        parent_id=document["parent_id"],
        schedule_id=document["schedule_id"],
        created_at=document["created_at"],
        started_at=document["started_at"],
        finished_at=document["finished_at"],
        artifacts=document["links"]["artifacts"],
        document=document,
    )


def page(document: Mapping[str, Any]) -> Page:
    """A page of jobs of its document."""
    return Page([job(item) for item in document["items"]], document["next"])


def event(place: str, document: Mapping[str, Any]) -> Event:
    """An event of its document, with the id that its message had."""
    names = ("job_id", "plugin", "n", "type", "at", "data")
    return Event(id=place, document=document, **{name: document[name] for name in names})


def plugin(document: Mapping[str, Any]) -> Plugin:
    """A plugin of its document."""
    names = ("name", "version", "description", "distribution", "state", "healthy", "reason")
    return Plugin(
        **{name: document[name] for name in names},
        input_schema=document.get("input_schema"),
        output_schema=document.get("output_schema"),
        document=document,
    )


def plugins(document: Mapping[str, Any]) -> Sequence[Plugin]:
    """Plugins of their list."""
    return [plugin(item) for item in document["items"]]


def submitted_batch(document: Mapping[str, Any]) -> SubmittedBatch:
    """A batch as it was taken."""
    return SubmittedBatch(
        id=document["batch_id"],
        accepted=document["accepted"],
        refused=document["refused"],
        items=[
            BatchItem(
                index=item["index"],
                id=item.get("id"),
                replayed=item.get("replayed", False),
                problem=item.get("problem"),
            )
            for item in document["items"]
        ],
        document=document,
    )


def batch(document: Mapping[str, Any]) -> Batch:
    """A batch of its document."""
    return Batch(
        id=document["id"],
        total=document["total"],
        counts={JobStatus(status): count for status, count in document["counts"].items()},
        created_at=document["created_at"],
        finished_at=document["finished_at"],
        document=document,
    )


def batch_result(document: Mapping[str, Any]) -> BatchResult:
    """What a line of a batch's results says."""
    return BatchResult(
        id=document["id"],
        plugin=document["plugin"],
        status=JobStatus(document["status"]),
        result=document["result"],
        error=document["error"],
    )


def reports(document: Mapping[str, Any]) -> Sequence[Report]:
    """Reports of their list."""
    return [_report(item) for item in document["items"]]


def _report(document: Mapping[str, Any]) -> Report:
    names = ("name", "view", "about", "times")
    return Report(
        **{name: document[name] for name in names},
        columns=[ReportColumn(**column) for column in document["columns"]],
        document=document,
    )


def schedule(document: Mapping[str, Any]) -> Schedule:
    """A schedule of its document."""
    names = [field.name for field in dataclasses.fields(Schedule) if field.name not in ("payload", "document")]
    return Schedule(**{name: document[name] for name in names}, payload=document.get("payload"), document=document)


def schedules(document: Mapping[str, Any]) -> Sequence[Schedule]:
    """Schedules of their list."""
    return [schedule(item) for item in document["items"]]
