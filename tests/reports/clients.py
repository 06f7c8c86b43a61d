"""Programs that nobody here wrote, as readers of a database."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import math
import re
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import adbc_driver_sqlite.dbapi
import duckdb
import pandas
import polars

Rows = list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Client:
    """`ask` gives the rows of a query at a place: the path of a file, or the URL of a server."""

    name: str
    ask: Callable[[str, str], Rows]
    prefix: str = ""  # of every view

    def read(self, place: str, query: str) -> Rows:
        """The rows of a query of views."""
        return self.ask(place, query.replace("FROM report_", f"FROM {self.prefix}report_"))


def rows_of(values: Sequence[Sequence[Any]]) -> Rows:
    """Rows as text, so that what programs answer can be compared."""
    return [tuple(map(_text, row)) for row in values]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pandas.NaT:
        return ""
    number = isinstance(value, float) or (isinstance(value, str) and re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", value))
    # Some print a whole number of seconds as 0, others as 0.0.
    return f"{float(value):.3f}".rstrip("0").removesuffix(".") if number else str(value)


# SQLite


def _sqlite3(path: str, query: str) -> Rows:
    printed = _run("sqlite3", "-json", f"file:{path}?mode=ro", query)
    return rows_of([list(row.values()) for row in json.loads(printed or "[]")])


def _duckdb_on_sqlite(path: str, query: str) -> Rows:
    with duckdb.connect() as database:
        database.execute(f"LOAD '{duckdb_extension('sqlite')}'")
        database.execute(f"ATTACH '{path}' AS jobs (TYPE sqlite, READ_ONLY)")
        database.execute("CREATE MACRO julianday(moment) AS julian(moment)")
        return rows_of(database.execute(query).fetchall())


def _pandas_on_sqlite(path: str, query: str) -> Rows:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return rows_of(pandas.read_sql(query, connection, dtype=object).values.tolist())


def _polars_on_sqlite(path: str, query: str) -> Rows:
    whole = {"adbc.sqlite.query.batch_rows": 10_000_000}
    with (
        adbc_driver_sqlite.dbapi.connect(f"file:{path}?mode=ro") as connection,
        connection.cursor(adbc_stmt_kwargs=whole) as cursor,
    ):
        return rows_of(polars.read_database(query, cursor).rows())


# PostgreSQL


def _psql(url: str, query: str) -> Rows:
    printed = _run("psql", "--no-psqlrc", "--csv", "--tuples-only", "--command", query, url)
    return rows_of(list(csv.reader(io.StringIO(printed))))


def _duckdb_on_postgresql(url: str, query: str) -> Rows:
    with duckdb.connect() as database:
        database.execute(f"LOAD '{duckdb_extension('postgres')}'")
        database.execute(f"ATTACH '{url}' AS jobs (TYPE postgres, READ_ONLY)")
        return rows_of(database.execute(query).fetchall())


def _pandas_on_postgresql(url: str, query: str) -> Rows:
    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        return rows_of(pandas.read_sql(query, connection).astype(object).values.tolist())


def _polars_on_postgresql(url: str, query: str) -> Rows:
    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        return rows_of(polars.read_database(query, connection).rows())


ON_SQLITE = (
    Client("sqlite3", _sqlite3),
    Client("duckdb", _duckdb_on_sqlite, "jobs."),
    Client("pandas", _pandas_on_sqlite),
    Client("polars", _polars_on_sqlite),
)
ON_POSTGRESQL = (
    Client("psql", _psql),
    Client("duckdb", _duckdb_on_postgresql, "jobs."),
    Client("pandas", _pandas_on_postgresql),
    Client("polars", _polars_on_postgresql),
)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def duckdb_extension(database: str) -> Path:
    """The extension that DuckDB would fetch to attach this kind of database, from its package."""
    package = Path(importlib.import_module(f"duckdb_extension_{database}_scanner").__path__[0])
    (extension,) = package.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
    return extension
