"""Jobs taken out of the database, with their attempts and events. Their bytes stay: other jobs may name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from service.db import rollups
from service.db.schema import jobs, quoted
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.models import TERMINAL

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
_DELETE = Statement(sa.delete(jobs).where(jobs.c.id.in_(sa.select(_doomed.c.id))))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Jobs of a tenant that are wanted no more."""

    tenant: str
    job_ids: Sequence[str]


async def delete(tx: Transaction, items: Sequence[Removal]) -> list[set[str]]:
    """Delete those of the jobs that have ended, once the rollups have counted them; their ids."""
    return [await _delete(tx, item) for item in items]


async def _delete(tx: Transaction, item: Removal) -> set[str]:
    wanted = batch((job_id,) for job_id in item.job_ids)
    found = [job_id for (job_id,) in await tx.fetch(_FIND, of_tenant=item.tenant, batch=wanted)]
    if found:
        await rollups.forget(tx, found)
        await tx.fetch(_DELETE, batch=batch((job_id,) for job_id in found))
    return set(found)
