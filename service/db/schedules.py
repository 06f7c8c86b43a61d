"""Schedules: operations for `Writer.write` on their rows, and every read of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service import ticks
from service.codec import decode, encode
from service.db import blob_references
from service.db.blobs import NewBlob
from service.db.reader import Reader
from service.db.schema import schedules
from service.db.statements import Statement
from service.db.transaction import Transaction, apart
from service.errors import ScheduleExistsError, ScheduleNotFoundError, ServiceError, TooManySchedulesError
from service.models import Timestamp
from service.schedule_models import Misfire, ScheduleOptions, ScheduleRecord, Timing

#: So many a tenant may have.
MOST_OF_TENANT: Final = 1_000

SUMMARY: Final = (
    schedules.c.id, schedules.c.tenant, schedules.c.name, schedules.c.plugin, schedules.c.cron, schedules.c.every_s,
    schedules.c.timezone, schedules.c.misfire, schedules.c.starts_at, schedules.c.ends_at, schedules.c.options,
    schedules.c.max_attempts, schedules.c.paused, schedules.c.next_at, schedules.c.last_at, schedules.c.last_job_id,
    schedules.c.created_at,
)  # fmt: skip
WHOLE: Final = (*SUMMARY, schedules.c.payload)
_DEFINED: Final = (
    "name", "plugin", "cron", "every_s", "timezone", "misfire", "starts_at", "ends_at", "options", "max_attempts",
    "next_at", "payload",
)  # fmt: skip

_is_this: Final = (schedules.c.id == sa.bindparam("of_id")) & (schedules.c.tenant == sa.bindparam("of_tenant"))
_INSERT = Statement(
    postgresql.insert(schedules)
    .values({name: sa.bindparam(name) for name in ("id", "tenant", "paused", "created_at", *_DEFINED)})
    .on_conflict_do_nothing(index_elements=["tenant", "name"])
    .returning(*WHOLE)
)
_REPLACE = Statement(
    sa.update(schedules).where(_is_this).values({name: sa.bindparam(name) for name in _DEFINED}).returning(*WHOLE)
)
_SET_PAUSED = Statement(
    sa.update(schedules)
    .where(_is_this)
    .values(paused=sa.bindparam("paused"), next_at=sa.bindparam("next_at"))
    .returning(*WHOLE)
)
_DELETE = Statement(sa.delete(schedules).where(_is_this))
_SELECT = sa.select(*WHOLE).where(_is_this)
_GET = Statement(_SELECT)
_LOCK = Statement(_SELECT.with_for_update())
_LIST = Statement(sa.select(*SUMMARY).where(schedules.c.tenant == sa.bindparam("of_tenant")).order_by(schedules.c.name))
_COUNT = Statement(
    sa.select(sa.func.count()).select_from(schedules).where(schedules.c.tenant == sa.bindparam("of_tenant"))
)
_NAMESAKE = Statement(
    sa.select(schedules.c.id).where(
        schedules.c.tenant == sa.bindparam("of_tenant"),
        schedules.c.name == sa.bindparam("of_name"),
        schedules.c.id != sa.bindparam("of_id"),
    )
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """What a schedule is to be, new or instead of what it was; its payload is a stored document."""

    id: str
    tenant: str
    name: str
    plugin: str
    timing: Timing
    options: ScheduleOptions
    max_attempts: int
    payload: str
    blobs: Sequence[NewBlob]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleKey:
    """Which schedule is meant; another tenant's is none."""

    id: str
    tenant: str


async def insert(tx: Transaction, items: Sequence[NewSchedule]) -> list[ScheduleRecord | ServiceError]:
    """Record schedules, or say why not: `ScheduleExistsError`, `TooManySchedulesError`."""
    return [await _insert(tx, item) for item in items]


async def _insert(tx: Transaction, item: NewSchedule) -> ScheduleRecord | ServiceError:
    now = await tx.now()
    ((count,),) = await tx.fetch(_COUNT, of_tenant=item.tenant)
    if count >= MOST_OF_TENANT:
        return TooManySchedulesError(MOST_OF_TENANT)
    next_at = ticks.after(item.timing, now, now)
    rows = await tx.fetch(
        _INSERT, id=item.id, tenant=item.tenant, paused=False, created_at=now, **_defined(item), next_at=next_at
    )
    if not rows:
        return ScheduleExistsError(item.name)
    await blob_references.of_schedule(tx, item.id, item.blobs)
    return record(rows[0])


@apart
async def replace(tx: Transaction, items: Sequence[NewSchedule]) -> list[ScheduleRecord | ServiceError]:
    """Make schedules be what `items` say, or say why not: `ScheduleNotFoundError`, `ScheduleExistsError`.

    What they were paused or anchored at stays; ticks that were missed are forgotten.
    """
    return [await _replace(tx, item) for item in items]


async def _replace(tx: Transaction, item: NewSchedule) -> ScheduleRecord | ServiceError:
    found = await tx.fetch(_LOCK, of_id=item.id, of_tenant=item.tenant)
    if not found:
        return ScheduleNotFoundError(item.id)
    if await tx.fetch(_NAMESAKE, of_id=item.id, of_tenant=item.tenant, of_name=item.name):
        return ScheduleExistsError(item.name)
    before = record(found[0])
    next_at = None if before.paused else _next(dataclasses.replace(before, timing=item.timing), await tx.now())
    (row,) = await tx.fetch(_REPLACE, of_id=item.id, of_tenant=item.tenant, **_defined(item), next_at=next_at)
    released = await blob_references.release_schedule(tx, item.id)
    await blob_references.of_schedule(tx, item.id, item.blobs)
    await blob_references.free(tx, released)
    return record(row)


async def pause(tx: Transaction, items: Sequence[ScheduleKey]) -> list[ScheduleRecord | None]:
    """Let schedules tick no more; None for an unknown one."""
    return [await _set_paused(tx, item, paused=True) for item in items]


async def resume(tx: Transaction, items: Sequence[ScheduleKey]) -> list[ScheduleRecord | None]:
    """Let schedules tick again from now on; None for an unknown one."""
    return [await _set_paused(tx, item, paused=False) for item in items]


async def _set_paused(tx: Transaction, item: ScheduleKey, *, paused: bool) -> ScheduleRecord | None:
    found = await tx.fetch(_LOCK, of_id=item.id, of_tenant=item.tenant)
    if not found:
        return None
    before = record(found[0])
    if before.paused is paused:
        return before  # one that runs may have a tick to make up
    next_at = None if paused else _next(before, await tx.now())
    (row,) = await tx.fetch(_SET_PAUSED, of_id=item.id, of_tenant=item.tenant, paused=paused, next_at=next_at)
    return record(row)


@apart
async def delete(tx: Transaction, items: Sequence[ScheduleKey]) -> list[bool]:
    """Forget schedules; their jobs stay. False for an unknown one."""
    return [await _delete(tx, item) for item in items]


async def _delete(tx: Transaction, item: ScheduleKey) -> bool:
    if not await tx.fetch(_LOCK, of_id=item.id, of_tenant=item.tenant):
        return False
    await blob_references.free(tx, await blob_references.release_schedule(tx, item.id))
    await tx.fetch(_DELETE, of_id=item.id, of_tenant=item.tenant)
    return True


async def get(reader: Reader, key: ScheduleKey) -> ScheduleRecord | None:
    """The whole record, or None."""
    row = await reader.fetch_one(_GET, of_id=key.id, of_tenant=key.tenant)
    return None if row is None else record(row)


async def list_all(reader: Reader, tenant: str) -> list[ScheduleRecord]:
    """The tenant's schedules by name, without payloads."""
    return [record(row) for row in await reader.fetch(_LIST, of_tenant=tenant)]


def _next(schedule: ScheduleRecord, now: Timestamp) -> Timestamp | None:
    # A clock that was put back does not bring back a tick that made its job.
    return ticks.after(schedule.timing, schedule.created_at, max(now, schedule.last_at or now))


def _defined(item: NewSchedule) -> dict[str, Any]:
    timing = item.timing
    return {
        "name": item.name,
        "plugin": item.plugin,
        "cron": timing.cron,
        "every_s": timing.every_s,
        "timezone": timing.timezone,
        "misfire": timing.misfire,
        "starts_at": timing.starts_at,
        "ends_at": timing.ends_at,
        "options": encode(dataclasses.asdict(item.options)),
        "max_attempts": item.max_attempts,
        "payload": item.payload,
    }


def record(row: Sequence[Any]) -> ScheduleRecord:
    """The record in a row that begins with `SUMMARY`, and may go on with the payload (see `WHOLE`)."""
    (
        schedule_id, tenant, name, plugin, cron, every_s, timezone, misfire, starts_at, ends_at, options, max_attempts,
        paused, next_at, last_at, last_job_id, created_at,
    ) = row[: len(SUMMARY)]  # fmt: skip
    given = decode(options)
    return ScheduleRecord(
        id=schedule_id,
        tenant=tenant,
        name=name,
        plugin=plugin,
        payload=decode(row[len(SUMMARY)]) if len(row) > len(SUMMARY) else None,
        timing=Timing(
            cron=cron,
            every_s=every_s,
            timezone=timezone,
            misfire=Misfire(misfire),
            starts_at=starts_at,
            ends_at=ends_at,
        ),
        options=ScheduleOptions(**{**given, "tags": tuple(given["tags"])}),
        max_attempts=max_attempts,
        paused=bool(paused),
        next_at=next_at,
        last_at=last_at,
        last_job_id=last_job_id,
        created_at=created_at,
    )
