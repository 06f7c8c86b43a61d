"""Leases: prolonged for who holds a job, and jobs taken back from who has lost it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.codec import encode
from service.db.job_attempts import end_attempts
from service.db.job_claims import CLAIMED, claimed_job
from service.db.job_endings import CANCEL_REASON
from service.db.job_events import COUNT_EVENT, add_events
from service.db.schema import jobs
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.errors import error_object
from service.models import JSON, ClaimedJob, ErrorType, JobStatus, Timestamp, later

#: So many jobs are taken back in one transaction, the longest lost first.
RESCUE_PAGE: Final = 500

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
    look = sa.select(*CLAIMED[:8], jobs.c.lost).where(running, is_lost).order_by(jobs.c.lease_until).limit(RESCUE_PAGE)
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
                jobs.c.cancel_reason: sa.case((_asked_to_cancel, literal(CANCEL_REASON)), else_=sa.null()),
                **COUNT_EVENT,
            }
        )
        .returning(jobs.c.id, jobs.c.event_count, jobs.c.status)
    )
    return Statement(look), Statement(change)


_LAPSED = _taking_back(jobs.c.lease_until < sa.bindparam("now"))
_FOREIGN = _taking_back(jobs.c.owner != sa.bindparam("by"))


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
    now = await tx.now()
    return [
        {
            (job_id, fence): cancel_requested_at is not None
            for job_id, fence, cancel_requested_at in await tx.fetch(
                _RENEW, by=item.owner, now=now, until=later(now, item.lease_s), batch=batch(item.runs)
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
    return [await _take_back(tx, *_LAPSED, now=await tx.now())] + [[] for _ in items[1:]]


async def recover(tx: Transaction, items: Sequence[str]) -> list[list[Rescued]]:
    """As `rescue`, but everything that another owner than `items[i]` left RUNNING, whatever its lease.

    Only when all others are known to be gone.
    """
    return [await _take_back(tx, *_FOREIGN, by=owner) for owner in items]


async def _take_back(tx: Transaction, look: Statement, change: Statement, **condition: str) -> list[Rescued]:
    now = await tx.now()
    lost = {row[0]: (claimed_job(row), _lost_error(row)) for row in await tx.fetch(look, **condition)}
    if not lost:
        return []
    runs = ((job.id, job.fence, encode(error), error["message"]) for job, error in lost.values())
    moved = [
        (*lost[job_id], n, JobStatus(status))
        for job_id, n, status in await tx.fetch(change, **{**condition, "now": now}, batch=batch(runs))
    ]
    await end_attempts(tx, (_lost_attempt_row(job, error, status, now) for job, error, _, status in moved))
    await add_events(tx, (_lost_event(job, n, status, now) for job, _, n, status in moved))
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
        data["reason"] = CANCEL_REASON
    return job.id, n, "lost" if status is JobStatus.PENDING else status.lower(), now, data
