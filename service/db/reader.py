"""The read side: a few read-only connections of its own, so that no read waits for a write nor holds one up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from service.db.statements import Statement
from service.db.transaction import Backend, ReadConnection


class Reader:
    """Reads committed rows. Each `fetch` is one statement and so one consistent snapshot."""

    def __init__(self, backend: Backend, *, connections: int) -> None:
        self._backend = backend
        self._size = connections
        self._idle: asyncio.LifoQueue[ReadConnection] = asyncio.LifoQueue()
        self._held = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the connections."""
        for _ in range(self._size):
            self._idle.put_nowait(await self._held.enter_async_context(self._backend.reading()))

    async def close(self) -> None:
        """Close them; nobody may be reading."""
        await self._held.aclose()

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """All rows of one statement, each in the order of its columns; raises `ServiceUnavailableError`."""
        connection = await self._idle.get()
        try:
            return await connection.fetch(statement, **values)
        finally:
            self._idle.put_nowait(connection)

    async def fetch_one(self, statement: Statement, **values: Any) -> Any | None:
        """The first row, or None."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None
