"""The read side: a few read-only connections of its own, so that no read waits for a write nor holds one up."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import aiosqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from service.db.engine import held_connection
from service.db.sqlite_file import SqliteFile
from service.db.statements import Statement
from service.errors import ServiceUnavailableError


class Reader:
    """Reads committed rows. Each `fetch` is one statement and so one consistent snapshot."""

    def __init__(self, engine: AsyncEngine, file: SqliteFile, *, connections: int) -> None:
        self._engine = engine
        self._file = file
        self._size = connections
        self._idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        self._held = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the connections."""
        for _ in range(self._size):
            self._idle.put_nowait(await self._held.enter_async_context(held_connection(self._engine)))

    async def close(self) -> None:
        """Close them; nobody may be reading."""
        await self._held.aclose()

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """All rows of one statement, each in the order of its columns.

        Raises `ServiceUnavailableError` when the database cannot be read now.
        """
        connection = await self._idle.get()
        try:
            return list(await connection.execute_fetchall(statement.text, statement.bind(**values)))
        except sqlite3.Error as error:
            fault = self._file.diagnose(error)
            if fault is None or fault.kind == "read-only":  # no fault of the ground: somebody wrote where one reads
                raise
            raise ServiceUnavailableError(fault.reason) from error
        finally:
            self._idle.put_nowait(connection)

    async def fetch_one(self, statement: Statement, **values: Any) -> Any | None:
        """The first row, or None."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None
