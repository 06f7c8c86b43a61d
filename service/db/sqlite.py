"""Transactions on a held aiosqlite connection: each one trip to the thread that owns the connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import aiosqlite

from service.db.statements import Statement
from service.db.transaction import Transaction, Value
from service.models import Timestamp


class SqliteWriteConnection:
    """A `WriteConnection` on SQLite.

    aiosqlite makes a trip to its thread for every statement, about six in a transaction; made in one trip, a durable
    submission costs the event loop a sixth less CPU time (240 us to 200 us with 32 clients).
    """

    def __init__(self, connection: aiosqlite.Connection, clock: Callable[[], Timestamp]) -> None:
        self._connection = connection
        self._clock = clock

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """Run `work` between `BEGIN IMMEDIATE` and `COMMIT`, in the connection's thread."""
        connection = self._connection
        # aiosqlite has no public way to run a function there.
        on_thread, driver = connection._execute, connection._conn  # noqa: SLF001
        return await on_thread(_transact, driver, self._clock, work)  # type: ignore[no-any-return, no-untyped-call]


class _SqliteTransaction:
    """Coroutines that never wait: they run on the thread that owns the connection."""

    __slots__ = ("_connection", "now")

    def __init__(self, connection: sqlite3.Connection, now: Timestamp) -> None:
        self._connection = connection
        self.now = now

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        return self._connection.execute(statement.text, statement.bind(**values)).fetchall()

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        self._connection.executemany(statement.text, rows)


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


def _run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """The value of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("An operation waited for something other than its transaction.")
