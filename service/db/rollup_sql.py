"""Expressions of the statements that fold events, for both databases: parts of JSON and time, whole units of it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler


class _Of(sa.ColumnElement[Any]):
    """A function of one or two expressions that has another name in each database."""

    inherit_cache = False

    def __init__(self, *parts: sa.ColumnElement[Any]) -> None:
        self.parts = parts

    @property
    def _from_objects(self) -> list[Any]:
        return [table for part in self.parts for table in part._from_objects]  # noqa: SLF001 - how SQLAlchemy finds its FROM


class FenceOf(_Of):
    """The fence of the execution that an event's data names, or NULL."""

    type = sa.Integer()


class MillisecondsBetween(_Of):
    """From one time to a later one, exact: times have whole milliseconds. 0 where a clock was put back between them."""

    type = sa.BigInteger()


class ToMicroseconds(_Of):
    """Seconds, not negative, as the nearest whole microseconds; a billion of them at most, so that sums have room."""

    type = sa.BigInteger()


class MinuteOf(_Of):
    """A time without its seconds; only its first 16 characters count."""

    type = sa.Text()


class HourOf(_Of):
    """A time without its minutes; only its first 13 characters count."""

    type = sa.Text()


def _texts(element: _Of, compiler: SQLCompiler, more: dict[str, Any]) -> list[str]:
    return [compiler.process(part, **more) for part in element.parts]


@compiles(FenceOf, "sqlite")
def _sqlite_fence(element: FenceOf, compiler: SQLCompiler, **more: Any) -> str:
    return "json_extract({}, '$.fence')".format(*_texts(element, compiler, more))


@compiles(FenceOf, "postgresql")
def _postgresql_fence(element: FenceOf, compiler: SQLCompiler, **more: Any) -> str:
    return "CAST({} ->> 'fence' AS INTEGER)".format(*_texts(element, compiler, more))


@compiles(MillisecondsBetween, "sqlite")
def _sqlite_between(element: MillisecondsBetween, compiler: SQLCompiler, **more: Any) -> str:
    start, end = _texts(element, compiler, more)
    return f"max(CAST(round((julianday({end}) - julianday({start})) * 86400000.0) AS INTEGER), 0)"


@compiles(MillisecondsBetween, "postgresql")
def _postgresql_between(element: MillisecondsBetween, compiler: SQLCompiler, **more: Any) -> str:
    start, end = _texts(element, compiler, more)
    # `greatest` of NULL and a number would be the number.
    later = f"CASE WHEN {end} < {start} THEN {start} ELSE {end} END"
    return f"CAST(round(extract(epoch FROM {later} - {start}) * 1000) AS BIGINT)"


@compiles(ToMicroseconds, "sqlite")
def _sqlite_microseconds(element: ToMicroseconds, compiler: SQLCompiler, **more: Any) -> str:
    return "CAST(min({}, 1e9) * 1000000 + 0.5 AS INTEGER)".format(*_texts(element, compiler, more))


@compiles(ToMicroseconds, "postgresql")
def _postgresql_microseconds(element: ToMicroseconds, compiler: SQLCompiler, **more: Any) -> str:
    (seconds,) = _texts(element, compiler, more)
    # Not `least`: of NULL and a number it takes the number.
    return f"CAST(floor(CASE WHEN {seconds} > 1e9 THEN 1e9 ELSE {seconds} END * 1000000 + 0.5) AS BIGINT)"


@compiles(MinuteOf, "sqlite")
def _sqlite_minute(element: MinuteOf, compiler: SQLCompiler, **more: Any) -> str:
    return "substr({}, 1, 16)".format(*_texts(element, compiler, more))


@compiles(MinuteOf, "postgresql")
def _postgresql_minute(element: MinuteOf, compiler: SQLCompiler, **more: Any) -> str:
    return _to_char('YYYY-MM-DD"T"HH24:MI', element, compiler, more)


@compiles(HourOf, "sqlite")
def _sqlite_hour(element: HourOf, compiler: SQLCompiler, **more: Any) -> str:
    return "substr({}, 1, 13)".format(*_texts(element, compiler, more))


@compiles(HourOf, "postgresql")
def _postgresql_hour(element: HourOf, compiler: SQLCompiler, **more: Any) -> str:
    return _to_char('YYYY-MM-DD"T"HH24', element, compiler, more)


def _to_char(form: str, element: _Of, compiler: SQLCompiler, more: dict[str, Any]) -> str:
    return "to_char({} AT TIME ZONE 'UTC', '{}')".format(*_texts(element, compiler, more), form)


class DatabaseBytes(sa.ColumnElement[int]):
    """The size of the whole database."""

    inherit_cache = True
    type = sa.BigInteger()


@compiles(DatabaseBytes, "sqlite")
def _sqlite_bytes(element: DatabaseBytes, compiler: SQLCompiler, **more: Any) -> str:
    return "(SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size())"


@compiles(DatabaseBytes, "postgresql")
def _postgresql_bytes(element: DatabaseBytes, compiler: SQLCompiler, **more: Any) -> str:
    return "pg_database_size(current_database())"
