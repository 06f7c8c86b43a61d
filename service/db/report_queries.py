"""Every read of the report views: a page of one behind a key, and how far they can be relied on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.db.reader import Reader
from service.db.schema import NOT_DEFAULT_TENANT, Id, Json, Time, jobs
from service.db.statements import Statement
from service.models import DEFAULT_TENANT, Timestamp
from service.report_models import FINISHED_AT, REPORTS, ColumnType, ReportPage, ReportQuery

_TYPES: Final[Mapping[ColumnType, sa.types.TypeEngine[Any]]] = {
    ColumnType.ID: Id,
    ColumnType.TEXT: sa.Text(),
    ColumnType.TIME: Time,
    ColumnType.INTEGER: sa.BigInteger(),
    ColumnType.NUMBER: sa.Float(),
    ColumnType.JSON: Json,
}
#: Keys that may be NULL, which no order compares.
_MAY_BE_NULL: Final = frozenset({"plugin_version"})

_ended = jobs.alias("ended")

_VERSION = Statement(sa.text("SELECT version FROM report_schema_version"))
# A transaction takes its time after it has begun, and can be seen once it has ended: what is older than every open one
# of the service's own user is there. On SQLite whoever folds is alone.
_SETTLED = Statement(
    sa.text("SELECT as_of, as_of FROM report_freshness"),
    on_postgresql=sa.text(
        "SELECT as_of, least(as_of, date_trunc('milliseconds', ("
        "SELECT min(xact_start) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()))) FROM report_freshness"
    ),
)


async def version(reader: Reader) -> int:
    """The version of the reporting contract."""
    return int((await reader.fetch(_VERSION))[0][0])


async def settled(reader: Reader) -> tuple[Timestamp | None, Timestamp | None]:
    """As of when the reports are, and until when every end of a job can be seen; None before the first was counted."""
    as_of, until = await reader.fetch_one(_SETTLED) or (None, None)
    return as_of, until


async def read_page(reader: Reader, query: ReportQuery, size: int) -> ReportPage:
    """At most `size` rows behind `query.after`, in the order of `query.key`; whatever `query.limit` says."""
    values = {
        "of_tenant": query.tenant if query.report.column("tenant") else None,
        "of_plugin": query.plugin,
        "since": query.since,
        "until": query.until,
        **{f"after_{n}": value for n, value in enumerate(query.after or ())},
    }
    values = {name: value for name, value in values.items() if value is not None}
    columns = tuple(column.name for column in query.columns)
    statement = _statement(
        query.report.name,
        columns,
        query.by,
        frozenset(values),
        of_default=query.tenant == DEFAULT_TENANT,
    )
    rows = await reader.fetch(statement, most=size + 1, **values)
    return ReportPage(
        rows=[row[: len(columns)] for row in rows[:size]],
        next=tuple(rows[size - 1][len(columns) :]) if len(rows) > size else None,
    )


@functools.lru_cache(maxsize=256)
def _statement(
    name: str, columns: Sequence[str], by: str | None, values: frozenset[str], *, of_default: bool
) -> Statement:
    report = REPORTS[name]
    view = sa.table(report.view, *(sa.column(each.name, _TYPES[each.type]) for each in report.columns))
    key: list[sa.ColumnElement[Any]] = [
        sa.func.coalesce(view.c[each], "") if each in _MAY_BE_NULL else view.c[each] for each in report.key
    ]
    source: sa.FromClause = view
    times: dict[str, sa.ColumnElement[Any]] = dict(view.c.items())
    if by is not None and report.is_of_jobs and "fence" in report.key:
        # An execution is in the window of its job: what is told of a job is all that happened to it.
        source, times = _ended.join(view, view.c.job_id == _ended.c.id), dict(_ended.c.items())
        key[0] = _ended.c.id
    if by == FINISHED_AT and report.is_of_jobs:
        key = [times[by], *key]  # the order of `ix_jobs_finished`
    query = sa.select(*(view.c[each] for each in columns), *key).select_from(source)
    conditions = {
        "of_tenant": lambda: view.c.tenant == _bound("of_tenant", view.c.tenant),
        "of_plugin": lambda: view.c.plugin == _bound("of_plugin", view.c.plugin),
        "since": lambda: times[by or ""] >= _bound("since", times[by or ""]),
        "until": lambda: times[by or ""] < _bound("until", times[by or ""]),
        # The first of the key once more by itself: PostgreSQL finds no place in an index by columns of two tables.
        "after_0": lambda: sa.and_(
            key[0] >= _bound("after_0", key[0]),
            sa.tuple_(*key) > sa.tuple_(*(_bound(f"after_{n}", each) for n, each in enumerate(key))),
        ),
    }
    query = query.where(*(conditions[each]() for each in conditions if each in values))
    if "of_tenant" in values and not of_default:
        query = query.where(sa.text(f"{view.name}.{NOT_DEFAULT_TENANT}"))
    return Statement(query.order_by(*key).limit(sa.bindparam("most", type_=sa.Integer)))


def _bound(name: str, like: sa.ColumnElement[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=like.type)
