"""The read side: a few read-only connections of its own, so that no read waits for a write nor holds one up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from service.db.group_reads import GroupReads, Lookup, Row
from service.db.statements import Statement
from service.db.transaction import Backend, ReadConnection


class Reader:
    """Reads committed rows. Each `fetch` is one statement and so one consistent snapshot."""

    def __init__(self, backend: Backend, *, connections: int) -> None:
        self._backend = backend
        self._size = connections
        self._idle: asyncio.LifoQueue[ReadConnection] = asyncio.LifoQueue()
        self._held = contextlib.AsyncExitStack()
        self._groups: dict[Lookup, GroupReads] = {}

    async def start(self) -> None:
        """Open the connections."""
        for _ in range(self._size):
            self._idle.put_nowait(await self._held.enter_async_context(self._backend.reading()))

    async def close(self) -> None:
        """Close them; nobody may be reading."""
        for group in self._groups.values():
            await group.close()
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

    async def look_up(self, lookup: Lookup, key: str) -> Row | None:
        """The row of a key, or None; read together with others that are asked for meanwhile (see `GroupReads`)."""
        group = self._groups.get(lookup)
        if group is None:
            group = self._groups[lookup] = GroupReads(self.fetch, lookup)
        return await group.get(key)
