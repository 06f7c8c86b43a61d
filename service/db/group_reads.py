"""Rows by their key: those who ask while a read is under way are answered by the next one, all at once."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Any, Final

import sqlalchemy as sa

from service.db.statements import Packed, Statement, batch, batch_table

Row = Sequence[Any]
Fetch = Callable[..., Awaitable[list[Any]]]

#: Rows of one statement.
MOST_ROWS: Final = 64
#: Rows with more in them (characters on SQLite, bytes on PostgreSQL) would hold up who is read for with them.
MOST_SIZE: Final = 32_768


class Lookup:
    """Columns of a table by the first of them, which is unique; `bulky` are those that may hold much."""

    def __init__(self, key: sa.Column[Any], *others: sa.Column[Any], bulky: Sequence[sa.Column[Any]] = ()) -> None:
        columns = sa.select(key, *others, *bulky)
        wanted = sa.select(batch_table("wanted", key).c[0])

        def small(size: Callable[[sa.Column[Any]], sa.ColumnElement[int]]) -> sa.Select[Any]:
            if not bulky:
                return columns
            nothing = sa.literal_column("0", sa.Integer)
            sizes = (sa.func.coalesce(size(column), nothing) for column in bulky)
            return columns.where(functools.reduce(operator.add, sizes) <= sa.literal_column(str(MOST_SIZE)))

        self._one = Statement(columns.where(key == sa.bindparam("key")))
        self._small = Packed(
            small(sa.func.length).where(key.in_(wanted)),
            # An array is looked up in the index, however few the planner takes to be in the table.
            on_postgresql=small(sa.func.pg_column_size).where(key == sa.any_(sa.func.array(wanted.scalar_subquery()))),
        )

    async def small_rows(self, fetch: Fetch, keys: Set[str]) -> dict[str, Row]:
        """Those that there are and that have little in them, by key."""
        return {row[0]: row for row in await fetch(self._small, batch=batch((key,) for key in keys))}

    async def row(self, fetch: Fetch, key: str) -> Row | None:
        """One row, whatever its size."""
        rows = await fetch(self._one, key=key)
        return rows[0] if rows else None


class GroupReads:
    """Group reads, as the writer's group commits: one trip to the database answers all who wait for one.

    Who asks is answered by a statement that began afterwards: the row is as committed as if it had been read for him
    alone. Nothing waits for a timer: who is alone is read for at the next turn of the event loop. What a group has not
    found, since there is no such row or a large one, is looked for alone; so no group takes long.
    """

    def __init__(self, fetch: Fetch, lookup: Lookup) -> None:
        self._fetch = fetch
        self._lookup = lookup
        self._waiting: list[tuple[str, asyncio.Future[Row | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: str) -> Row | None:
        """The row, or None; raises what its statement raises, as everybody does who is answered by it.

        Cancelling one who waits cancels nothing for the others.
        """
        found: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, found))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await found or await self._lookup.row(self._fetch, key)

    async def close(self) -> None:
        """Wait for what is under way; nobody may be waiting for an answer."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                asked, self._waiting = self._waiting[:MOST_ROWS], self._waiting[MOST_ROWS:]
                await self._answer(asked)
        finally:
            self._reading = None

    async def _gather(self) -> None:
        """Let the event loop go round for as long as each turn brings more who ask.

        What has arrived at the sockets is then in this read: a sixth more GETs a second than with smaller groups, which
        contend with the event loop for the interpreter.
        """
        gathered = 0
        while gathered < len(self._waiting) < MOST_ROWS:
            gathered = len(self._waiting)
            await asyncio.sleep(0)

    async def _answer(self, asked: Sequence[tuple[str, asyncio.Future[Row | None]]]) -> None:
        try:
            rows = await self._lookup.small_rows(self._fetch, {key for key, _ in asked})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is theirs
            for _, found in asked:
                if not found.done():
                    found.set_exception(error)
        else:
            for key, found in asked:
                if not found.done():
                    found.set_result(rows.get(key))
