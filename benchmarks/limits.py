"""Raw limits: what plain `sqlite3` commits durably on this disk, in groups and one row at a time."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uuid_utils.compat import uuid7

from benchmarks.common import percentile
from benchmarks.context import Context
from benchmarks.databases import DURABILITY, driver_url

GROUP = 32  # as many as clients wait
_PAYLOAD = '{"text": "' + "x" * 180 + '"}'
_TABLE = """
CREATE TABLE rows (id TEXT PRIMARY KEY, kind TEXT, status TEXT, at TEXT, payload TEXT);
CREATE INDEX by_kind ON rows (kind, id);
CREATE INDEX waiting ON rows (at, id) WHERE status = 'PENDING';
"""
_INSERT = "INSERT INTO rows VALUES (?, 'noop', 'PENDING', ?, ?)"


@contextlib.contextmanager
def durable_table() -> Iterator[sqlite3.Connection]:
    """A fresh table with a key and two indexes, in a file with WAL and `synchronous=FULL`."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        contextlib.closing(sqlite3.connect(Path(folder) / "rows.db", isolation_level=None)) as connection,
    ):
        connection.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {_TABLE}")
        yield connection


def grouped_rows(seconds: float) -> float:
    """Rows a second in transactions of `GROUP` rows, one thread."""
    with durable_table() as connection:
        rows, end = 0, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, [(str(uuid7()), str(now), _PAYLOAD) for _ in range(GROUP)])
            connection.execute("COMMIT")
            rows += GROUP
        return rows / seconds


def paced_inserts(seconds: float, rate: float) -> list[float]:
    """Milliseconds that a transaction of one row takes, `rate` times a second."""
    with durable_table() as connection:
        return _paced(seconds, rate, lambda: connection.execute(_INSERT, (str(uuid7()), "now", _PAYLOAD)))


def paced_postgresql_inserts(url: str, seconds: float, rate: float) -> list[float]:
    """The same on a PostgreSQL."""
    import asyncpg  # only this database needs it

    async def opened() -> Any:
        connection = await asyncpg.connect(driver_url(url))
        await connection.execute(_TABLE)
        return connection

    with asyncio.Runner() as runner:
        connection = runner.run(opened())
        statement = runner.run(connection.prepare("INSERT INTO rows VALUES ($1, 'noop', 'PENDING', $2, $3)"))
        try:
            return _paced(seconds, rate, lambda: runner.run(statement.fetch(str(uuid7()), "now", _PAYLOAD)))
        finally:
            runner.run(connection.close())


def _paced(seconds: float, rate: float, insert: Any) -> list[float]:
    times, start = [], time.monotonic()
    for number in range(max(1, round(seconds * rate))):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        began = time.perf_counter()
        insert()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def measure(context: Context) -> None:
    """Enter the limits of this disk."""
    durability = DURABILITY["sqlite"]
    rows = [grouped_rows(context.seconds) for _ in range(context.rounds)]
    context.book.add(f"plain sqlite3, {GROUP} rows a commit", rows, durability=durability)
    p50 = [percentile(paced_inserts(context.seconds, 1_000), 0.5) for _ in range(context.rounds)]
    context.book.add("plain sqlite3, one row a commit: p50", p50, "ms", durability=durability)
