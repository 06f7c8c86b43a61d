"""What a page of events adds to the rollups: sums by period, tenant and plugin, by instance and by kind of failure."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from service.db.histogram import LAST_MS
from service.models import Timestamp

#: The period of what counts for ever.
EVER: Final = Timestamp("1970-01-01T00:00:00.000Z")
_REST: Final = "0000-00-00T00:00:00.000Z"
#: What stands in a grain's period for the part of a time that it leaves out begins here.
_LENGTHS: Final = {"minute": 16, "hour": 13, "day": 10}

#: What an event of a type counts as, beside what its execution does.
_COUNTED_AS: Final = {
    "submitted": ("submitted",),
    "started": ("started",),
    "success": ("succeeded",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
    "released": ("requeued",),
    "lost": ("requeued",),
    "retrying": ("requeued", "retried"),
}
#: The events that end a job or an execution.
ENDS: Final = tuple(name for name in _COUNTED_AS if name not in ("submitted", "started"))
_TERMINAL: Final = frozenset({"success", "failed", "cancelled"})

#: What differs between messages that say the same: numbers, ids, hashes, quoted names. An apostrophe in a word is no
#: quotation mark; bytes are quoted behind a `b`.
_VARIABLE: Final = re.compile(
    r"((?<!\w)|(?<=\bb))'([^']|(?<=[\w\\])'(?=\w)){0,200}'(?!\w)"
    r"|\"[^\"]{0,200}\""
    r"|\b0[xX][0-9a-fA-F]+\b"
    r"|\b[0-9a-fA-F]{8}[0-9a-fA-F-]*\b"
    r"|\d+(\.\d+)?([eE][+-]?\d+)?"
)
_MESSAGE_LENGTH: Final = 200


class Group(NamedTuple):
    """The key of a row of `rollups`."""

    grain: str
    period: str
    tenant: str
    plugin: str


class EventSum(NamedTuple):
    """Events that are alike in the fields before `events`, and their sums. `minute` may be an hour of long ago."""

    minute: str
    tenant: str
    plugin: str
    type: str
    # of ends only
    outcome: str | None
    owner: str | None
    queue_up_to_ms: int | None
    run_up_to_ms: int | None
    events: int
    timed: int = 0
    queue_ms: int | None = None
    run_ms: int | None = None
    cpu_us: int | None = None
    busy_ms: int | None = None
    peak_memory_bytes: int | None = None
    last_at: Timestamp | None = None


@dataclasses.dataclass(slots=True)
class Tally:
    """What is added to a row of `rollups`."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    buckets: dict[str, Counter[int]] = dataclasses.field(default_factory=lambda: {"queue": Counter(), "run": Counter()})
    peak_memory_bytes: int | None = None
    last_used_at: Timestamp | None = None


@dataclasses.dataclass(slots=True)
class Worker:
    """What is added to a row of `rollup_workers`."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    last_ended_at: Timestamp | None = None


@dataclasses.dataclass(slots=True)
class Failure:
    """What is added to a row of `rollup_failures`."""

    message: str
    jobs: int
    first_seen_at: Timestamp
    last_seen_at: Timestamp
    last_job_id: str


def period_of(grain: str, moment: str) -> str:
    """The beginning of the minute, hour or day in which `moment` lies."""
    length = _LENGTHS[grain]
    return moment[:length] + _REST[length:]


def sum_up(rows: Iterable[Sequence[Any]], recent: Timestamp) -> tuple[dict[Group, Tally], dict[str, Worker]]:
    """Rows as `EventSum`, by group and by instance. Minutes are kept from `recent` on."""
    by_minute: dict[tuple[str, str, str], Tally] = defaultdict(Tally)
    workers: dict[str, Worker] = defaultdict(Worker)
    for row in rows:
        event = EventSum(*row)
        _add(by_minute[event.minute, event.tenant, event.plugin], event)
        if event.owner is not None:
            _add_execution(workers[event.owner], event)
    groups: dict[Group, Tally] = defaultdict(Tally)
    for (minute, tenant, plugin), tally in by_minute.items():
        periods = {"all": str(EVER), "day": period_of("day", minute), "hour": period_of("hour", minute)}
        if minute >= recent[:16]:
            periods["minute"] = period_of("minute", minute)
        for grain, period in periods.items():
            _merge(groups[Group(grain, period, tenant, plugin)], tally)
    return groups, workers


def _add(tally: Tally, event: EventSum) -> None:
    counts = tally.counts
    for name in _COUNTED_AS[event.type]:
        counts[name] += event.events
    if event.type in _TERMINAL and event.outcome is None:
        counts["ended_waiting"] += event.events
    if event.outcome is not None:
        counts["attempts"] += event.events
        counts["cpu_us"] += event.cpu_us or 0
        if event.outcome == "LOST":
            counts["lost"] += event.events
        tally.peak_memory_bytes = _greater(tally.peak_memory_bytes, event.peak_memory_bytes)
        tally.last_used_at = _greater(tally.last_used_at, event.last_at)
    if event.timed:
        counts["timed"] += event.timed
        counts["queue_ms"] += event.queue_ms or 0
        counts["run_ms"] += event.run_ms or 0
        tally.buckets["queue"][_bound(event.queue_up_to_ms)] += event.timed
        tally.buckets["run"][_bound(event.run_up_to_ms)] += event.timed


def _add_execution(worker: Worker, event: EventSum) -> None:
    worker.counts["attempts"] += event.events
    worker.counts["busy_ms"] += event.busy_ms or 0
    column = {"SUCCESS": "succeeded", "FAILED": "failed", "LOST": "lost"}.get(event.outcome or "")
    if column is not None:
        worker.counts[column] += event.events
    worker.last_ended_at = _greater(worker.last_ended_at, event.last_at)


def _merge(into: Tally, other: Tally) -> None:
    into.counts.update(other.counts)
    for measure, counts in other.buckets.items():
        into.buckets[measure].update(counts)
    into.peak_memory_bytes = _greater(into.peak_memory_bytes, other.peak_memory_bytes)
    into.last_used_at = _greater(into.last_used_at, other.last_used_at)


def _bound(up_to_ms: int | None) -> int:
    return LAST_MS if up_to_ms is None else up_to_ms


def _greater(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else max(one, other)


def pattern_of(message: str) -> str:
    """What messages have in common that differ in numbers, ids and quoted names; at most 200 characters."""
    return _VARIABLE.sub("#", message)[:_MESSAGE_LENGTH]


def fingerprint_of(pattern: str) -> str:
    """Sixteen characters that stand for a pattern."""
    return hashlib.sha256(pattern.encode()).hexdigest()[:16]


def group_failures(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, str, str, str, str], Failure]:
    """Failures by kind; rows of tenant, plugin, version, error type, message, time and job."""
    failures: dict[tuple[str, str, str, str, str], Failure] = {}
    for tenant, plugin, version, error_type, message, at, job_id in rows:
        pattern = pattern_of(message)
        key = (tenant, plugin, version or "", error_type, fingerprint_of(pattern))
        known = failures.setdefault(key, Failure(pattern, 0, at, at, job_id))
        known.jobs += 1
        known.first_seen_at = min(known.first_seen_at, at)
        known.last_seen_at, known.last_job_id = max((known.last_seen_at, known.last_job_id), (at, job_id))
    return failures
