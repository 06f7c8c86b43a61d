"""One row per start of a service process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from service.db.schema import instances
from service.db.statements import Statement
from service.db.transaction import Transaction
from service.models import Timestamp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A process of the service; `id` is random at each start, never a host name or pid."""

    id: str
    version: str
    host: str
    pid: int
    started_at: Timestamp


_COLUMNS = ("id", "version", "host", "pid", "started_at", "beat_at")
_INSERT = Statement(sa.insert(instances).values({name: sa.bindparam(name) for name in _COLUMNS}))
_BEAT = Statement(sa.update(instances).where(instances.c.id == sa.bindparam("of")).values(beat_at=sa.bindparam("now")))
_STOP = Statement(
    sa.update(instances).where(instances.c.id == sa.bindparam("of")).values(stopped_at=sa.bindparam("now"))
)


async def register(tx: Transaction, items: Sequence[Instance]) -> list[None]:
    """Record that instances have started."""
    await tx.execute_many(
        _INSERT, [(item.id, item.version, item.host, item.pid, item.started_at, item.started_at) for item in items]
    )
    return [None] * len(items)


async def beat(tx: Transaction, items: Sequence[str]) -> list[None]:
    """Record that instances are alive."""
    for instance_id in items:
        await tx.fetch(_BEAT, of=instance_id, now=await tx.now())
    return [None] * len(items)


async def stop(tx: Transaction, items: Sequence[str]) -> list[None]:
    """Record that instances have stopped in order."""
    for instance_id in items:
        await tx.fetch(_STOP, of=instance_id, now=await tx.now())
    return [None] * len(items)
