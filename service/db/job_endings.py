"""How executions end: the outcome of a runner, written only while it still holds the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.calls import CallReport
from service.codec import encode, storable_text
from service.db import blob_references, job_queries
from service.db.blobs import NewBlob
from service.db.job_attempts import end_attempts
from service.db.job_events import COUNT_EVENT, add_events
from service.db.plugin_metrics import Execution, record_executions
from service.db.schema import Time, job_attempts, jobs
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import JSON, ClaimedJob, ErrorType, JobPart, JobRecord, JobStatus, StoredArtifact, Timestamp, later

CANCEL_REASON: Final = "requested while running"


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
    is_awaited: bool = False  # somebody waits for the record of its end
    is_again: bool = False  # it was written before, and nobody knows whether that was committed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Where a job is now, with its record where that is awaited and small."""

    status: JobStatus
    record: JobRecord | None


_ending = batch_table(
    "ending", jobs.c.id, jobs.c.fence, jobs.c.owner, jobs.c.status, sa.column("at", Time), jobs.c.result, jobs.c.error,
    jobs.c.error_type, jobs.c.error_message, jobs.c.cancel_reason, jobs.c.artifacts, jobs.c.plugin_version,
    sa.column("used", sa.Integer), jobs.c.run_at,
)  # fmt: skip
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
            jobs.c.cancel_reason: sa.case((_cancelled_instead, literal(CANCEL_REASON)), else_=_ending.c.cancel_reason),
            jobs.c.artifacts: _ending.c.artifacts,
            jobs.c.plugin_version: sa.func.coalesce(_ending.c.plugin_version, jobs.c.plugin_version),
            **COUNT_EVENT,
        }
    )
    .returning(jobs.c.id, jobs.c.fence, jobs.c.event_count, jobs.c.status)
)
_run_of = batch_table("run_of", job_attempts.c.job_id, job_attempts.c.fence, job_attempts.c.owner)
# What took a job back from its owner says LOST of the attempt; anything else is the owner's own word.
_ENDED_BEFORE = Statement(
    sa.select(
        job_attempts.c.job_id,
        job_attempts.c.fence,
        # The job may have gone on since.
        sa.case((jobs.c.finished_at == job_attempts.c.finished_at, jobs.c.status), else_=literal("PENDING")),
    )
    .join_from(
        _run_of,
        job_attempts,
        (job_attempts.c.job_id == _run_of.c.job_id)
        & (job_attempts.c.fence == _run_of.c.fence)
        & (job_attempts.c.owner == _run_of.c.owner),
    )
    .join(jobs, jobs.c.id == job_attempts.c.job_id)
    .where(job_attempts.c.outcome != literal("LOST"))
)


async def end(tx: Transaction, items: Sequence[Ending]) -> list[Ended | None]:
    """Write how executions ended; where each job is now, None where the fence no longer holds and nothing has changed.

    A job that somebody asked to cancel meanwhile is CANCELLED where it would have been PENDING again. What `is_again`
    and was written the first time changes nothing more; it is told where that has left the job.
    """
    now = await tx.now()
    rows = await tx.fetch(_END, batch=batch(_ending_row(item, now) for item in items))
    # By fence too: a stale end of a job may stand in one batch with the live one.
    moved = {(job_id, fence): (n, JobStatus(status)) for job_id, fence, n, status in rows}
    held = [(item, *moved[_run(item)]) for item in items if _run(item) in moved]
    if held:
        await blob_references.of_jobs(tx, ((item.job.id, JobPart.RESULT, item.blobs) for item, *_ in held))
        await end_attempts(tx, (_attempt_end_row(item, now, status) for item, _, status in held))
        await add_events(tx, (_ending_event(item, now, n, status) for item, n, status in held))
        await record_executions(tx, _executions((item for item, _, _ in held), now))
    statuses = {run: status for run, (_, status) in moved.items()}
    if again := [item for item in items if item.is_again and _run(item) not in moved]:
        statuses |= await _ended_before(tx, again)
    records = await job_queries.get_small(
        tx, {item.job.id for item in items if item.is_awaited and _run(item) in statuses}
    )
    return [
        Ended(status=statuses[_run(item)], record=records.get(item.job.id)) if _run(item) in statuses else None
        for item in items
    ]


async def _ended_before(tx: Transaction, items: Sequence[Ending]) -> dict[tuple[str, int], JobStatus]:
    runs = batch((*_run(item), item.owner) for item in items)
    return {(job_id, fence): JobStatus(status) for job_id, fence, status in await tx.fetch(_ENDED_BEFORE, batch=runs)}


def _run(item: Ending) -> tuple[str, int]:
    return item.job.id, item.job.fence


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
        data["reason"] = item.cancel_reason or CANCEL_REASON
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
