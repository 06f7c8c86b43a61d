"""Jobs taken out of the database, with their attempts and events. Their bytes stay: other jobs may name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from service.db.schema import jobs, quoted
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.models import TERMINAL

_doomed = batch_table("doomed", jobs.c.id)
_DELETE = Statement(
    sa.delete(jobs)
    .where(
        jobs.c.id.in_(sa.select(_doomed.c.id)),
        jobs.c.tenant == sa.bindparam("of_tenant"),
        sa.text(f"jobs.status IN ({quoted(*TERMINAL)})"),
    )
    .returning(jobs.c.id)
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Jobs of a tenant that are wanted no more."""

    tenant: str
    job_ids: Sequence[str]


async def delete(tx: Transaction, items: Sequence[Removal]) -> list[set[str]]:
    """Delete those of the jobs that have ended; their ids."""
    deleted = []
    for item in items:
        rows = await tx.fetch(_DELETE, of_tenant=item.tenant, batch=batch((job_id,) for job_id in item.job_ids))
        deleted.append({job_id for (job_id,) in rows})
    return deleted
