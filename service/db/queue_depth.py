"""How many jobs wait: in all, for the limits on them, and before a given one."""

from __future__ import annotations

from collections import Counter
from typing import Final

import sqlalchemy as sa

from service.db import api_keys
from service.db.reader import Reader
from service.db.schema import jobs
from service.db.statements import Statement, literal
from service.queue_limits import Depth

# Spelled so, each half is the predicate of a partial index, and no job is read that does not wait.
_DUE: Final = sa.text("jobs.status = 'PENDING' AND jobs.due")
_SCHEDULED: Final = sa.text("jobs.status = 'PENDING' AND NOT jobs.due")
_COUNT = Statement(
    sa.union_all(
        *(
            sa.select(literal(state), sa.func.count()).select_from(jobs).where(half)
            for state, half in (("due", _DUE), ("scheduled", _SCHEDULED))
        )
    )
)
# An expression, because SQLite would rather read all jobs by an index on the columns themselves than sort those few.
_tenant: Final = jobs.c.tenant.concat(literal(""))
_COUNT_EACH = Statement(
    sa.union_all(
        *(
            sa.select(_tenant, jobs.c.plugin, sa.func.count()).where(half).group_by(_tenant, jobs.c.plugin)
            for half in (_DUE, _SCHEDULED)
        )
    )
)
#: So many are counted before a job; further back nobody knows its place.
MOST_AHEAD: Final = 10_000

_this: Final = jobs.alias("this")
_ahead: Final = (
    sa.select(sa.text("1"))
    .select_from(jobs)
    .where(_DUE, sa.tuple_(jobs.c.rank, jobs.c.id) < sa.tuple_(_this.c.rank, _this.c.id))
    .limit(sa.bindparam("most"))
    .correlate(_this)
    .subquery("ahead")
)
_COUNT_AHEAD = Statement(
    sa.select(sa.select(sa.func.count()).select_from(_ahead).scalar_subquery())
    .select_from(_this)
    .where(_this.c.id == sa.bindparam("job_id"), sa.text("this.status = 'PENDING' AND this.due"))
)


async def count_ahead(reader: Reader, job_id: str) -> int | None:
    """How many jobs start before this one; None if it does not wait to be started, or behind more than `MOST_AHEAD`."""
    row = await reader.fetch_one(_COUNT_AHEAD, job_id=job_id, most=MOST_AHEAD + 1)
    return None if row is None or row[0] > MOST_AHEAD else row[0]


async def count(reader: Reader) -> dict[str, int]:
    """The jobs that wait now: those that are `due`, and those that are `scheduled` for later."""
    return dict(await reader.fetch(_COUNT))


async def load(reader: Reader, *, each: bool) -> Depth:
    """The jobs that wait now: in all, and of each tenant and plugin too if `each` or a tenant's quota asks for it."""
    quotas = {name: most for name, most in (await api_keys.quotas(reader)).items() if most is not None}
    if not each and not quotas:
        return Depth(total=sum((await count(reader)).values()))
    tenants: Counter[str] = Counter()
    plugins: Counter[str] = Counter()
    for tenant, plugin, waiting in await reader.fetch(_COUNT_EACH):
        tenants[tenant] += waiting
        plugins[plugin] += waiting
    return Depth(total=tenants.total(), tenants=tenants, plugins=plugins, quotas=quotas)
