"""Jobs taken out of the database, with their attempts, events, and the bytes that nobody else names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from service.db import blob_references, rollups
from service.db.blob_references import Freed
from service.db.schema import jobs, quoted
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction, apart
from service.models import TERMINAL, later

_doomed = batch_table("doomed", jobs.c.id)
# In one order everywhere: processes that delete the same jobs then wait for each other, never in a circle.
_FIND = Statement(
    sa.select(jobs.c.id)
    .where(
        jobs.c.id.in_(sa.select(_doomed.c.id)),
        jobs.c.tenant == sa.bindparam("of_tenant"),
        sa.text(f"jobs.status IN ({quoted(*TERMINAL)})"),
    )
    .order_by(jobs.c.id)
    .with_for_update()
)
_FIND_OVERDUE = Statement(
    sa.select(jobs.c.id)
    .where(jobs.c.id.in_(sa.select(_doomed.c.id)), jobs.c.finished_at < sa.bindparam("before"))
    .order_by(jobs.c.id)
    .with_for_update()
)
_DELETE = Statement(sa.delete(jobs).where(jobs.c.id.in_(sa.select(_doomed.c.id))))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Jobs of a tenant that are wanted no more."""

    tenant: str
    job_ids: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """Jobs that are to go, if they ended `kept_s` seconds ago by the database's clock."""

    job_ids: Sequence[str]
    kept_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Which jobs went, and the bytes that went with them."""

    job_ids: frozenset[str]
    freed: Freed


@apart
async def delete(tx: Transaction, items: Sequence[Removal]) -> list[set[str]]:
    """Delete those of the jobs that have ended, once the rollups have counted them; their ids."""
    return [await _delete(tx, item) for item in items]


async def _delete(tx: Transaction, item: Removal) -> set[str]:
    wanted = batch((job_id,) for job_id in item.job_ids)
    found = [job_id for (job_id,) in await tx.fetch(_FIND, of_tenant=item.tenant, batch=wanted)]
    await _remove(tx, found)
    return set(found)


@apart
async def prune(tx: Transaction, items: Sequence[Overdue]) -> list[Pruned]:
    """Delete those of the jobs, of whatever tenant, that ended so long ago, as `delete` does."""
    return [await _prune(tx, item) for item in items]


async def _prune(tx: Transaction, item: Overdue) -> Pruned:
    wanted = batch((job_id,) for job_id in item.job_ids)
    before = later(await tx.now(), -item.kept_s)
    found = [job_id for (job_id,) in await tx.fetch(_FIND_OVERDUE, before=before, batch=wanted)]
    return Pruned(job_ids=frozenset(found), freed=await _remove(tx, found))


async def _remove(tx: Transaction, job_ids: Sequence[str]) -> Freed:
    if not job_ids:
        return Freed()
    await rollups.forget(tx, job_ids)
    freed = await blob_references.release_jobs(tx, job_ids)
    await tx.fetch(_DELETE, batch=batch((job_id,) for job_id in job_ids))
    return freed
