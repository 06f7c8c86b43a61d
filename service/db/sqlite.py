"""SQLite: transactions on a held aiosqlite connection, each one trip to the thread that owns the connection."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

import aiosqlite
import sqlalchemy as sa

from service.db.engine import BUSY_TIMEOUT_MS, create_reader_engine, create_writer_engine, held_connection, sqlite_path
from service.db.ground import AwayError, Ground
from service.db.sqlite_file import FileGoneError, NoRoomError, SqliteFile
from service.db.statements import Insert, Statement
from service.db.transaction import Gauge, RefusedError, Transaction, Value
from service.db.wal import WalLimits, WriteAheadLog
from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.models import Timestamp, timestamp

_USER_VERSION: Final = Statement(sa.text("PRAGMA user_version"))


class SqliteBackend:
    """A `Backend` on one file."""

    def __init__(
        self,
        database_url: str,
        ground: Ground,
        *,
        readers: int,
        clock: Callable[[], Timestamp] = timestamp,
        wal_limits: WalLimits | None = None,
    ) -> None:
        self._writer_engine = create_writer_engine(database_url)
        self._reader_engine = create_reader_engine(database_url, connections=readers)
        self._file = SqliteFile(sqlite_path(database_url))
        self._log = WriteAheadLog(self._file, ground, wal_limits)
        self._clock = clock

    @property
    def gauges(self) -> Sequence[Gauge]:
        """See `Backend`."""
        log = self._log
        return (
            Gauge(name="jobservice_wal_bytes", text="Size of the write-ahead log", read=lambda: log.size_bytes),
            Gauge(
                name="jobservice_wal_age_seconds",
                text="Time since all of the write-ahead log was in the database",
                read=lambda: log.age_s,
            ),
        )

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[SqliteWriteConnection]:
        """See `Backend`."""
        async with held_connection(self._writer_engine) as connection:
            yield SqliteWriteConnection(connection, self._file, self._log, self._clock)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[SqliteReadConnection]:
        """See `Backend`."""
        async with held_connection(self._reader_engine) as connection:
            yield SqliteReadConnection(connection, self._file)

    async def relay(self, events: EventBus) -> None:
        """See `Backend`. There is no other process."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Readers first: the last connection to leave takes the write-ahead log with it, which they may not."""
        await self._reader_engine.dispose()
        await self._writer_engine.dispose()


class SqliteReadConnection:
    """A `ReadConnection` on SQLite."""

    def __init__(self, connection: aiosqlite.Connection, file: SqliteFile) -> None:
        self._connection = connection
        self._file = file

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """See `ReadConnection`."""
        compiled = statement.sqlite
        with _translated(self._file):
            fetched = await self._connection.execute_fetchall(compiled.text, compiled.bind(**values))
        return statement.rows_of_sqlite(fetched)


class SqliteWriteConnection:
    """A `WriteConnection` on SQLite.

    aiosqlite makes a trip to its thread for every statement, about six in a transaction; made in one trip, a durable
    submission costs the event loop a sixth less CPU time (240 us to 200 us with 32 clients).
    """

    def __init__(
        self, connection: aiosqlite.Connection, file: SqliteFile, log: WriteAheadLog, clock: Callable[[], Timestamp]
    ) -> None:
        self._connection = connection
        self._file = file
        self._log = log
        self._clock = clock
        self._checkpoint_due = False

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """Run `work` between `BEGIN IMMEDIATE` and `COMMIT`, in the connection's thread."""

        async def verified(tx: Transaction) -> Value:
            value = await work(tx)
            # Before the commit: what is refused has not happened, so that nobody holds a claim without knowing.
            self._checkpoint_due = self._log.grown(self._file.verify())
            return value

        return await self._on_thread(lambda connection: _transact(connection, self._clock, verified))

    async def probe(self) -> None:
        """See `WriteConnection`. It asks for more room than it takes: jobs need it too."""

        def probe(connection: sqlite3.Connection) -> None:
            self._file.verify()
            self._file.check_room()
            _transact(connection, self._clock, _rewrite_first_page)
            self._file.verify()

        await self._on_thread(probe)

    async def tidy(self) -> None:
        """Move the log into the database when that is due."""
        if self._checkpoint_due:
            self._checkpoint_due = False
            await self._on_thread(lambda connection: self._log.checkpoint(connection, BUSY_TIMEOUT_MS))

    async def _on_thread(self, function: Callable[[sqlite3.Connection], Value]) -> Value:
        # aiosqlite has no public way to run a function there.
        on_thread, driver = self._connection._execute, self._connection._conn  # noqa: SLF001
        with _translated(self._file):
            return await on_thread(function, driver)  # type: ignore[no-any-return, no-untyped-call]


class _SqliteTransaction:
    """Coroutines that never wait: they run on the thread that owns the connection."""

    __slots__ = ("_connection", "_now")

    def __init__(self, connection: sqlite3.Connection, now: Timestamp) -> None:
        self._connection = connection
        self._now = now

    async def now(self) -> Timestamp:
        return self._now

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        fetched = self._connection.execute(statement.sqlite.text, statement.sqlite.bind(**values)).fetchall()
        return statement.rows_of_sqlite(fetched)

    async def insert(self, into: Insert, rows: Sequence[Sequence[Any]]) -> list[Any]:
        made: list[Any] = []
        for text, parameters in into.sqlite(rows):
            made += self._connection.execute(text, parameters).fetchall()
        return made

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        self._connection.executemany(statement.sqlite.text, rows)


def _transact(
    connection: sqlite3.Connection,
    clock: Callable[[], Timestamp],
    work: Callable[[Transaction], Coroutine[Any, Any, Value]],
) -> Value:
    connection.execute("BEGIN IMMEDIATE")
    try:
        value = _run(work(_SqliteTransaction(connection, clock())))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return value


async def _rewrite_first_page(tx: Transaction) -> None:
    ((version,),) = await tx.fetch(_USER_VERSION)
    await tx.fetch(Statement(sa.text(f"PRAGMA user_version = {int(version)}")))


@contextlib.contextmanager
def _translated(file: SqliteFile) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, FileGoneError, NoRoomError) as error:
        if (fault := file.diagnose(error)) is not None:
            raise AwayError(fault) from error
        if isinstance(error, OSError):
            raise ServiceUnavailableError(f"The database {file.path} is not available now: {error}.") from error
        raise RefusedError(str(error)) from error


def _run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """The value of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("An operation waited for something other than its transaction.")
