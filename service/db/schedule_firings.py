"""Firings: a tick moves its schedule on and makes its job in one transaction, so in one process only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from uuid_utils import uuid7

from service import ticks
from service.db import blob_references, job_inserts
from service.db.blob_references import mentions_bytes
from service.db.job_inserts import NewJob
from service.db.schedules import SUMMARY, WHOLE, ScheduleKey, record
from service.db.schema import Id, Time, schedules
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.models import Timestamp
from service.schedule_models import ScheduleRecord

#: So many schedules are looked at at once.
PAGE: Final = 200

_soonest: Final = (
    sa.select(*SUMMARY)
    .where(sa.text("schedules.next_at IS NOT NULL"))  # the predicate of the index
    .order_by(schedules.c.next_at, schedules.c.id)
    .limit(PAGE)
)
_SOONEST = Statement(_soonest)
_SOONEST_AFTER = Statement(
    _soonest.where(
        sa.tuple_(schedules.c.next_at, schedules.c.id)
        > sa.tuple_(sa.bindparam("next_at", type_=Time), sa.bindparam("id", type_=Id))
    )
)
_wanted: Final = batch_table("wanted", schedules.c.id)
# Whoever comes second passes by: a firing never waits for another process, nor holds it up.
_LOCK_DUE = Statement(
    sa.select(*WHOLE)
    .where(schedules.c.id.in_(sa.select(_wanted.c.id)), schedules.c.next_at <= sa.bindparam("now"))
    .order_by(schedules.c.id)
    .with_for_update(skip_locked=True)
)
_moved: Final = batch_table(
    "moved", schedules.c.id, sa.column("from_at", Time), sa.column("to_at", Time), schedules.c.last_at,
    schedules.c.last_job_id,
)  # fmt: skip
_MOVE_ON = Statement(
    sa.update(schedules)
    .where(schedules.c.id == _moved.c.id, schedules.c.next_at == _moved.c.from_at)
    .values(
        {
            schedules.c.next_at: _moved.c.to_at,
            schedules.c.last_at: sa.func.coalesce(_moved.c.last_at, schedules.c.last_at),
            schedules.c.last_job_id: sa.func.coalesce(_moved.c.last_job_id, schedules.c.last_job_id),
        }
    )
    .returning(schedules.c.id)
)
_LOCK_THAT_ONE = Statement(
    sa.select(*WHOLE)
    .where(schedules.c.id == sa.bindparam("of_id"), schedules.c.tenant == sa.bindparam("of_tenant"))
    .with_for_update()
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is due by the database's clock `now`, the seconds until the next tick that is not, and where to look on.

    None where there is no such tick, or nothing behind.
    """

    now: Timestamp
    due: Sequence[ScheduleRecord]
    wait_s: float | None
    behind: tuple[Timestamp, str] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """Make the jobs of what is due of a schedule, at most `most`; what is left stays due."""

    schedule_id: str
    most: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """The jobs that a firing has made, by their ticks."""

    schedule_id: str
    plugin: str
    jobs: Sequence[tuple[Timestamp, str]]


async def look(tx: Transaction, items: Sequence[tuple[Timestamp, str] | None]) -> list[Look]:
    """A page of what is due, the longest due first, from the beginning or behind the page before."""
    return [await _look(tx, item) for item in items]


async def _look(tx: Transaction, behind: tuple[Timestamp, str] | None) -> Look:
    now = await tx.now()
    if behind is None:
        rows = await tx.fetch(_SOONEST)
    else:
        rows = await tx.fetch(_SOONEST_AFTER, next_at=behind[0], id=behind[1])
    due: list[ScheduleRecord] = []
    for schedule in map(record, rows):
        next_at = schedule.next_at or now
        if next_at > now:
            return Look(now=now, due=due, wait_s=_seconds(now, next_at), behind=None)
        due.append(schedule)
    behind = (due[-1].next_at or now, due[-1].id) if len(due) == PAGE else None
    return Look(now=now, due=due, wait_s=None, behind=behind)


def _seconds(start: Timestamp, end: Timestamp) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


async def fire(tx: Transaction, items: Sequence[Firing]) -> list[Fired | None]:
    """Make the jobs of what is due of schedules, the oldest first, and move those on to their next tick.

    None for a schedule that is not due, or not any more: another process has made its jobs, or is making them.
    """
    now = await tx.now()
    most = {item.schedule_id: item.most for item in items}
    rows = await tx.fetch(_LOCK_DUE, now=now, batch=batch((schedule_id,) for schedule_id in most))
    fired, moves, jobs = {}, [], []
    for row in rows:
        schedule = record(row[:-1])
        next_at = schedule.next_at or now
        found = ticks.due(schedule.timing, schedule.created_at, next_at, now)
        taken, left = found[: most[schedule.id]], found[most[schedule.id] :]
        made = [(tick, _job(schedule, row[-1], now, tick)) for tick in taken]
        following = left[0] if left else ticks.after(schedule.timing, schedule.created_at, now)
        newest = (made[-1][0], made[-1][1].id) if made else (None, None)
        moves.append((schedule.id, next_at, following, *newest))
        fired[schedule.id] = Fired(
            schedule_id=schedule.id, plugin=schedule.plugin, jobs=[(tick, job.id) for tick, job in made]
        )
        jobs += [job for _, job in made]
    if not moves:
        return [None] * len(items)
    moved = {schedule_id for (schedule_id,) in await tx.fetch(_MOVE_ON, batch=batch(moves))}
    jobs = [job for job in jobs if job.schedule_id in moved]
    await _insert(tx, jobs)
    # Of two questions for one schedule the first has the answer.
    return [fired.pop(item.schedule_id, None) if item.schedule_id in moved else None for item in items]


async def run_now(tx: Transaction, items: Sequence[ScheduleKey]) -> list[NewJob | None]:
    """Make one job of each schedule now, whether it is paused or not; None for an unknown one."""
    made: list[NewJob | None] = []
    for item in items:
        rows = await tx.fetch(_LOCK_THAT_ONE, of_id=item.id, of_tenant=item.tenant)
        made.append(_job(record(rows[0][:-1]), rows[0][-1], await tx.now(), None) if rows else None)
    await _insert(tx, [job for job in made if job is not None])
    return made


async def _insert(tx: Transaction, new: Sequence[NewJob]) -> None:
    """Record jobs of schedules that this transaction has locked."""
    if new:
        await job_inserts.insert(tx, new)
    if with_bytes := [(job.id, job.schedule_id or "") for job in new if mentions_bytes(job.payload)]:
        await blob_references.copy_of_schedules(tx, with_bytes)


def _job(schedule: ScheduleRecord, payload: Any, now: Timestamp, tick: Timestamp | None) -> NewJob:
    return NewJob(
        id=str(uuid7()),
        tenant=schedule.tenant,
        plugin=schedule.plugin,
        plugin_version=None,
        payload=payload,
        blobs=(),
        options=schedule.options.at(tick or now),
        max_attempts=schedule.max_attempts,
        created_at=now,
        idempotency_key=None,
        request_hash=None,
        schedule_id=schedule.id,
        scheduled_for=tick,
    )
