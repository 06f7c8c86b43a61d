"""Rows by their key: those who ask while a read is under way are answered by the next one, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.db.statements import Statement, batch, batch_table

Row = Sequence[Any]
Fetch = Callable[..., Awaitable[list[Any]]]

#: Statements under way at once: rows that take long to read hold up those of their own group, not all that come.
AT_ONCE: Final = 2
#: Rows of one statement.
MOST_ROWS: Final = 64


class Lookup:
    """Columns of a table by the first of them, which is unique."""

    def __init__(self, key: sa.Column[Any], *others: sa.ColumnElement[Any]) -> None:
        columns = sa.select(key, *others)
        wanted = batch_table("wanted", key)
        self._one = Statement(columns.where(key == sa.bindparam("key")))
        self._many = Statement(columns.where(key.in_(sa.select(wanted.c[0]))))

    async def rows(self, fetch: Fetch, keys: set[str]) -> dict[str, Row]:
        """The rows that there are, by key, in one statement."""
        if len(keys) == 1:
            (key,) = keys
            found = await fetch(self._one, key=key)
        else:
            found = await fetch(self._many, batch=batch((key,) for key in keys))
        return {row[0]: row for row in found}


class GroupReads:
    """Group reads, as the writer's group commits: one trip to the database answers all who wait for one.

    Who asks is answered from a statement that began afterwards, so that a row is as committed as if it had been read
    for him alone. Nothing waits for a timer: who is alone is read for at once. Cancelling a waiter cancels nothing.
    """

    def __init__(self, fetch: Fetch, lookup: Lookup) -> None:
        self._fetch = fetch
        self._lookup = lookup
        self._waiting: list[tuple[str, asyncio.Future[Row | None]]] = []
        self._reading: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> Row | None:
        """The row, or None; raises what its statement raises, as everybody does who is answered by it."""
        done: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, done))
        self._go_on()
        return await done

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._reading:
            await asyncio.wait(self._reading)

    def _go_on(self) -> None:
        if len(self._reading) < AT_ONCE and self._waiting:
            # Its first step comes after all that is ready now: they ask too, and are read for together.
            self._reading.add(asyncio.create_task(self._read()))

    async def _read(self) -> None:
        asked, self._waiting = self._waiting[:MOST_ROWS], self._waiting[MOST_ROWS:]
        try:
            rows = await self._lookup.rows(self._fetch, {key for key, _ in asked})
            for key, done in asked:
                if not done.done():
                    done.set_result(rows.get(key))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is theirs
            for _, done in asked:
                if not done.done():
                    done.set_exception(error)
        finally:
            for _, done in asked:
                done.cancel()  # nothing where it is done
            self._reading.discard(asyncio.current_task())  # type: ignore[arg-type]
            self._go_on()
