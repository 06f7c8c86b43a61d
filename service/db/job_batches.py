"""Reads of batches: jobs that were submitted together. A batch is its jobs; there is no row of its own."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from service.codec import decode
from service.db.reader import Reader
from service.db.schema import jobs, quoted
from service.db.statements import Statement
from service.models import ACTIVE, BatchState, JobOutcome, JobStatus

#: Of one page of outcomes: jobs, and about how many bytes of their results.
PAGE: Final = 200
PAGE_BYTES: Final = 1_000_000

_OF_BATCH: Final = (jobs.c.batch_id == sa.bindparam("of_batch"), jobs.c.tenant == sa.bindparam("of_tenant"))
_COUNT = Statement(
    sa.select(jobs.c.status, sa.func.count(), sa.func.min(jobs.c.created_at), sa.func.max(jobs.c.finished_at))
    .where(*_OF_BATCH)
    .group_by(jobs.c.status)
)
_SELECT_NEWEST_ACTIVE = Statement(
    sa.select(jobs.c.id)
    .where(*_OF_BATCH, sa.text(f"jobs.status IN ({quoted(*ACTIVE)})"))
    .order_by(jobs.c.id.desc())
    .limit(1)
)
_SIZE: Final = sa.func.coalesce(sa.func.length(sa.cast(jobs.c.result, sa.Text)), sa.text("0"))
_page = (
    sa.select(
        jobs.c.id, jobs.c.plugin, jobs.c.status, jobs.c.result, jobs.c.error,
        (sa.func.sum(_SIZE).over(order_by=jobs.c.id) - _SIZE).label("before"),
    )
    .where(*_OF_BATCH, jobs.c.id > sa.bindparam("after"))
    .order_by(jobs.c.id)
    .limit(PAGE)
    .subquery("page")
)  # fmt: skip
_SELECT_OUTCOMES = Statement(
    sa.select(_page.c.id, _page.c.plugin, _page.c.status, _page.c.result, _page.c.error)
    .where(_page.c.before <= sa.text(str(PAGE_BYTES)))
    .order_by(_page.c.id)
)


async def get(reader: Reader, batch_id: str, tenant: str) -> BatchState | None:
    """How far the tenant's batch is, or None."""
    rows = await reader.fetch(_COUNT, of_batch=batch_id, of_tenant=tenant)
    if not rows:
        return None
    counts = {JobStatus(status): count for status, count, _, _ in rows}
    has_ended = ACTIVE.isdisjoint(counts)
    return BatchState(
        id=batch_id,
        counts={status: counts.get(status, 0) for status in JobStatus},
        created_at=min(created_at for _, _, created_at, _ in rows),
        finished_at=max(finished_at for *_, finished_at in rows) if has_ended else None,
    )


async def newest_active(reader: Reader, batch_id: str, tenant: str) -> str | None:
    """The job of the batch that was submitted last of those which have not ended."""
    row = await reader.fetch_one(_SELECT_NEWEST_ACTIVE, of_batch=batch_id, of_tenant=tenant)
    return row and row[0]


async def list_outcomes(reader: Reader, batch_id: str, tenant: str, after: str) -> list[JobOutcome]:
    """The outcomes of the next jobs behind the id `after`, in the order of ids; empty at the end."""
    rows = await reader.fetch(_SELECT_OUTCOMES, of_batch=batch_id, of_tenant=tenant, after=after)
    return [
        JobOutcome(
            id=job_id,
            plugin=plugin,
            status=JobStatus(status),
            result=None if result is None else decode(result),
            error=None if error is None else decode(error),
        )
        for job_id, plugin, status, result, error in rows
    ]
