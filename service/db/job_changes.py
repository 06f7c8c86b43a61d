"""What happens to jobs beside their executions: progress, cancellation, and what time does to waiting jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.codec import encode
from service.db.job_events import COUNT_EVENT, add_events
from service.db.schema import jobs
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction, early
from service.errors import error_object
from service.models import JSON, ClaimedJob, ErrorType, JobStatus, Progress, later


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


#: So many jobs at most are failed in one transaction because their time has passed.
EXPIRE_PAGE: Final = 500
#: So many at most become due in one: a few hundredths of a second in which nothing else is written.
PROMOTE_PAGE: Final = 2_000

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
            **COUNT_EVENT,
        }
    )
    .returning(jobs.c.event_count)
)

_was_pending: Final = jobs.c.status == literal("PENDING")
_asked = batch_table("asked", jobs.c.id, sa.column("reason", sa.Text))
_CANCEL = Statement(
    sa.update(jobs)
    .where(
        jobs.c.id == _asked.c.id,
        sa.text("jobs.status IN ('PENDING', 'RUNNING')"),
        jobs.c.cancel_requested_at.is_(None) | _was_pending,
    )
    .values(
        {
            jobs.c.status: sa.case((_was_pending, literal("CANCELLED")), else_=jobs.c.status),
            jobs.c.cancel_requested_at: sa.bindparam("now"),
            jobs.c.cancel_reason: sa.case((_was_pending, _asked.c.reason), else_=sa.null()),
            jobs.c.finished_at: sa.case((_was_pending, sa.bindparam("now")), else_=sa.null()),
            **COUNT_EVENT,
        }
    )
    .returning(jobs.c.id, jobs.c.status, jobs.c.event_count)
)

_SCHEDULED: Final = sa.text("jobs.status = 'PENDING' AND NOT jobs.due")
# What another process just makes due is passed by. Materialized, or PostgreSQL may run it again for each row.
_next_due: Final = (
    sa.select(jobs.c.id)
    .where(_SCHEDULED, jobs.c.run_at <= sa.bindparam("now"))
    .order_by(jobs.c.run_at)
    .limit(PROMOTE_PAGE)
    .with_for_update(skip_locked=True)
    .cte("next_due")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_PROMOTE = Statement(
    sa.update(jobs).where(jobs.c.id.in_(sa.select(_next_due.c.id))).values(due=sa.true()).returning(jobs.c.id)
)
_OVERDUE = Statement(
    sa.select(jobs.c.id, jobs.c.plugin, jobs.c.expires_at)
    .where(sa.text("jobs.status = 'PENDING' AND jobs.expires_at IS NOT NULL"), jobs.c.expires_at < sa.bindparam("now"))
    .limit(EXPIRE_PAGE)
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
                **COUNT_EVENT,
            }
        )
        .returning(jobs.c.id, jobs.c.event_count)
    )


_EXPIRE = _failing(jobs.c.expires_at < sa.bindparam("now"))
_ABANDON = _failing(jobs.c.run_at < sa.bindparam("before"))


@early
async def make_progress(tx: Transaction, items: Sequence[ProgressMade]) -> list[bool]:
    """Show progress on rows that are still held; False where the fence no longer holds."""
    now = await tx.now()
    newest = {(item.job.id, item.job.fence): item for item in items}
    events, held = [], set()
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
        held |= {(item.job.id, item.job.fence) for _ in rows}
    await add_events(tx, events)
    return [(item.job.id, item.job.fence) in held for item in items]


async def request_cancel(tx: Transaction, items: Sequence[CancelRequest]) -> list[JobStatus | None]:
    """Cancel what is PENDING at once and mark what is RUNNING to be stopped.

    What each has become, CANCELLED or RUNNING; None where nothing was left to ask.
    """
    now = await tx.now()
    reasons = {item.job_id: item.reason for item in reversed(items)}
    rows = await tx.fetch(_CANCEL, now=now, batch=batch(reasons.items()))
    changed = {job_id: JobStatus(status) for job_id, status, _ in rows}
    await add_events(
        tx,
        (
            (
                job_id,
                n,
                "cancelled" if changed[job_id] is JobStatus.CANCELLED else "cancel_requested",
                now,
                {"reason": reasons[job_id]},
            )
            for job_id, _, n in rows
        ),
    )
    return [changed.pop(item.job_id, None) for item in items]


async def request_cancels(tx: Transaction, items: Sequence[Sequence[CancelRequest]]) -> list[list[JobStatus | None]]:
    """As `request_cancel`, for several jobs in one transaction."""
    return [await request_cancel(tx, item) for item in items]


async def promote(tx: Transaction, items: Sequence[None]) -> list[int]:
    """Make scheduled jobs claimable whose time has come, at most `PROMOTE_PAGE`, the longest due first; how many."""
    return [len(await tx.fetch(_PROMOTE, now=await tx.now()))] * len(items)


async def expire(tx: Transaction, items: Sequence[None]) -> list[dict[str, str]]:
    """Fail PENDING jobs whose time to start has passed, at most `EXPIRE_PAGE`; their plugins by id, told to one."""
    errors: dict[str, Any] = {
        job_id: error_object(ErrorType.EXPIRED, f"The job did not start before {expires_at}.", plugin=plugin)
        for job_id, plugin, expires_at in await tx.fetch(_OVERDUE, now=await tx.now())
    }
    expired = {job_id: errors[job_id]["plugin"] for job_id in await _fail_pending(tx, _EXPIRE, errors)}
    return [expired, *({} for _ in items[1:])]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abandonment:
    """Jobs, each with its error object, to be failed if they have been due for longer than `wait_s`."""

    wait_s: float
    errors: Mapping[str, Mapping[str, JSON]]


async def abandon(tx: Transaction, items: Sequence[Abandonment]) -> list[list[str]]:
    """Fail PENDING jobs that nobody has claimed for too long; the ids of those that have."""
    now = await tx.now()
    return [await _fail_pending(tx, _ABANDON, item.errors, before=later(now, -item.wait_s)) for item in items]


async def _fail_pending(
    tx: Transaction, statement: Statement, errors: Mapping[str, Mapping[str, JSON]], **condition: str
) -> list[str]:
    if not errors:
        return []
    now = await tx.now()
    doomed = ((job_id, encode(error), error["type"], error["message"]) for job_id, error in errors.items())
    rows = await tx.fetch(statement, **condition, now=now, batch=batch(doomed))
    await add_events(tx, ((job_id, n, "failed", now, {"error_type": errors[job_id]["type"]}) for job_id, n in rows))
    return [job_id for job_id, _ in rows]
