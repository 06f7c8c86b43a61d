"""Rollups: what reports read instead of millions of rows; the events of jobs are folded into them, each once.

Events are read in their one order (see `job_events`), and how far the rollups have come is kept in the transaction that
changes them: whatever kills a process between two pages, nothing is counted twice or left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db.histogram import PERCENTILES, percentile_s
from service.db.rollup_events import OF_NAMED, OF_PAGE, PAGE_END, WHEN, Reading
from service.db.rollup_sql import DatabaseBytes
from service.db.rollup_sums import Failure, Group, Tally, Worker, group_failures, period_of, sum_up
from service.db.schema import (
    ROLLUP_COUNTS,
    jobs,
    rollup_buckets,
    rollup_failures,
    rollup_state,
    rollup_workers,
    rollups,
)
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction, apart
from service.models import Timestamp, later

#: Rates of the backlog are means over this time, up to the last whole minute.
RATE_S: Final = 300
#: Rows of single minutes are kept for so long.
_MINUTES_KEPT_S: Final = 3_600

# Who holds this row keeps the books; on PostgreSQL others do not wait for it.
_TAKE_STATE = Statement(
    sa.select(rollup_state.c.tx, rollup_state.c.position, rollup_state.c.as_of).with_for_update(skip_locked=True)
)
_AWAIT_STATE = Statement(sa.select(rollup_state.c.tx, rollup_state.c.position, rollup_state.c.as_of).with_for_update())
_ADVANCE = Statement(
    sa.update(rollup_state).values(
        {name: sa.bindparam(f"new_{name}") for name in ("tx", "position", "as_of", "rates_from", "rates_until")}
    )
)
_MEASURE = Statement(sa.update(rollup_state).values(database_bytes=DatabaseBytes()))


_GROUP: Final = ("grain", "period", "tenant", "plugin")
_groups = batch_table("wanted", *(rollup_buckets.c[name] for name in _GROUP))
_BUCKETS = Statement(
    sa.select(rollup_buckets).join(_groups, sa.and_(*(rollup_buckets.c[n] == _groups.c[n] for n in _GROUP)))
)


def _upsert(table: sa.Table, **changes: Any) -> Statement:
    """Insert a batch of whole rows; where one is there, add its counts, and what `changes` says of other columns."""
    key = [column.name for column in table.primary_key]
    insert = postgresql.insert(table).from_select(
        [column.name for column in table.columns], sa.select(*batch_table("new", *table.columns).c).where(sa.true())
    )
    new = insert.excluded
    added = {
        column.name: column + new[column.name]
        for column in table.columns
        if column.name not in key and column.name not in changes and not column.nullable
    }
    changed = {name: change(table.c, new, name) for name, change in changes.items()}
    return Statement(insert.on_conflict_do_update(index_elements=key, set_={**added, **changed}))


def _greatest(old: Any, new: Any, name: str) -> Any:
    return sa.case((old[name].is_(None) | (new[name] > old[name]), new[name]), else_=old[name])


def _least(old: Any, new: Any, name: str) -> Any:
    return sa.case((new[name] < old[name], new[name]), else_=old[name])


def _new(_old: Any, new: Any, name: str) -> Any:
    return new[name]


def _of_the_last_seen(old: Any, new: Any, name: str) -> Any:
    is_later = (new.last_seen_at > old.last_seen_at) | (
        (new.last_seen_at == old.last_seen_at) & (new.last_job_id > old.last_job_id)
    )
    return sa.case((is_later, new[name]), else_=old[name])


_MEASURES: Final = tuple((measure, percent) for measure in ("queue", "run") for percent in PERCENTILES)
_UPSERT_ROLLUPS = _upsert(
    rollups,
    **{f"{measure}_p{percent}_s": _new for measure, percent in _MEASURES},
    peak_memory_bytes=_greatest,
    last_used_at=_greatest,
)
_UPSERT_BUCKETS = _upsert(rollup_buckets)
_UPSERT_WORKERS = _upsert(rollup_workers, last_ended_at=_greatest)
_UPSERT_FAILURES = _upsert(
    rollup_failures, first_seen_at=_least, last_seen_at=_greatest, message=_new, last_job_id=_of_the_last_seen
)
_FORGET_MINUTES = Statement(
    sa.delete(rollups).where(rollups.c.grain == literal("minute"), rollups.c.period < sa.bindparam("before"))
)


_named = batch_table("named", jobs.c.id)
_COUNT_NAMED = Statement(
    sa.select(jobs.c.tenant, jobs.c.plugin, sa.func.count())
    .where(jobs.c.id.in_(sa.select(_named.c.id)))
    .group_by(jobs.c.tenant, jobs.c.plugin)
)
_COUNT_DELETED = Statement(
    sa.update(rollups)
    .where(
        rollups.c.grain == literal("all"),
        rollups.c.tenant == sa.bindparam("of_tenant"),
        rollups.c.plugin == sa.bindparam("of_plugin"),
    )
    .values(deleted=rollups.c.deleted + sa.bindparam("count", type_=sa.BigInteger))
)


@apart
async def fold(tx: Transaction, items: Sequence[int]) -> list[int]:
    """Fold the next events into the rollups, at most `items[i]` of them; how many, 0 when somebody else does it now."""
    return [await _fold(tx, most) for most in items]


async def _fold(tx: Transaction, most: int) -> int:
    state = await tx.fetch(_TAKE_STATE)
    if not state:
        return 0
    ((after_tx, after, as_of),) = state
    began = await tx.now()  # before the look at what there is to fold
    behind = {"after_tx": after_tx, "after": after}
    ends = await tx.fetch(PAGE_END, **behind, limit=most)
    until_tx, until, count = ends[0] if ends and ends[0][2] else (after_tx, after, 0)
    if count:
        await _add(tx, OF_PAGE, {**behind, "until_tx": until_tx, "until": until})
    # While there is more to fold, the rollups tell of the time that they have come to.
    now = (await tx.fetch(WHEN, until=until))[0][0] if count == most else began
    minute = Timestamp(period_of("minute", now))
    if as_of is None or period_of("minute", as_of) != minute:
        await tx.fetch(_MEASURE)
        await tx.fetch(_FORGET_MINUTES, before=later(began, -_MINUTES_KEPT_S))
    await tx.fetch(
        _ADVANCE,
        new_tx=until_tx,
        new_position=until,
        new_as_of=now,
        new_rates_from=later(minute, -RATE_S),
        new_rates_until=minute,
    )
    return int(count)


async def forget(tx: Transaction, job_ids: Collection[str]) -> None:
    """Fold what is not yet folded of these jobs, and count them as deleted.

    For whoever deletes them with their events, before that and in the same transaction.
    """
    ((after_tx, after, _),) = await tx.fetch(_AWAIT_STATE)
    named = batch((job_id,) for job_id in job_ids)
    await _add(tx, OF_NAMED, {"after_tx": after_tx, "after": after, "batch": named})
    for tenant, plugin, count in await tx.fetch(_COUNT_NAMED, batch=named):
        await tx.fetch(_COUNT_DELETED, of_tenant=tenant, of_plugin=plugin, count=count)


async def _add(tx: Transaction, reading: Reading, where: Mapping[str, Any]) -> None:
    recent = later(await tx.now(), -_MINUTES_KEPT_S)
    rows = [
        row for kind in (reading.beginnings, reading.endings) for row in await tx.fetch(kind, **where, recent=recent)
    ]
    groups, workers = sum_up(rows, recent)
    await _add_groups(tx, groups)
    if workers:
        await tx.fetch(_UPSERT_WORKERS, batch=batch(_worker_row(*item) for item in sorted(workers.items())))
    if any(tally.counts["failed"] for tally in groups.values()):
        found = group_failures(await tx.fetch(reading.failures, **where))
        await tx.fetch(_UPSERT_FAILURES, batch=batch(_failure_row(*item) for item in sorted(found.items(), key=_key)))


async def _add_groups(tx: Transaction, groups: Mapping[Group, Tally]) -> None:
    if not groups:
        return
    timed = {group: tally for group, tally in groups.items() if tally.counts["timed"] and group.grain != "minute"}
    new = [
        (*group, measure, bound, count)
        for group, tally in sorted(timed.items(), key=_key)
        for measure, counts in tally.buckets.items()
        for bound, count in sorted(counts.items())
    ]
    if new:
        await tx.fetch(_UPSERT_BUCKETS, batch=batch(new))
    # Those of groups without new times, too: an upsert writes whole rows.
    kept = [tuple(group) for group in groups if group.grain != "minute"]
    buckets: dict[tuple[Any, ...], dict[int, int]] = {}
    for *key, bound, count in await tx.fetch(_BUCKETS, batch=batch(kept)):
        buckets.setdefault(tuple(key), {})[bound] = count
    rows = (_rollup_row(group, tally, buckets) for group, tally in sorted(groups.items(), key=_key))
    await tx.fetch(_UPSERT_ROLLUPS, batch=batch(rows))


def _rollup_row(group: Group, tally: Tally, buckets: Mapping[tuple[Any, ...], Mapping[int, int]]) -> tuple[Any, ...]:
    return (
        *group,
        *(tally.counts[name] for name in ROLLUP_COUNTS),
        *(percentile_s(buckets.get((*group, measure), {}), percent) for measure, percent in _MEASURES),
        tally.peak_memory_bytes,
        tally.last_used_at,
    )


def _worker_row(owner: str, worker: Worker) -> tuple[Any, ...]:
    counts = (worker.counts[name] for name in ("attempts", "succeeded", "failed", "lost", "busy_ms"))
    return (owner, *counts, worker.last_ended_at)


def _failure_row(key: tuple[str, ...], failure: Failure) -> tuple[Any, ...]:
    return (*key, failure.message, failure.jobs, failure.first_seen_at, failure.last_seen_at, failure.last_job_id)


def _key(item: tuple[Any, Any]) -> Any:
    return item[0]
