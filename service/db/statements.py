"""Statements as SQLAlchemy compiles them, once for each database; batches as one JSON parameter read as a table."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

#: The oldest transaction of a PostgreSQL that has not ended.
_OLDEST_OPEN: Final = "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)"
_SQLITE: Final = SQLiteDialect_aiosqlite()
POSTGRESQL: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


class Compiled:
    """A statement for one database. `text` is its SQL; `bind` puts named values into the driver's order."""

    __slots__ = ("_defaults", "names", "text")

    def __init__(self, expression: sa.ClauseElement, dialect: sa.Dialect) -> None:
        compiled = expression.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - for the type checker
        self.text = str(compiled)
        self.names: Sequence[str] = tuple(compiled.positiontup or ())
        self._defaults = compiled.params

    def bind(self, **values: Any) -> tuple[Any, ...]:
        """Parameters in order; raises `KeyError` for a value the statement does not know."""
        if unknown := values.keys() - self._defaults.keys():
            raise KeyError(*unknown)
        merged = {**self._defaults, **values}
        return tuple(merged[name] for name in self.names)


class Statement:
    """One expression, compiled for a database when that first runs it; `on_postgresql` where that needs another."""

    def __init__(self, expression: sa.ClauseElement, *, on_postgresql: sa.ClauseElement | None = None) -> None:
        self._expression = expression
        self._on_postgresql = expression if on_postgresql is None else on_postgresql

    @functools.cached_property
    def sqlite(self) -> Compiled:
        """As SQLite takes it."""
        return Compiled(self._expression, _SQLITE)

    @functools.cached_property
    def postgresql(self) -> Compiled:
        """As PostgreSQL takes it."""
        return Compiled(self._on_postgresql, POSTGRESQL)

    def rows_of_sqlite(self, fetched: Iterable[Sequence[Any]]) -> list[Any]:
        """The rows in what SQLite gave."""
        return list(fetched)


class Packed(Statement):
    """A query whose rows SQLite gives as one JSON text; for short rows of texts and numbers.

    sqlite3 gives the interpreter up for every row, and each time has to get it back from a busy event loop.
    """

    def __init__(self, query: sa.Select[Any], *, on_postgresql: sa.ClauseElement) -> None:
        row = sa.func.json_array(*map(_as_json, query.selected_columns))
        packed = query.with_only_columns(sa.func.json_group_array(row), maintain_column_froms=True)
        super().__init__(packed, on_postgresql=on_postgresql)

    def rows_of_sqlite(self, fetched: Iterable[Sequence[Any]]) -> list[Any]:
        """See `Statement`."""
        ((text,),) = fetched
        rows: list[Any] = orjson.loads(text)
        return rows


def _as_json(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    if not isinstance(column.type, sa.Float):
        return column
    # By itself it would be written with 15 digits; `quote` takes as many as it needs.
    return sa.func.json(sa.case((column.is_not(None), sa.func.quote(column))))


class Insert:
    """New rows of a table: values for `columns` (in the table's order), and `constants` that are spelled out.

    `returns` says whether rows come back.

    PostgreSQL takes all rows as one JSON parameter. SQLite takes them as they are, in a few statements of 1, 2, 4, ...
    rows, so that few are ever compiled: its JSON functions would take more time than the insertion itself.
    """

    def __init__(
        self,
        table: sa.Table,
        columns: Sequence[sa.ColumnClause[Any]],
        constants: Mapping[str, Any],
        finish: Callable[[postgresql.Insert], sa.UpdateBase] = lambda insert: insert,
    ) -> None:
        values: dict[str, Any] = {column.name: sa.bindparam(column.name) for column in columns}
        single = finish(postgresql.insert(table).values({**values, **constants}))
        self.returns = bool(single.exported_columns)
        self._single = Statement(single)
        self._names = tuple(values)
        self._every = Statement(
            finish(
                postgresql.insert(table).from_select(
                    [*values, *constants],
                    # The condition keeps SQLite from reading ON CONFLICT as the condition of a join.
                    sa.select(*batch_table("new", *columns).c, *constants.values()).where(sa.true()),
                    include_defaults=False,
                )
            )
        )
        self._of_rows: dict[int, str] = {}

    @property
    def postgresql(self) -> Compiled:
        """As PostgreSQL takes it; its parameter is `batch`."""
        return self._every.postgresql

    def sqlite(self, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, list[Any]]]:
        """Statements that insert `rows`, each with its parameters."""
        start = 0
        while (left := len(rows) - start) > 0:
            size = min(_MOST_ROWS, 1 << (left.bit_length() - 1))
            yield self._text(size), list(itertools.chain.from_iterable(rows[start : start + size]))
            start += size

    def _text(self, rows: int) -> str:
        text = self._of_rows.get(rows)
        if text is None:
            single = self._single.sqlite
            if single.names != self._names:
                raise ValueError(f"columns are not in the table's order: {single.names}")
            head, row, tail = _VALUES.split(single.text, maxsplit=1)
            text = self._of_rows[rows] = f"{head} VALUES {', '.join([row] * rows)}{tail}"
        return text


#: What stands between the names of the columns and what follows the row.
_VALUES: Final = re.compile(r" VALUES (\([^()]*\))")
#: Beyond this a longer statement saves nothing more.
_MOST_ROWS: Final = 64


def batch_table(name: str, *columns: sa.ColumnClause[Any], parameter: str = "batch") -> sa.Subquery:
    """The rows of the JSON array in a parameter (see `batch`) as a table called `name`.

    Its columns have the names and types of `columns`. One statement then guards and changes many rows and tells by
    RETURNING which ones. It also gives the interpreter up once: `executemany` does so for every row, and each time has
    to get it back from a busy event loop.
    """
    each = _Elements(sa.bindparam(parameter, type_=sa.Text)).table_valued("value", name="each")
    fields = (_Field(each.c.value, index, column.type).label(column.name) for index, column in enumerate(columns))
    return sa.select(*fields).subquery(name)


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array as rows of one column, `value`."""

    name = "elements"
    inherit_cache = True


class _Field(sa.ColumnElement[Any]):
    """Element `index` of a JSON array as a value of a column's type."""

    inherit_cache = False

    def __init__(self, array: sa.ColumnElement[Any], index: int, type_: sa.types.TypeEngine[Any]) -> None:
        self.array = array
        self.index = index
        self.type = type_

    @property
    def _from_objects(self) -> list[Any]:
        return self.array._from_objects  # noqa: SLF001 - how SQLAlchemy finds its FROM


class JsonHas(sa.ColumnElement[bool]):
    """Whether a JSON array of texts in `column` holds the text `value`."""

    inherit_cache = False
    type = sa.Boolean()

    def __init__(self, column: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> None:
        self.column = column
        self.value = value


class ThisTransaction(sa.ColumnElement[int]):
    """The number of the writing transaction; NULL on SQLite, where transactions end in the order of their writes."""

    inherit_cache = True
    type = sa.BigInteger()


class Settled(sa.ColumnElement[bool]):
    """Whether no transaction up to the one in `tx` can still end: what it wrote can be seen, and nothing before it is
    still to come. True on SQLite.
    """

    inherit_cache = False
    type = sa.Boolean()

    def __init__(self, tx: sa.ColumnElement[Any]) -> None:
        self.tx = tx


class Behind(sa.ColumnElement[bool]):
    """Whether (tx, position) is behind a given place. On SQLite `position` alone is the order, and `tx` not asked."""

    inherit_cache = False
    type = sa.Boolean()

    def __init__(
        self,
        tx: sa.ColumnElement[Any],
        position: sa.ColumnElement[Any],
        place_tx: sa.BindParameter[int],
        place_position: sa.BindParameter[int],
    ) -> None:
        self.tx = tx
        self.position = position
        self.place_tx = place_tx
        self.place_position = place_position

    def self_group(self, against: Any = None) -> Self:
        """As it is: SQLite would look for `... = 1` in no index."""
        return self


class PlaceOrder(sa.ColumnElement[Any]):
    """The order by (tx, position) for ORDER BY; on SQLite by `position` alone."""

    inherit_cache = False

    def __init__(
        self, tx: sa.ColumnElement[Any], position: sa.ColumnElement[Any], *, newest_first: bool = False
    ) -> None:
        self.tx = tx
        self.position = position
        self.direction = "DESC" if newest_first else "ASC"


@compiles(ThisTransaction, "sqlite")
def _sqlite_transaction(element: ThisTransaction, compiler: SQLCompiler, **more: Any) -> str:
    return "NULL"


@compiles(ThisTransaction, "postgresql")
def _postgresql_transaction(element: ThisTransaction, compiler: SQLCompiler, **more: Any) -> str:
    return "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)"


@compiles(Settled, "sqlite")
def _sqlite_settled(element: Settled, compiler: SQLCompiler, **more: Any) -> str:
    return "1"


@compiles(Settled, "postgresql")
def _postgresql_settled(element: Settled, compiler: SQLCompiler, **more: Any) -> str:
    return f"{compiler.process(element.tx, **more)} < {_OLDEST_OPEN}"


@compiles(Behind, "sqlite")
def _sqlite_behind(element: Behind, compiler: SQLCompiler, **more: Any) -> str:
    position, place_tx, place_position = (
        compiler.process(part, **more) for part in (element.position, element.place_tx, element.place_position)
    )
    return f"({place_tx} IS NOT NULL AND {position} > {place_position})"


@compiles(Behind, "postgresql")
def _postgresql_behind(element: Behind, compiler: SQLCompiler, **more: Any) -> str:
    tx, position, place_tx, place_position = (
        compiler.process(part, **more)
        for part in (element.tx, element.position, element.place_tx, element.place_position)
    )
    # A partial index serves only queries that spell its predicate.
    return f"({tx} IS NOT NULL AND ({tx}, {position}) > ({place_tx}, {place_position}))"


@compiles(PlaceOrder, "sqlite")
def _sqlite_place_order(element: PlaceOrder, compiler: SQLCompiler, **more: Any) -> str:
    return f"{compiler.process(element.position, **more)} {element.direction}"


@compiles(PlaceOrder, "postgresql")
def _postgresql_place_order(element: PlaceOrder, compiler: SQLCompiler, **more: Any) -> str:
    return ", ".join(f"{compiler.process(part, **more)} {element.direction}" for part in (element.tx, element.position))


@compiles(_Elements, "sqlite")
def _sqlite_elements(element: _Elements, compiler: SQLCompiler, **more: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **more)})"


@compiles(_Elements, "postgresql")
def _postgresql_elements(element: _Elements, compiler: SQLCompiler, **more: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **more)} AS JSONB))"


@compiles(_Field, "sqlite")
def _sqlite_field(element: _Field, compiler: SQLCompiler, **more: Any) -> str:
    return f"json_extract({compiler.process(element.array, **more)}, '$[{element.index}]')"


@compiles(_Field, "postgresql")
def _postgresql_field(element: _Field, compiler: SQLCompiler, **more: Any) -> str:
    type_ = compiler.dialect.type_compiler_instance.process(element.type)
    return f"CAST({compiler.process(element.array, **more)} ->> {element.index} AS {type_})"


@compiles(JsonHas, "sqlite")
def _sqlite_has(element: JsonHas, compiler: SQLCompiler, **more: Any) -> str:
    column, value = (compiler.process(part, **more) for part in (element.column, element.value))
    return f"EXISTS (SELECT 1 FROM json_each({column}) AS held WHERE held.value = {value})"  # noqa: S608 - compiled SQL


@compiles(JsonHas, "postgresql")
def _postgresql_has(element: JsonHas, compiler: SQLCompiler, **more: Any) -> str:
    column, value = (compiler.process(part, **more) for part in (element.column, element.value))
    return f"{column} ? {value}"


def batch(rows: Iterable[Sequence[Any]]) -> str:
    """The value of a `batch_table`'s parameter: rows with its columns, in order."""
    return orjson.dumps(list(rows)).decode()


def literal(value: str) -> sa.ColumnElement[str]:
    """A constant spelled out in the SQL, as partial indexes demand; for values of ours only."""
    return sa.literal_column(f"'{value}'")
