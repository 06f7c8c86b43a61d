"""What a schedule is: when it makes jobs, which ones, and what is known of it. Values only."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from service.models import JSON, JobOptions, Timestamp, later


class Misfire(enum.StrEnum):
    """What becomes of ticks whose time passed without a job: see `ticks.due`."""

    ONCE = "once"
    SKIP = "skip"
    ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a schedule ticks: by `cron`, or every `every_s` seconds; exactly one of them is set.

    `timezone` (IANA) is the clock that `cron` reads. No tick is before `starts_at` or after `ends_at`.
    """

    cron: str | None = None
    every_s: int | None = None
    timezone: str = "UTC"
    misfire: Misfire = Misfire.ONCE
    starts_at: Timestamp | None = None
    ends_at: Timestamp | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """Options of the jobs that a schedule makes; `expires_after_s` counts from their tick."""

    priority: int = 0
    timeout_s: float | None = None
    max_attempts: int | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, JSON] = dataclasses.field(default_factory=dict)
    expires_after_s: float | None = None

    def at(self, tick: Timestamp) -> JobOptions:
        """The options of the job of a tick."""
        return JobOptions(
            priority=self.priority,
            expires_at=None if self.expires_after_s is None else later(tick, self.expires_after_s),
            timeout_s=self.timeout_s,
            max_attempts=self.max_attempts,
            tags=self.tags,
            metadata=self.metadata,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """What people say of a schedule."""

    name: str
    plugin: str
    payload: Mapping[str, Any]
    timing: Timing
    options: ScheduleOptions = dataclasses.field(default_factory=ScheduleOptions)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """One row of `schedules`. `payload` is a stored document (see `models.BlobRef`), None in lists.

    `next_at` is the next tick: None when paused, or when there is none any more. `last_at` is the newest tick that has
    made a job, `last_job_id`.
    """

    id: str
    tenant: str
    name: str
    plugin: str
    payload: Mapping[str, JSON] | None
    timing: Timing
    options: ScheduleOptions
    max_attempts: int
    paused: bool
    next_at: Timestamp | None
    last_at: Timestamp | None
    last_job_id: str | None
    created_at: Timestamp
