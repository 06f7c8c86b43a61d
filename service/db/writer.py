"""The write side: one connection, one task, group commit. Every change of the database passes here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from service.db.engine import held_connection
from service.db.ground import Fault, Ground, Healing
from service.db.sqlite import SqliteWriteConnection
from service.db.sqlite_file import FileGoneError, NoRoomError, SqliteFile
from service.db.transaction import Item, Operation, Outcome, Transaction, WriteConnection
from service.db.wal import WalLimits, WriteAheadLog
from service.errors import ServiceUnavailableError
from service.models import Timestamp, timestamp

MAX_BATCH: Final = 500
#: How often a database that takes no writes is asked whether it does again.
PROBE_S: Final = 0.5

#: What a transaction may raise: the driver's errors, the file's, and those of an item that does not bind.
_REFUSALS: Final = (sqlite3.Error, FileGoneError, NoRoomError, OSError, ValueError, TypeError, KeyError)

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Write:
    operation: Operation[Any, Any]
    item: Any
    done: asyncio.Future[Any]


class Writer:
    """Group commit: takes all queued writes, runs them in one transaction, commits once, then resolves the waiters.

    `write` returns only after the commit, so what it answers is durable. Cancelling a waiter cancels nothing: its write
    happens or fails as a whole with its batch. When a batch fails, its items are tried again each alone, so that one
    item the database refuses costs nobody else.

    When the database itself is away (`ground.fault`), everything that waits is refused at once, and so is what comes,
    until a probe commits. When a sync has failed, nothing is acknowledged or tried any more: the task ends.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        file: SqliteFile,
        ground: Ground,
        *,
        wal_limits: WalLimits | None = None,
        clock: Callable[[], Timestamp] = timestamp,
    ) -> None:
        self._engine = engine
        self.log = WriteAheadLog(file, ground, wal_limits)
        self._file = file
        self.ground = ground
        self._clock = clock
        self._queue: asyncio.Queue[_Write | None] = asyncio.Queue()
        self._closing = asyncio.Event()
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

    async def close(self) -> None:
        """Finish what is queued, then stop; later writes raise `ServiceUnavailableError`."""
        if self._task is not None:
            self._queue.put_nowait(None)
            self._closing.set()
            await self._task

    async def write(self, operation: Operation[Item, Outcome], item: Item) -> Outcome:
        """Apply one item; its outcome, once committed.

        Raises `ServiceUnavailableError` when the database takes no writes now (locked from outside, disk full, closed).
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ground.check()
        if not self.is_alive:
            raise ServiceUnavailableError("The database is closed.")
        self._queue.put_nowait(_Write(operation, item, done))
        return await done

    async def watch(self) -> None:
        """Return when the task that writes has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        writes: list[_Write] = []
        try:
            async with held_connection(self._engine) as held:
                connection = SqliteWriteConnection(held, self._file, self.log, self._clock)
                stopping = False
                while not stopping:
                    if (fault := self.ground.fault) is not None:
                        if fault.healing is Healing.NEVER:
                            return
                        await self._try_again(connection, fault)
                    taken = await self._take()
                    stopping = None in taken
                    writes = [write for write in taken if write is not None]
                    await self._commit(connection, writes)
                    await self._tidy(connection)
        finally:
            self._refuse(writes, ServiceUnavailableError("The database is closed."))

    async def _try_again(self, connection: WriteConnection, fault: Fault) -> None:
        """Wait until the database takes writes, or the writer is told to close."""
        while not self._closing.is_set():
            if fault.healing is Healing.BY_ITSELF:
                try:
                    await connection.probe()
                except _REFUSALS as error:
                    fault = connection.diagnose(error) or fault
                    self.ground.fall(fault)
                else:
                    self.ground.rise()
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._closing.wait()

    async def _tidy(self, connection: WriteConnection) -> None:
        if self.ground.fault is None:
            try:
                await connection.tidy()
            except _REFUSALS as error:
                if (fault := connection.diagnose(error)) is None:
                    raise
                self.ground.fall(fault)
                self._refuse((), ServiceUnavailableError(fault.reason))

    def _refuse(self, writes: Sequence[_Write], error: ServiceUnavailableError) -> None:
        """Tell `writes` and all that waits."""
        waiting = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        for write in (*writes, *waiting):
            if write is None:
                self._queue.put_nowait(None)
            elif not write.done.done():
                write.done.set_exception(error)

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
        except _REFUSALS as error:
            if (fault := connection.diagnose(error)) is not None:
                self.ground.fall(fault)
                self._refuse(writes, ServiceUnavailableError(fault.reason))
            elif len(writes) > 1:
                log.warning("batch refused, trying its writes one by one", size=len(writes), error=str(error))
                for write in writes:
                    if (fault := self.ground.fault) is None:
                        await self._commit(connection, [write])
                    else:
                        self._refuse([write], ServiceUnavailableError(fault.reason))
            elif not writes[0].done.done():
                writes[0].done.set_exception(_unavailable(error))
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
            return outcomes

        return await connection.transact(apply)


def _unavailable(error: Exception) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return ServiceUnavailableError(f"The database cannot take this write now: {error}.")
    return error
