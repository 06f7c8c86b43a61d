"""How many jobs wait, counted for the limits on them."""

from __future__ import annotations

from collections import Counter
from typing import Final

import sqlalchemy as sa

from service.db import api_keys
from service.db.reader import Reader
from service.db.schema import jobs
from service.db.statements import Statement
from service.queue_limits import Depth

# Spelled so, each half is the predicate of a partial index, and no job is read that does not wait.
_WAITING: Final = tuple(sa.text(f"jobs.status = 'PENDING' AND {due}") for due in ("jobs.due", "NOT jobs.due"))
_COUNT = Statement(sa.union_all(*(sa.select(sa.func.count()).select_from(jobs).where(half) for half in _WAITING)))
_COUNT_EACH = Statement(
    sa.union_all(
        *(
            sa.select(jobs.c.tenant, jobs.c.plugin, sa.func.count()).where(half).group_by(jobs.c.tenant, jobs.c.plugin)
            for half in _WAITING
        )
    )
)


async def load(reader: Reader, *, each: bool) -> Depth:
    """The jobs that wait now: in all, and of each tenant and plugin too if `each` or a tenant's quota asks for it."""
    quotas = {name: most for name, most in (await api_keys.quotas(reader)).items() if most is not None}
    if not each and not quotas:
        return Depth(total=sum(count for (count,) in await reader.fetch(_COUNT)))
    tenants: Counter[str] = Counter()
    plugins: Counter[str] = Counter()
    for tenant, plugin, count in await reader.fetch(_COUNT_EACH):
        tenants[tenant] += count
        plugins[plugin] += count
    return Depth(total=tenants.total(), tenants=tenants, plugins=plugins, quotas=quotas)
