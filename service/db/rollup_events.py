"""Reads the events of jobs in their one order, page by page, and sums them up where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from service.db.rollup_sql import FenceOf, HourOf, MillisecondsBetween, MinuteOf, ToMicroseconds
from service.db.rollup_sums import ENDS
from service.db.schema import job_attempts, job_events, jobs, rollup_bounds
from service.db.statements import Settled, Statement, batch_table, literal
from service.models import TERMINAL

_places: Final = [sa.bindparam(name, type_=sa.BigInteger) for name in ("after_tx", "after", "until_tx", "until")]
_after_tx, _after, _until_tx, _until = _places
_place: Final = sa.tuple_(job_events.c.tx, job_events.c.position)

# On SQLite the position alone is the order, and transactions have no numbers; statements take the same values.
# On PostgreSQL the pair alone says where the scan of the index begins and ends: beside a condition on `tx` it would
# begin at the first event of that transaction, which an upgraded database has millions of.
_BEHIND: Final = {
    "sqlite": (job_events.c.position > _after) & _after_tx.is_not(None),
    "postgresql": job_events.c.tx.is_not(None) & (_place > sa.tuple_(_after_tx, _after)),
}
_UP_TO: Final = {
    "sqlite": (job_events.c.position <= _until) & _until_tx.is_not(None),
    "postgresql": job_events.c.tx.is_not(None) & (_place <= sa.tuple_(_until_tx, _until)),
}
_ORDER: Final = {"sqlite": (job_events.c.position,), "postgresql": (job_events.c.tx, job_events.c.position)}
_named = batch_table("named", job_events.c.job_id)
_OF_NAMED: Final = job_events.c.job_id.in_(sa.select(_named.c.job_id))


def _per_database(make: Callable[[str], sa.ClauseElement]) -> Statement:
    return Statement(make("sqlite"), on_postgresql=make("postgresql"))


def _page_end(database: str) -> sa.ClauseElement:
    page = (
        sa.select(*_ORDER[database])
        .where(_BEHIND[database], Settled(job_events.c.tx))
        .order_by(*_ORDER[database])
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .subquery("page")
    )
    if database == "sqlite":
        return sa.select(sa.literal_column("0"), sa.func.max(page.c.position), sa.func.count()).select_from(page)
    last_first = (page.c.tx.desc(), page.c.position.desc())
    one = sa.literal_column("1", sa.Integer)
    return sa.select(page.c.tx, page.c.position, sa.func.count().over()).order_by(*last_first).limit(one)


#: The place of the last of the next `limit` events, and how many they are; on SQLite also when there are none.
PAGE_END = _per_database(_page_end)


def _moment() -> sa.ColumnElement[str]:
    """The minute of an event, or its hour if that is long ago: single minutes are kept for recent ones only."""
    at = job_events.c.at
    return sa.case((at >= sa.bindparam("recent"), MinuteOf(at)), else_=HourOf(at))


def _beginnings(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Submissions and starts that meet `conditions`, counted, as `rollup_sums.EventSum`."""
    key = (_moment().label("minute"), jobs.c.tenant, jobs.c.plugin, job_events.c.type)
    return (
        sa.select(*key, *(sa.null() for _ in range(4)), sa.func.count())
        .join_from(job_events, jobs, jobs.c.id == job_events.c.job_id)
        .where(*conditions, job_events.c.type.in_([literal("submitted"), literal("started")]))
        .group_by(*_numbers(key))
    )


def _endings(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Ends of executions and of jobs that meet `conditions`, summed up as `rollup_sums.EventSum`."""
    execution = job_attempts.alias("execution")
    # Not every job ends by an execution; the time alone would not tell, for one may have ended just before.
    is_end = job_events.c.type.in_([literal(status.lower()) for status in sorted(TERMINAL)])
    ended_by_run = is_end & execution.c.fence.is_not(None)
    events = (
        sa.select(
            _moment().label("minute"),
            jobs.c.tenant,
            jobs.c.plugin,
            job_events.c.type,
            job_events.c.at,
            execution.c.outcome,
            execution.c.owner,
            execution.c.peak_memory_bytes,
            ToMicroseconds(execution.c.cpu_s).label("cpu_us"),
            MillisecondsBetween(execution.c.started_at, execution.c.finished_at).label("busy_ms"),
            sa.case((ended_by_run, _waited)).label("queue_ms"),
            sa.case((ended_by_run, MillisecondsBetween(jobs.c.started_at, jobs.c.finished_at))).label("run_ms"),
        )
        .join_from(job_events, jobs, jobs.c.id == job_events.c.job_id)
        .join(
            execution,
            (execution.c.job_id == job_events.c.job_id) & (execution.c.fence == FenceOf(job_events.c.data)),
            isouter=True,
        )
        .where(*conditions, job_events.c.type.in_([literal(name) for name in ENDS]))
        .cte("events")
        .prefix_with("MATERIALIZED")
    )
    key = (
        events.c.minute, events.c.tenant, events.c.plugin, events.c.type, events.c.outcome, events.c.owner,
        _bucket(events.c.queue_ms), _bucket(events.c.run_ms),
    )  # fmt: skip
    sums = (sa.func.sum(events.c[name]) for name in ("queue_ms", "run_ms", "cpu_us", "busy_ms"))
    return sa.select(
        *(column.label(f"key_{number}") for number, column in enumerate(key)),
        sa.func.count(),
        sa.func.count(events.c.run_ms),
        *(sa.cast(each, sa.BigInteger) for each in sums),
        sa.func.max(events.c.peak_memory_bytes),
        sa.func.max(events.c.at),
    ).group_by(*_numbers(key))


def _numbers(columns: Sequence[Any]) -> list[sa.TextClause]:
    return [sa.text(str(number + 1)) for number in range(len(columns))]


def _bucket(milliseconds: sa.ColumnElement[int]) -> sa.ScalarSelect[int]:
    bound = rollup_bounds.c.up_to_ms
    return (
        sa.select(bound)
        .where(bound >= milliseconds)
        .order_by(bound)
        .limit(sa.literal_column("1", sa.Integer))
        .scalar_subquery()
    )


# A job that somebody started before it was due has not waited.
_waited: Final = sa.case(
    (jobs.c.started_at > jobs.c.run_at, MillisecondsBetween(jobs.c.run_at, jobs.c.started_at)), else_=sa.text("0")
)


def _failures(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Jobs whose failure is among the events that meet `conditions`."""
    return (
        sa.select(
            jobs.c.tenant,
            jobs.c.plugin,
            jobs.c.plugin_version,
            jobs.c.error_type,
            jobs.c.error_message,
            job_events.c.at,
            jobs.c.id,
        )
        .join_from(job_events, jobs, jobs.c.id == job_events.c.job_id)
        .where(*conditions, job_events.c.type == literal("failed"))
    )


#: When the event at a position happened.
WHEN = Statement(sa.select(job_events.c.at).where(job_events.c.position == _until))


class Reading(NamedTuple):
    """Statements that read some events; each takes a place that the events are behind, and the last what else says."""

    beginnings: Statement
    endings: Statement
    failures: Statement


def _reading(where: Callable[[str], sa.ColumnElement[bool]]) -> Reading:
    def statement(make: Callable[..., sa.Select[Any]]) -> Statement:
        return _per_database(lambda database: make(_BEHIND[database], where(database)))

    return Reading(statement(_beginnings), statement(_endings), statement(_failures))


#: All events up to another place.
OF_PAGE: Final = _reading(lambda database: _UP_TO[database])
#: The events of the jobs in a batch.
OF_NAMED: Final = _reading(lambda _database: _OF_NAMED)
