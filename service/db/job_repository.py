"""Every change of a job: operations for `Writer.write`, each naming what must still hold for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.calls import CallReport
from service.codec import encode, storable_text
from service.db.blobs import BlobStore, NewBlob
from service.db.plugin_metrics import Execution, record_executions
from service.db.schema import Time, job_attempts, job_events, jobs
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.errors import error_object
from service.models import (
    JSON,
    ClaimedJob,
    ErrorType,
    JobOptions,
    JobStatus,
    Progress,
    StoredArtifact,
    Timestamp,
    later,
)

MAX_LOST: Final = 3
#: So many jobs are taken back in one transaction, the longest lost first.
RESCUE_PAGE: Final = 500


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class NewJob:
    """A job to insert, its payload already a stored document."""

    id: str
    tenant: str
    plugin: str
    plugin_version: str | None
    payload: str
    blobs: Sequence[NewBlob]
    options: JobOptions
    max_attempts: int
    created_at: Timestamp
    idempotency_key: str | None
    request_hash: str | None

    @property
    def run_at(self) -> Timestamp:
        """When it becomes due; never before it was made."""
        asked = self.options.run_at
        return self.created_at if asked is None or asked < self.created_at else asked


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Inserted:
    """`id` is the new job's, or of the job that the idempotency key had made before, with the hash of that request."""

    id: str
    replayed: bool
    request_hash: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Up to `limit` due jobs, at most `caps[plugin]` of each plugin named there; or `job_id` alone, due or not.

    `plugins` are the only ones to claim for; None means any.
    """

    owner: str
    limit: int
    lease_s: float
    caps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    plugins: Collection[str] | None = None
    job_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an execution ended: a terminal status with what belongs to it, or PENDING.

    PENDING gives the job back and returns its attempt; with `retry_in_s` (and the error of this attempt) the attempt is
    used, and the job waits for its next one.
    """

    job: ClaimedJob
    owner: str
    status: JobStatus
    result: str | None = None
    error: Mapping[str, JSON] | None = None
    cancel_reason: str | None = None
    artifacts: Sequence[StoredArtifact] = ()
    blobs: Sequence[NewBlob] = ()
    report: CallReport = dataclasses.field(default_factory=CallReport)
    retry_in_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade:
    """A plugin's word on how far it is."""

    job: ClaimedJob
    owner: str
    progress: Progress


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Somebody wants the job not to run, or to stop."""

    job_id: str
    reason: str


_NEW_COLUMNS: Final = (
    jobs.c.id, jobs.c.tenant, jobs.c.idempotency_key, jobs.c.request_hash, jobs.c.plugin, jobs.c.plugin_version,
    jobs.c.priority, jobs.c.due, jobs.c.run_at, jobs.c.expires_at, jobs.c.timeout_s, jobs.c.max_attempts,
    jobs.c.created_at, jobs.c.tags, jobs.c.metadata, jobs.c.payload,
)  # fmt: skip
_new = batch_table("new", *_NEW_COLUMNS)
# PostgreSQL's form of INSERT: SQLAlchemy compiles its ON CONFLICT for SQLite too, where it is the same.
_insert_jobs = postgresql.insert(jobs).from_select(
    [*_NEW_COLUMNS, "status", "attempt", "lost", "max_lost", "fence", "event_count", "artifacts"],
    sa.select(
        *_new.c, literal("PENDING"), sa.text("0"), sa.text("0"), sa.text(str(MAX_LOST)), sa.text("0"), sa.text("1"),
        sa.text("'[]'"),
    ).where(sa.true()),
)  # fmt: skip
_INSERT_JOBS = Statement(_insert_jobs)
_INSERT_KEYED_JOBS = Statement(
    _insert_jobs.on_conflict_do_nothing(
        index_elements=["tenant", "idempotency_key"], index_where=sa.text("idempotency_key IS NOT NULL")
    ).returning(jobs.c.id)
)
_keys = batch_table("keys", jobs.c.tenant, jobs.c.idempotency_key)
_SELECT_BY_KEY = Statement(
    sa.select(jobs.c.tenant, jobs.c.idempotency_key, jobs.c.id, jobs.c.request_hash).join(
        _keys, (jobs.c.tenant == _keys.c.tenant) & (jobs.c.idempotency_key == _keys.c.idempotency_key)
    )
)
_EVENT_COLUMNS: Final = tuple(job_events.c)
_INSERT_EVENTS = Statement(
    sa.insert(job_events).from_select(_EVENT_COLUMNS, sa.select(*batch_table("new", *_EVENT_COLUMNS).c))
)
_ATTEMPT_COLUMNS: Final = tuple(
    job_attempts.c[name] for name in ("job_id", "fence", "attempt", "plugin", "owner", "started_at")
)
_INSERT_ATTEMPTS = Statement(
    sa.insert(job_attempts).from_select(_ATTEMPT_COLUMNS, sa.select(*batch_table("new", *_ATTEMPT_COLUMNS).c))
)

_known_plugins: Final = batch_table("known_plugins", jobs.c.plugin, parameter="plugins")
_CLAIMABLE: Final[sa.ColumnElement[bool] | sa.TextClause] = sa.text("jobs.status = 'PENDING' AND jobs.due")
_EVENT: Final = {jobs.c.event_count: jobs.c.event_count + sa.text("1")}
_RUN: Final = {
    jobs.c.status: literal("RUNNING"),
    jobs.c.fence: jobs.c.fence + sa.text("1"),
    jobs.c.attempt: jobs.c.attempt + sa.text("1"),
    jobs.c.owner: sa.bindparam("owner"),
    jobs.c.lease_until: sa.bindparam("lease_until"),
    jobs.c.started_at: sa.bindparam("now"),
    jobs.c.progress_fraction: sa.null(),
    jobs.c.progress_message: sa.null(),
    **_EVENT,
}
_CLAIMED: Final = (
    jobs.c.id, jobs.c.plugin, jobs.c.payload, jobs.c.fence, jobs.c.attempt, jobs.c.max_attempts, jobs.c.timeout_s,
    jobs.c.created_at, jobs.c.priority, jobs.c.event_count,
)  # fmt: skip


def _claim_statement(*, of_some_plugins: bool) -> Statement:
    caps = batch_table("caps", jobs.c.plugin, sa.column("room", sa.Integer), parameter="caps")
    claimable = [_CLAIMABLE, jobs.c.plugin.not_in(sa.select(caps.c.plugin).where(caps.c.room <= sa.text("0")))]
    if of_some_plugins:
        claimable.append(jobs.c.plugin.in_(sa.select(_known_plugins.c.plugin)))
    # Materialized, or PostgreSQL may run it again for each row and lock more than the limit. SQLite locks no rows.
    next_jobs = (
        sa.select(jobs.c.id, jobs.c.plugin, jobs.c.priority)
        .where(*claimable)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .with_for_update(skip_locked=True)
        .cte("next_jobs")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    rank = sa.func.row_number().over(
        partition_by=next_jobs.c.plugin, order_by=(next_jobs.c.priority.desc(), next_jobs.c.id)
    )
    ranked = sa.select(next_jobs.c.id, next_jobs.c.plugin, rank.label("rank")).subquery("ranked")
    allowed = (
        sa.select(ranked.c.id)
        .join(caps, caps.c.plugin == ranked.c.plugin, isouter=True)
        .where(caps.c.plugin.is_(None) | (ranked.c.rank <= caps.c.room))
    )
    return Statement(sa.update(jobs).where(jobs.c.id.in_(allowed), _CLAIMABLE).values(_RUN).returning(*_CLAIMED))


_CLAIM = _claim_statement(of_some_plugins=False)
_CLAIM_OF_PLUGINS = _claim_statement(of_some_plugins=True)
_CLAIM_ONE = Statement(
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"), jobs.c.status == literal("PENDING"))
    .values(_RUN)
    .returning(*_CLAIMED)
)

_ending = batch_table(
    "ending", jobs.c.id, jobs.c.fence, jobs.c.owner, jobs.c.status, sa.column("at", Time), jobs.c.result, jobs.c.error,
    jobs.c.error_type, jobs.c.error_message, jobs.c.cancel_reason, jobs.c.artifacts, jobs.c.plugin_version,
    sa.column("used", sa.Integer), jobs.c.run_at,
)  # fmt: skip
_CANCEL_REASON: Final = "requested while running"
# Whoever asked to cancel while the outcome was on its way does not want another attempt.
_cancelled_instead: Final = (_ending.c.status == literal("PENDING")) & jobs.c.cancel_requested_at.is_not(None)
_pending_again: Final = (_ending.c.status == literal("PENDING")) & jobs.c.cancel_requested_at.is_(None)
_next_run_at: Final = sa.func.coalesce(_ending.c.run_at, jobs.c.run_at)
_END = Statement(
    sa.update(jobs)
    .where(
        jobs.c.id == _ending.c.id,
        jobs.c.status == literal("RUNNING"),
        jobs.c.fence == _ending.c.fence,
        jobs.c.owner == _ending.c.owner,
    )
    .values(
        {
            jobs.c.status: sa.case((_cancelled_instead, literal("CANCELLED")), else_=_ending.c.status),
            jobs.c.owner: sa.null(),
            jobs.c.lease_until: sa.null(),
            jobs.c.finished_at: sa.case((_pending_again, sa.null()), else_=_ending.c.at),
            jobs.c.run_at: _next_run_at,
            jobs.c.due: _next_run_at <= _ending.c.at,
            jobs.c.attempt: sa.case(
                (_pending_again, jobs.c.attempt - sa.text("1") + _ending.c.used), else_=jobs.c.attempt
            ),
            jobs.c.result: _ending.c.result,
            jobs.c.error: _ending.c.error,
            jobs.c.error_type: _ending.c.error_type,
            jobs.c.error_message: _ending.c.error_message,
            jobs.c.cancel_reason: sa.case((_cancelled_instead, literal(_CANCEL_REASON)), else_=_ending.c.cancel_reason),
            jobs.c.artifacts: _ending.c.artifacts,
            jobs.c.plugin_version: sa.func.coalesce(_ending.c.plugin_version, jobs.c.plugin_version),
            **_EVENT,
        }
    )
    .returning(jobs.c.id, jobs.c.fence, jobs.c.event_count, jobs.c.status)
)
_ATTEMPT_END_COLUMNS: Final = (
    "job_id", "fence", "outcome", "finished_at", "run_s", "cpu_s", "peak_memory_bytes", "worker_pid",
    "plugin_version", "error_type", "error_message", "metrics", "traceback", "output",
)  # fmt: skip
_attempt_end = batch_table("ended", *(job_attempts.c[name] for name in _ATTEMPT_END_COLUMNS))
_END_ATTEMPTS = Statement(
    sa.update(job_attempts)
    .where(
        job_attempts.c.job_id == _attempt_end.c.job_id,
        job_attempts.c.fence == _attempt_end.c.fence,
        job_attempts.c.outcome.is_(None),
    )
    .values({job_attempts.c[name]: _attempt_end.c[name] for name in _ATTEMPT_END_COLUMNS[2:]})
)

_PROGRESS = Statement(
    sa.update(jobs)
    .where(
        jobs.c.id == sa.bindparam("job_id"),
        jobs.c.status == literal("RUNNING"),
        jobs.c.fence == sa.bindparam("at_fence"),
        jobs.c.owner == sa.bindparam("by"),
    )
    .values(
        {
            jobs.c.progress_fraction: sa.bindparam("fraction"),
            jobs.c.progress_message: sa.bindparam("message"),
            **_EVENT,
        }
    )
    .returning(jobs.c.event_count)
)

_was_pending: Final = jobs.c.status == literal("PENDING")
_CANCEL = Statement(
    sa.update(jobs)
    .where(
        jobs.c.id == sa.bindparam("job_id"),
        sa.text("jobs.status IN ('PENDING', 'RUNNING')"),
        jobs.c.cancel_requested_at.is_(None) | _was_pending,
    )
    .values(
        {
            jobs.c.status: sa.case((_was_pending, literal("CANCELLED")), else_=jobs.c.status),
            jobs.c.cancel_requested_at: sa.bindparam("now"),
            jobs.c.cancel_reason: sa.case((_was_pending, sa.bindparam("reason")), else_=sa.null()),
            jobs.c.finished_at: sa.case((_was_pending, sa.bindparam("now")), else_=sa.null()),
            **_EVENT,
        }
    )
    .returning(jobs.c.status, jobs.c.event_count)
)

_PROMOTE = Statement(
    sa.update(jobs)
    .where(sa.text("jobs.status = 'PENDING' AND NOT jobs.due"), jobs.c.run_at <= sa.bindparam("now"))
    .values(due=sa.true())
    .returning(jobs.c.id)
)
_OVERDUE = Statement(
    sa.select(jobs.c.id, jobs.c.plugin, jobs.c.expires_at)
    .where(sa.text("jobs.status = 'PENDING' AND jobs.expires_at IS NOT NULL"), jobs.c.expires_at < sa.bindparam("now"))
    .limit(500)
)
_doomed = batch_table("doomed", jobs.c.id, jobs.c.error, jobs.c.error_type, jobs.c.error_message)


def _failing(condition: sa.ColumnElement[bool]) -> Statement:
    """Fail PENDING jobs for which `condition` holds still."""
    return Statement(
        sa.update(jobs)
        .where(jobs.c.id == _doomed.c.id, jobs.c.status == literal("PENDING"), condition)
        .values(
            {
                jobs.c.status: literal("FAILED"),
                jobs.c.finished_at: sa.bindparam("now"),
                jobs.c.error: _doomed.c.error,
                jobs.c.error_type: _doomed.c.error_type,
                jobs.c.error_message: _doomed.c.error_message,
                **_EVENT,
            }
        )
        .returning(jobs.c.id, jobs.c.event_count)
    )


_EXPIRE = _failing(jobs.c.expires_at < sa.bindparam("now"))
_ABANDON = _failing(jobs.c.run_at < sa.bindparam("before"))
_held = batch_table("held", jobs.c.id, jobs.c.fence)
_RENEW = Statement(
    sa.update(jobs)
    .where(
        jobs.c.id == _held.c.id,
        jobs.c.status == literal("RUNNING"),
        jobs.c.fence == _held.c.fence,
        jobs.c.owner == sa.bindparam("by"),
        jobs.c.lease_until > sa.bindparam("now"),
    )
    .values(lease_until=sa.bindparam("until"))
    .returning(jobs.c.id, jobs.c.fence, jobs.c.cancel_requested_at)
)

_lost = batch_table("lost_runs", jobs.c.id, jobs.c.fence, jobs.c.error, jobs.c.error_message)
_asked_to_cancel: Final = jobs.c.cancel_requested_at.is_not(None)
_hopeless: Final = jobs.c.cancel_requested_at.is_(None) & (jobs.c.lost + sa.text("1") >= jobs.c.max_lost)


def _taking_back(is_lost: sa.ColumnElement[bool]) -> tuple[Statement, Statement]:
    """A look for lost runs, the longest lost first, and the change that takes them back if they still are lost.

    The change tests everything again by itself: between look and change the owner may have ended or renewed the job.
    """
    running = jobs.c.status == literal("RUNNING")
    look = sa.select(*_CLAIMED[:8], jobs.c.lost).where(running, is_lost).order_by(jobs.c.lease_until).limit(RESCUE_PAGE)
    change = (
        sa.update(jobs)
        .where(jobs.c.id == _lost.c.id, jobs.c.fence == _lost.c.fence, running, is_lost)
        .values(
            {
                jobs.c.status: sa.case(
                    (_asked_to_cancel, literal("CANCELLED")), (_hopeless, literal("FAILED")), else_=literal("PENDING")
                ),
                jobs.c.owner: sa.null(),
                jobs.c.lease_until: sa.null(),
                jobs.c.finished_at: sa.case((_asked_to_cancel | _hopeless, sa.bindparam("now")), else_=sa.null()),
                jobs.c.due: jobs.c.run_at <= sa.bindparam("now"),
                jobs.c.attempt: sa.case(
                    (_asked_to_cancel | _hopeless, jobs.c.attempt), else_=jobs.c.attempt - sa.text("1")
                ),
                jobs.c.lost: sa.case((_asked_to_cancel, jobs.c.lost), else_=jobs.c.lost + sa.text("1")),
                jobs.c.error: sa.case((_hopeless, _lost.c.error), else_=sa.null()),
                jobs.c.error_type: sa.case((_hopeless, literal(ErrorType.WORKER_LOST)), else_=sa.null()),
                jobs.c.error_message: sa.case((_hopeless, _lost.c.error_message), else_=sa.null()),
                jobs.c.cancel_reason: sa.case((_asked_to_cancel, literal(_CANCEL_REASON)), else_=sa.null()),
                **_EVENT,
            }
        )
        .returning(jobs.c.id, jobs.c.event_count, jobs.c.status)
    )
    return Statement(look), Statement(change)


_LAPSED = _taking_back(jobs.c.lease_until < sa.bindparam("now"))
_FOREIGN = _taking_back(jobs.c.owner != sa.bindparam("by"))


async def insert(tx: Transaction, items: Sequence[NewJob]) -> list[Inserted]:
    """Record new jobs with their bytes and first events; a used idempotency key yields the job it made before."""
    await BlobStore.insert(tx, (blob for item in items for blob in item.blobs))
    keyed = [item for item in items if item.idempotency_key is not None]
    # Without a key nothing can be in the way, and asking for the rows would cost a turn of the interpreter for each.
    made = {item.id for item in items if item.idempotency_key is None}
    if made:
        rows = (_new_row(item) for item in items if item.idempotency_key is None)
        await tx.fetch(_INSERT_JOBS, batch=batch(rows))
    if keyed:
        made.update(row[0] for row in await tx.fetch(_INSERT_KEYED_JOBS, batch=batch(map(_new_row, keyed))))
    await _add_events(tx, ((item.id, 1, "submitted", item.created_at, {}) for item in items if item.id in made))
    known = await _by_key(tx, [item for item in keyed if item.id not in made])
    return [
        Inserted(id=item.id, replayed=False, request_hash=item.request_hash)
        if item.id in made
        else known[item.tenant, item.idempotency_key]
        for item in items
    ]


async def _by_key(tx: Transaction, items: Sequence[NewJob]) -> dict[tuple[str, str | None], Inserted]:
    if not items:
        return {}
    rows = await tx.fetch(_SELECT_BY_KEY, batch=batch((item.tenant, item.idempotency_key) for item in items))
    return {
        (tenant, key): Inserted(id=job_id, replayed=True, request_hash=request_hash)
        for tenant, key, job_id, request_hash in rows
    }


def _new_row(item: NewJob) -> tuple[Any, ...]:
    options = item.options
    run_at = item.run_at
    return (
        item.id, item.tenant, item.idempotency_key, item.request_hash, item.plugin, item.plugin_version,
        options.priority, run_at <= item.created_at, run_at, options.expires_at, options.timeout_s, item.max_attempts,
        item.created_at, encode(options.tags), encode(options.metadata), item.payload,
    )  # fmt: skip


async def claim(tx: Transaction, items: Sequence[Claim]) -> list[list[ClaimedJob]]:
    """Set jobs RUNNING with the next fence and a lease, best first; each claim gets what is left by those before."""
    return [await _claim(tx, item) for item in items]


async def _claim(tx: Transaction, item: Claim) -> list[ClaimedJob]:
    now = tx.now
    shared: dict[str, Any] = {"owner": item.owner, "lease_until": later(now, item.lease_s), "now": now}
    if item.job_id is not None:
        rows = await tx.fetch(_CLAIM_ONE, job_id=item.job_id, **shared)
    else:
        shared |= {"caps": batch(item.caps.items()), "limit": item.limit}
        if item.plugins is None:
            rows = await tx.fetch(_CLAIM, **shared)
        else:
            rows = await tx.fetch(_CLAIM_OF_PLUGINS, plugins=batch((name,) for name in item.plugins), **shared)
    rows.sort(key=lambda row: (-row[8], row[0]))
    claimed = [_claimed_job(row) for row in rows]
    if not claimed:
        return []
    attempts = [(job.id, job.fence, job.attempt, job.plugin, item.owner, now) for job in claimed]
    await tx.fetch(_INSERT_ATTEMPTS, batch=batch(attempts))
    await _add_events(
        tx,
        (
            (job.id, row[9], "started", now, {"attempt": job.attempt, "fence": job.fence})
            for job, row in zip(claimed, rows, strict=True)
        ),
    )
    return claimed


def _claimed_job(row: Sequence[Any]) -> ClaimedJob:
    job_id, plugin, payload, fence, attempt, max_attempts, timeout_s, created_at = row[:8]
    return ClaimedJob(
        id=job_id,
        plugin=plugin,
        payload=payload,
        fence=fence,
        attempt=attempt,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
        created_at=created_at,
    )


async def end(tx: Transaction, items: Sequence[Ending]) -> list[JobStatus | None]:
    """Write how executions ended; where each job is now, None where the fence no longer holds and nothing has changed.

    A job that somebody asked to cancel meanwhile is CANCELLED where it would have been PENDING again.
    """
    now = tx.now
    await BlobStore.insert(tx, (blob for item in items for blob in item.blobs))
    rows = await tx.fetch(_END, batch=batch(_ending_row(item, now) for item in items))
    # By fence too: a stale end of a job may stand in one batch with the live one.
    moved = {(job_id, fence): (n, JobStatus(status)) for job_id, fence, n, status in rows}
    outcomes = [moved.get((item.job.id, item.job.fence)) for item in items]
    held = [(item, *outcome) for item, outcome in zip(items, outcomes, strict=True) if outcome]
    if held:
        await tx.fetch(_END_ATTEMPTS, batch=batch(_attempt_end_row(item, now, status) for item, _, status in held))
        await _add_events(tx, (_ending_event(item, now, n, status) for item, n, status in held))
        await record_executions(tx, _executions((item for item, _, _ in held), now))
    return [outcome and outcome[1] for outcome in outcomes]


def _run_at(item: Ending, now: Timestamp) -> Timestamp | None:
    return None if item.retry_in_s is None else later(now, item.retry_in_s)


def _ending_row(item: Ending, now: Timestamp) -> tuple[Any, ...]:
    error = item.error if item.status is JobStatus.FAILED else None
    artifacts = [{"name": artifact.name, **dataclasses.asdict(artifact.blob)} for artifact in item.artifacts]
    return (
        item.job.id, item.job.fence, item.owner, item.status, now, item.result, error and encode(error),
        error and error["type"], error and error["message"], item.cancel_reason, encode(artifacts),
        item.report.plugin_version, int(item.retry_in_s is not None), _run_at(item, now),
    )  # fmt: skip


def _attempt_end_row(item: Ending, now: Timestamp, status: JobStatus) -> tuple[Any, ...]:
    report, error = item.report, item.error
    outcome = JobStatus.FAILED if error else "RELEASED" if status is JobStatus.PENDING else status
    return (
        item.job.id, item.job.fence, outcome, now, report.run_s, report.cpu_s, report.peak_memory_bytes,
        report.worker_pid, report.plugin_version, error and error["type"], error and error["message"],
        encode(report.metrics) if report.metrics else None, report.traceback and storable_text(report.traceback),
        report.output and storable_text(report.output),
    )  # fmt: skip


def _ending_event(item: Ending, now: Timestamp, n: int, status: JobStatus) -> tuple[str, int, str, Timestamp, JSON]:
    data: dict[str, JSON] = {"attempt": item.job.attempt, "fence": item.job.fence}
    kind = status.lower()
    if item.error:
        data["error_type"] = item.error["type"]
    if status is JobStatus.CANCELLED:
        data["reason"] = item.cancel_reason or _CANCEL_REASON
    if status is JobStatus.PENDING:
        kind = "released" if item.retry_in_s is None else "retrying"
        if item.retry_in_s is not None:
            data["run_at"] = _run_at(item, now)
    return item.job.id, n, kind, now, data


def _executions(items: Iterable[Ending], now: Timestamp) -> list[Execution]:
    return [
        Execution(
            plugin=item.job.plugin,
            at=now,
            run_s=item.report.run_s,
            error=None if item.error is None else f"{item.error['type']}: {item.error['message']}",
        )
        for item in items
        if item.status is JobStatus.SUCCESS or (item.error is not None and item.error["type"] != ErrorType.VALIDATION)
    ]


async def make_progress(tx: Transaction, items: Sequence[ProgressMade]) -> list[bool]:
    """Show progress on rows that are still held; False where the fence no longer holds."""
    now = tx.now
    newest = {item.job.id: item for item in items}
    events = []
    for item in newest.values():
        progress = item.progress
        rows = await tx.fetch(
            _PROGRESS,
            job_id=item.job.id,
            at_fence=item.job.fence,
            by=item.owner,
            fraction=progress.fraction,
            message=progress.message,
        )
        events += [(item.job.id, n, "progress", now, dataclasses.asdict(progress)) for (n,) in rows]
    await _add_events(tx, events)
    held = {event[0] for event in events}
    return [item.job.id in held for item in items]


async def request_cancel(tx: Transaction, items: Sequence[CancelRequest]) -> list[bool]:
    """Cancel what is PENDING at once and mark what is RUNNING to be stopped; False where nothing was left to ask."""
    now = tx.now
    events: list[tuple[str, int, str, Timestamp, JSON]] = []
    changed = []
    for item in items:
        rows = await tx.fetch(_CANCEL, job_id=item.job_id, now=now, reason=item.reason)
        changed.append(bool(rows))
        for status, n in rows:
            kind = "cancelled" if status == JobStatus.CANCELLED else "cancel_requested"
            events.append((item.job_id, n, kind, now, {"reason": item.reason}))
    await _add_events(tx, events)
    return changed


async def promote(tx: Transaction, items: Sequence[None]) -> list[int]:
    """Make scheduled jobs claimable whose time has come; how many."""
    return [len(await tx.fetch(_PROMOTE, now=tx.now))] * len(items)


async def expire(tx: Transaction, items: Sequence[None]) -> list[list[str]]:
    """Fail PENDING jobs whose time to start has passed, at most 500; their ids."""
    errors = {
        job_id: error_object(ErrorType.EXPIRED, f"The job did not start before {expires_at}.", plugin=plugin)
        for job_id, plugin, expires_at in await tx.fetch(_OVERDUE, now=tx.now)
    }
    return [await _fail_pending(tx, _EXPIRE, errors)] * len(items)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abandonment:
    """Jobs, each with its error object, to be failed if they have been due for longer than `wait_s`."""

    wait_s: float
    errors: Mapping[str, Mapping[str, JSON]]


async def abandon(tx: Transaction, items: Sequence[Abandonment]) -> list[list[str]]:
    """Fail PENDING jobs that nobody has claimed for too long; the ids of those that have."""
    return [await _fail_pending(tx, _ABANDON, item.errors, before=later(tx.now, -item.wait_s)) for item in items]


async def _fail_pending(
    tx: Transaction, statement: Statement, errors: Mapping[str, Mapping[str, JSON]], **condition: str
) -> list[str]:
    if not errors:
        return []
    now = tx.now
    doomed = ((job_id, encode(error), error["type"], error["message"]) for job_id, error in errors.items())
    rows = await tx.fetch(statement, **condition, now=now, batch=batch(doomed))
    await _add_events(tx, ((job_id, n, "failed", now, {"error_type": errors[job_id]["type"]}) for job_id, n in rows))
    return [job_id for job_id, _ in rows]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Keep the leases of the (job id, fence) pairs that `owner` runs."""

    owner: str
    lease_s: float
    runs: Collection[tuple[str, int]]


async def renew(tx: Transaction, items: Sequence[Renewal]) -> list[dict[tuple[str, int], bool]]:
    """Prolong leases that have not ended; the runs still held, and of each whether somebody asked to cancel it.

    A run that is left out is prolonged by nobody: so a claim that its owner never heard of is taken back some day.
    """
    return [
        {
            (job_id, fence): cancel_requested_at is not None
            for job_id, fence, cancel_requested_at in await tx.fetch(
                _RENEW, by=item.owner, now=tx.now, until=later(tx.now, item.lease_s), batch=batch(item.runs)
            )
        }
        for item in items
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rescued:
    """A run that was taken back from a lost owner, and where its job is now: PENDING, FAILED or CANCELLED."""

    id: str
    fence: int
    plugin: str
    status: JobStatus


async def rescue(tx: Transaction, items: Sequence[None]) -> list[list[Rescued]]:
    """Take back what is RUNNING on a lease that has ended, whoever its owner is, at most `RESCUE_PAGE` jobs.

    A lost run uses no attempt but has its own cap; at the cap the job is FAILED with `WorkerLost`. A job that was being
    cancelled is CANCELLED.
    """
    return [await _take_back(tx, *_LAPSED, now=tx.now)] + [[] for _ in items[1:]]


async def recover(tx: Transaction, items: Sequence[str]) -> list[list[Rescued]]:
    """As `rescue`, but everything that another owner than `items[i]` left RUNNING, whatever its lease.

    Only when all others are known to be gone.
    """
    return [await _take_back(tx, *_FOREIGN, by=owner) for owner in items]


async def _take_back(tx: Transaction, look: Statement, change: Statement, **condition: str) -> list[Rescued]:
    now = tx.now
    lost = {row[0]: (_claimed_job(row), _lost_error(row)) for row in await tx.fetch(look, **condition)}
    if not lost:
        return []
    runs = ((job.id, job.fence, encode(error), error["message"]) for job, error in lost.values())
    moved = [
        (*lost[job_id], n, JobStatus(status))
        for job_id, n, status in await tx.fetch(change, **{**condition, "now": now}, batch=batch(runs))
    ]
    await tx.fetch(
        _END_ATTEMPTS,
        batch=batch(_lost_attempt_row(job, error, status, now) for job, error, _, status in moved),
    )
    await _add_events(tx, (_lost_event(job, n, status, now) for job, _, n, status in moved))
    return [Rescued(id=job.id, fence=job.fence, plugin=job.plugin, status=status) for job, _, _, status in moved]


def _lost_error(row: Sequence[Any]) -> Mapping[str, JSON]:
    times = row[8] + 1
    message = f"The service that ran this job was lost {times} times; it is not tried again."
    return error_object(ErrorType.WORKER_LOST, message, plugin=row[1], details={"lost": times})


def _lost_attempt_row(job: ClaimedJob, error: Mapping[str, JSON], status: JobStatus, now: Timestamp) -> tuple[Any, ...]:
    why = (error["type"], error["message"]) if status is JobStatus.FAILED else (None, None)
    nothing = (None,) * 5
    return (job.id, job.fence, "LOST", now, *nothing, *why, None, None, None)


def _lost_event(job: ClaimedJob, n: int, status: JobStatus, now: Timestamp) -> tuple[str, int, str, Timestamp, JSON]:
    data: dict[str, JSON] = {"attempt": job.attempt, "fence": job.fence}
    if status is JobStatus.FAILED:
        data["error_type"] = ErrorType.WORKER_LOST
    if status is JobStatus.CANCELLED:
        data["reason"] = _CANCEL_REASON
    return job.id, n, "lost" if status is JobStatus.PENDING else status.lower(), now, data


async def _add_events(tx: Transaction, events: Iterable[tuple[str, int, str, Timestamp, JSON]]) -> None:
    rows = [(job_id, n, kind, at, encode(data)) for job_id, n, kind, at, data in events]
    if rows:
        await tx.fetch(_INSERT_EVENTS, batch=batch(rows))
