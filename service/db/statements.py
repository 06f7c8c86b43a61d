"""Statements as SQLAlchemy compiles them, once; and batches as one JSON parameter that SQL reads as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite

_DIALECT = SQLiteDialect_aiosqlite()


class Statement:
    """One compiled statement. `text` is the dialect's SQL; `bind` puts named values into the driver's order."""

    __slots__ = ("_defaults", "_names", "text")

    def __init__(self, expression: sa.ClauseElement) -> None:
        compiled = expression.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)  # noqa: S101 - for the type checker
        self.text = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._defaults = compiled.params

    def bind(self, **values: Any) -> tuple[Any, ...]:
        """Parameters in order; raises `KeyError` for a value the statement does not know."""
        if unknown := values.keys() - self._defaults.keys():
            raise KeyError(*unknown)
        merged = {**self._defaults, **values}
        return tuple(merged[name] for name in self._names)


def batch_table(name: str, *columns: str) -> sa.Subquery:
    """The rows of the JSON array in parameter `batch` (see `batch`) as a table called `name`.

    One statement then guards and changes many rows and tells by RETURNING which ones. It also gives the interpreter up
    once: `executemany` does so for every row, and each time has to get it back from a busy event loop.
    """
    each = sa.func.json_each(sa.bindparam("batch")).table_valued("value", name="each")
    fields = (
        sa.func.json_extract(each.c.value, sa.literal_column(f"'$[{index}]'")).label(column)
        for index, column in enumerate(columns)
    )
    return sa.select(*fields).subquery(name)


def batch(rows: Iterable[Any]) -> str:
    """The value of parameter `batch`: for `batch_table` rows in the order of its columns, else plain values."""
    return orjson.dumps(list(rows)).decode()


def literal(value: str) -> sa.ColumnElement[str]:
    """A constant spelled out in the SQL, as partial indexes demand; for values of ours only."""
    return sa.literal_column(f"'{value}'")
