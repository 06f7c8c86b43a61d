"""The values all layers share: statuses and legal moves, records, references to bytes. Standard library only."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NewType

#: A value that `json` could have produced: None, bool, int, float, str, list or dict of those.
JSON = Any

#: Fixed-width ISO 8601 UTC with milliseconds, `2026-01-31T12:00:00.000Z`: text order is time order.
Timestamp = NewType("Timestamp", str)

#: `(result, error)` with exactly one side set: success is `(result, {})`, failure `({}, {"error": {...}})`.
Pair = tuple[dict[str, Any], dict[str, Any]]

DEFAULT_TENANT: Final = "default"
#: A job overtakes those of one point of priority less that have waited up to this much longer.
PRIORITY_S: Final = 60
#: The most that a job or a plugin may ask for.
MAX_ATTEMPTS: Final = 100


def timestamp(moment: datetime | None = None) -> Timestamp:
    """`moment` (aware; now if not given) as a `Timestamp`."""
    if moment is None:
        seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        return Timestamp(f"{_second(seconds)}.{milliseconds:03d}Z")
    return Timestamp(f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}Z")


@functools.lru_cache(maxsize=2)
def _second(since_epoch: int) -> str:
    # Every request asks for the time, thousands within one second.
    return datetime.fromtimestamp(since_epoch, UTC).isoformat()[:-6]


_CANONICAL: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def canonical_uuid(text: str) -> str | None:
    """The one spelling of a UUID; None for what is none."""
    if _CANONICAL.fullmatch(text):  # as nearly all are, and a sixth of the time
        return text
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def time_of(job_id: str) -> Timestamp:
    """When a UUIDv7 was made, as it says itself; for one in its canonical spelling."""
    seconds, milliseconds = divmod(int(job_id[:8] + job_id[9:13], 16), 1000)
    return Timestamp(f"{_second(seconds)}.{milliseconds:03d}Z")


def ids_at(moment: Timestamp) -> tuple[str, str]:
    """The first and the last UUIDv7 that can be made in that millisecond; before 1970 none is."""
    digits = f"{max(0, round(datetime.fromisoformat(moment).timestamp() * 1000)):012x}"
    made = f"{digits[:8]}-{digits[8:]}"
    return f"{made}-7000-8000-000000000000", f"{made}-7fff-bfff-ffffffffffff"


def later(moment: Timestamp, seconds: float) -> Timestamp:
    """`seconds` after `moment`; the first or last moment of the calendar where that is beyond it."""
    try:
        return timestamp(datetime.fromisoformat(moment) + timedelta(seconds=seconds))
    except OverflowError:
        return timestamp(datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime.min.replace(tzinfo=UTC))


def rank(run_at: Timestamp, priority: int) -> int:
    """The order of claims, lowest first: milliseconds of time, a point of priority being worth `PRIORITY_S` of waiting.

    All jobs age alike, so their order never changes and need not be computed again; and none starves.
    """
    return round(datetime.fromisoformat(run_at).timestamp() * 1000) - priority * PRIORITY_S * 1000


class JobStatus(enum.StrEnum):
    """Where a job is. Scheduled and waiting-to-retry jobs are PENDING with `run_at` in the future."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """True when the job has ended and its row never changes again."""
        return not TRANSITIONS[self]


#: The only legal moves. Tests hold the SQL guards and the diagram in the docs to this table.
TRANSITIONS: Final[Mapping[JobStatus, frozenset[JobStatus]]] = MappingProxyType(
    {
        JobStatus.PENDING: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
        JobStatus.RUNNING: frozenset({JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PENDING}),
        JobStatus.SUCCESS: frozenset(),
        JobStatus.FAILED: frozenset(),
        JobStatus.CANCELLED: frozenset(),
    }
)

TERMINAL: Final = frozenset(status for status in JobStatus if status.is_terminal)
ACTIVE: Final = frozenset(JobStatus) - TERMINAL


class EventType(enum.StrEnum):
    """What can happen to a job. An event that ends it has the name of the status, in small letters."""

    SUBMITTED = "submitted"
    STARTED = "started"
    PROGRESS = "progress"
    CANCEL_REQUESTED = "cancel_requested"
    RELEASED = "released"  # given back unharmed
    RETRYING = "retrying"  # this attempt failed, another one follows
    LOST = "lost"  # taken back from a runner that was lost
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ErrorType(enum.StrEnum):
    """Why a job failed, by the origin of the fault and never by the name of an exception class."""

    VALIDATION = "ValidationError"  # the input
    PLUGIN = "PluginError"  # unknown, unloadable, disabled, vanished
    EXECUTION = "ExecutionError"  # the plugin raised
    TIME_LIMIT = "TimeLimitExceeded"
    MEMORY_LIMIT = "MemoryLimitExceeded"
    WORKER_CRASHED = "WorkerCrashed"  # signal or exit code in details
    INVALID_OUTPUT = "InvalidOutput"  # not encodable, too large, wrong shape
    EXPIRED = "Expired"  # its time to start passed
    WORKER_LOST = "WorkerLost"  # the host or its lease was lost too often
    INTERNAL = "InternalError"  # ours


class JobPart(enum.StrEnum):
    """Where the bytes of a job are; those of its artifacts are of its RESULT."""

    PAYLOAD = "payload"
    RESULT = "result"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """Names stored bytes by their content. In stored documents it stands as `{"$blob": {sha256, size, media_type}}`."""

    sha256: str
    size: int
    media_type: str = "application/octet-stream"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that a plugin made beside its result; bytes not yet stored."""

    name: str
    data: bytes
    media_type: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """A file of a finished job, as its record names it."""

    name: str
    blob: BlobRef


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobWebhook:
    """Where the end of a job is to be heard of; `events` None is every end."""

    url: str
    events: tuple[str, ...] | None = None  # `webhook_models.WebhookEvent`


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class JobOptions:
    """What a submitter may ask for beside plugin and payload."""

    priority: int = 0  # -100..100, each worth `PRIORITY_S` of waiting
    run_at: Timestamp | None = None  # may not start before
    expires_at: Timestamp | None = None  # may not start after; then FAILED with `Expired`
    timeout_s: float | None = None  # of execution; the plugin's limit and the host's ceiling win
    max_attempts: int | None = None  # 1..MAX_ATTEMPTS; default: what the plugin says, or 1
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, JSON] = dataclasses.field(default_factory=dict)
    webhook: JobWebhook | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a plugin says it is: `fraction` in 0..1."""

    fraction: float
    message: str


class JobVersion(NamedTuple):
    """Tells a state of a job from all others under its id: an id may be used again once its job was deleted."""

    created_at: Timestamp
    event_count: int


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class JobRecord:
    """One row of `jobs` as readers see it.

    `payload` and `result` are stored documents: bytes stand in them as `{"$blob": {...}}` (see `BlobRef`). Both are
    None in lists, which never load them. `error` is the inner error object. `result` is set iff SUCCESS, `error` iff
    FAILED, `cancel_reason` iff CANCELLED.
    """

    id: str
    tenant: str
    plugin: str
    plugin_version: str | None
    status: JobStatus
    priority: int
    tags: Sequence[str]
    metadata: Mapping[str, JSON]
    attempt: int
    max_attempts: int
    fence: int
    event_count: int
    batch_id: str | None
    parent_id: str | None  # the job that this one tries again
    schedule_id: str | None
    webhook_id: str | None  # the endpoint that hears of this job because the job says so
    progress: Progress | None
    payload: Mapping[str, JSON] | None
    result: Mapping[str, JSON] | None
    error: Mapping[str, JSON] | None
    artifacts: Sequence[StoredArtifact]
    cancel_reason: str | None
    cancel_requested_at: Timestamp | None
    timeout_s: float | None
    created_at: Timestamp
    run_at: Timestamp
    expires_at: Timestamp | None
    started_at: Timestamp | None
    finished_at: Timestamp | None

    @property
    def version(self) -> JobVersion:
        """The state that this record shows."""
        return JobVersion(self.created_at, self.event_count)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One execution of a job. `traceback` and `output` are for administrators and never part of a public record."""

    fence: int
    attempt: int
    owner: str
    outcome: str | None  # SUCCESS, FAILED, CANCELLED, RELEASED or LOST; None while it runs
    started_at: Timestamp
    finished_at: Timestamp | None
    run_s: float | None
    cpu_s: float | None
    peak_memory_bytes: int | None
    worker_pid: int | None
    plugin_version: str | None
    error_type: str | None
    error_message: str | None
    metrics: Mapping[str, float]
    traceback: str | None
    output: str | None


class Place(NamedTuple):
    """Where an event stands among those of all jobs: `tx` is 0 where one writer makes `position` the whole order."""

    tx: int
    position: int

    def __str__(self) -> str:
        return f"{self.tx}-{self.position}"


#: Before every event.
FIRST_PLACE: Final = Place(0, 0)


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class JobEvent:
    """Something that happened to a job: its `n`-th event, counted from 1 without a gap. `data` is JSON text."""

    place: Place
    tenant: str
    plugin: str
    job_id: str
    n: int
    type: str
    at: Timestamp
    data: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events of a tenant's jobs; None as `plugin` or `types` takes all."""

    tenant: str
    plugin: str | None = None
    types: frozenset[EventType] | None = None

    def takes(self, event: JobEvent) -> bool:
        """Whether `event` is one of them."""
        return (
            event.tenant == self.tenant
            and (self.plugin is None or event.plugin == self.plugin)
            and (self.types is None or event.type in self.types)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events in the order of their places. Up to `end` nothing is missing; behind it there is more if `is_full`."""

    events: Sequence[JobEvent]
    end: Place
    is_full: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobNews:
    """The events of a job behind a number, and how it is; all as of one moment."""

    status: JobStatus
    event_count: int
    events: Sequence[JobEvent]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlace:
    """How many jobs start before this one, and in how many seconds it may start; None where that is not known."""

    position: int | None
    eta_s: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list, newest first. `after` is the id that ended the page before.

    `created_after` and `created_before` are compared with the time in the id, which is the order of the list.
    """

    status: JobStatus | None = None
    plugin: str | None = None
    tag: str | None = None
    error_type: str | None = None
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None
    after: str | None = None
    limit: int = 50


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """A page of `JobRecord`s; `next` is the cursor for `JobQuery.after`, or None at the end."""

    items: Sequence[JobRecord]
    next: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a job stands."""

    id: str
    status: JobStatus
    plugin: str


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class JobRequest:
    """A job as somebody asks for it.

    `payload` is what was sent; where only the plugin's schema can tell what that means (the texts of a form), `bind`
    makes the payload of it. Two requests are the same if plugin, options and what was sent are. `id` is a UUIDv7 of the
    client's choice.
    """

    plugin: str
    payload: Mapping[str, Any]
    options: JobOptions = dataclasses.field(default_factory=JobOptions)
    bind: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    idempotency_key: str | None = None
    id: str | None = None


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Submission:
    """An accepted job; `replayed` when its idempotency key had made it before."""

    record: JobRecord
    replayed: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """How far a batch is; `finished_at` once all of its jobs have ended."""

    id: str
    counts: Mapping[JobStatus, int]
    created_at: Timestamp
    finished_at: Timestamp | None

    @property
    def total(self) -> int:
        """How many jobs it has."""
        return sum(self.counts.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What has become of a job so far. `result` is a stored document, `error` the inner error object."""

    id: str
    plugin: str
    status: JobStatus
    result: Mapping[str, JSON] | None
    error: Mapping[str, JSON] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginMetrics:
    """Executions of one plugin over all processes; refused input never counts. Times are of `run`, in seconds."""

    success_count: int = 0
    error_count: int = 0
    last_run_s: float | None = None
    mean_run_s: float | None = None  # over every execution, not a window
    last_used_at: Timestamp | None = None
    consecutive_errors: int = 0
    last_error: str | None = None  # type and message of the newest failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job this process has just set RUNNING; every write about it names `fence`, which only ever rises."""

    id: str
    plugin: str
    payload: str  # the stored document, as JSON text
    fence: int
    attempt: int
    max_attempts: int
    timeout_s: float | None
    created_at: Timestamp
