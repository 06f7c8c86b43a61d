"""The write side: one connection, one task, group commit. Every change of the database passes here."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from service import failpoints
from service.db.transaction import Backend, Item, Operation, Outcome, RefusedError, Transaction, WriteConnection
from service.errors import ServiceUnavailableError

MAX_BATCH: Final = 500

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Write:
    operation: Operation[Any, Any]
    item: Any
    done: asyncio.Future[Any]


class Writer:
    """Group commit: takes all queued writes, runs them in one transaction, commits once, then resolves the waiters.

    `write` returns only after the commit, so what it answers is durable. Cancelling a waiter cancels nothing: its write
    happens or fails as a whole with its batch. When a batch is refused, its items are tried again each alone, so that
    one item costs nobody else.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._queue: asyncio.Queue[_Write | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.on_commit: Callable[[int], None] = lambda size: None

    @property
    def depth(self) -> int:
        """Writes that wait for a transaction."""
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        """False when the task that writes has ended."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Open the connection and begin to write."""
        self._task = asyncio.create_task(self._run(), name="writer")

    async def ended(self) -> None:
        """Return, or raise what went wrong, once the task that writes has ended."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Finish what is queued, then stop; later writes raise `ServiceUnavailableError`."""
        if self._task is not None:
            self._queue.put_nowait(None)
            await asyncio.wait([self._task])

    async def write(self, operation: Operation[Item, Outcome], item: Item) -> Outcome:
        """Apply one item; its outcome, once committed.

        Raises `ServiceUnavailableError` when the database takes no writes now (locked from outside, disk full, away,
        closed), `RefusedError` when it refuses this item.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if not self.is_alive:
            raise ServiceUnavailableError("The database is closed.")
        self._queue.put_nowait(_Write(operation, item, done))
        outcome = await done
        if failpoints.active:
            await failpoints.reach(_point(operation, "before_reply"))
        return outcome

    async def _run(self) -> None:
        writes: list[_Write] = []
        try:
            async with self._backend.writing() as connection:
                stopping = False
                while not stopping:
                    taken = await self._take()
                    stopping = None in taken
                    writes = [write for write in taken if write is not None]
                    await self._commit(connection, writes)
        finally:
            while not self._queue.empty():
                if (write := self._queue.get_nowait()) is not None:
                    writes.append(write)
            for write in writes:
                if not write.done.done():
                    write.done.set_exception(ServiceUnavailableError("The database is closed."))

    async def _take(self) -> list[_Write | None]:
        taken = [await self._queue.get()]
        while len(taken) < MAX_BATCH and not self._queue.empty():
            taken.append(self._queue.get_nowait())
        return taken

    async def _commit(self, connection: WriteConnection, writes: Sequence[_Write]) -> None:
        if not writes:
            return
        try:
            outcomes = await self._apply(connection, writes)
        except (RefusedError, ServiceUnavailableError, ValueError, TypeError, KeyError) as error:
            if len(writes) > 1 and not isinstance(error, ServiceUnavailableError):
                log.warning("batch refused, trying its writes one by one", size=len(writes), error=str(error))
                for write in writes:
                    await self._commit(connection, [write])
                return
            for write in writes:
                if not write.done.done():
                    write.done.set_exception(error)
            return
        self.on_commit(len(writes))
        for write, outcome in zip(writes, outcomes, strict=True):
            if not write.done.done():
                write.done.set_result(outcome)

    async def _apply(self, connection: WriteConnection, writes: Sequence[_Write]) -> list[Any]:
        """All of `writes` in one transaction, grouped by operation in the order of their first item."""
        groups: dict[Operation[Any, Any], list[int]] = {}
        for index, write in enumerate(writes):
            groups.setdefault(write.operation, []).append(index)

        async def apply(tx: Transaction) -> list[Any]:
            outcomes: list[Any] = [None] * len(writes)
            for operation, indexes in groups.items():
                results = await operation(tx, [writes[index].item for index in indexes])
                for index, result in zip(indexes, results, strict=True):
                    outcomes[index] = result
            if failpoints.active:
                for operation in groups:
                    failpoints.hit(_point(operation, "before_commit"))
            return outcomes

        if not failpoints.active:
            return await connection.transact(apply)
        for operation in groups:
            await failpoints.reach(_point(operation, "before_begin"))
        applied = await connection.transact(apply)
        for operation in groups:
            await failpoints.reach(_point(operation, "after_commit"))
        return applied


def _point(operation: Operation[Any, Any], place: str) -> str:
    return f"{getattr(operation, '__name__', '')}.{place}"
