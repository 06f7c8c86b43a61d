"""The write side: one connection, one task, group commit. Every change of the database passes here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from service import failpoints
from service.db.ground import AwayError, Fault, Ground, Healing
from service.db.transaction import (
    Backend,
    Item,
    Operation,
    Outcome,
    RefusedError,
    Transaction,
    WriteConnection,
    is_apart,
    turn_of,
)
from service.errors import ServiceUnavailableError

MAX_BATCH: Final = 500
#: A transaction of fewer writes waits for more, at most so long, while `Writer.has_time`.
FEW: Final = 8
COMMIT_DELAY_S: Final = 0.02
#: How often a database that takes no writes is asked whether it does again.
PROBE_S: Final = 0.5

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Write:
    operation: Operation[Any, Any]
    item: Any
    done: asyncio.Future[Any]

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Writer:
    """Group commit: takes all queued writes, runs them in one transaction, commits once, then resolves the waiters.

    Operations that are `apart` have a transaction of their own. Where `has_time` says that nothing stands still for it,
    a small transaction waits a moment for company: its cost is that of a commit, whatever it holds.

    `write` returns only after the commit, so what it answers is durable. Cancelling a waiter cancels nothing: its write
    happens or fails as a whole with its batch. When a batch is refused, its items are tried again each alone, so that
    one item costs nobody else.

    When the database itself is away (`ground.fault`), everything that waits is refused at once, and so is what comes,
    until a probe commits. When a sync has failed, nothing is acknowledged or tried any more: the task ends.
    """

    def __init__(self, backend: Backend, ground: Ground) -> None:
        self._backend = backend
        self.ground = ground
        self._queue: asyncio.Queue[_Write | None] = asyncio.Queue()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lingers = False
        self._enough = asyncio.Event()
        self.on_commit: Callable[[int], None] = lambda size: None
        self.has_time: Callable[[], bool] = lambda: False

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
            self._closing.set()
            self._enough.set()
            await asyncio.wait([self._task])

    async def write(self, operation: Operation[Item, Outcome], item: Item) -> Outcome:
        """Apply one item; its outcome, once committed.

        Raises `ServiceUnavailableError` when the database takes no writes now (locked from outside, disk full, away,
        closed), `RefusedError` when it refuses this item.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ground.check()
        if not self.is_alive:
            raise ServiceUnavailableError("The database is closed.")
        self._queue.put_nowait(_Write(operation, item, done))
        if self._lingers and not self._may_linger():
            self._enough.set()
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
                    fault = self.ground.fault
                    if fault is not None and fault.healing is Healing.NEVER:
                        return
                    if fault is not None and not self._closing.is_set():
                        await self._try_again(connection, fault)
                        continue
                    taken = await self._take()
                    stopping = None in taken
                    writes = [write for write in taken if write is not None]
                    for each in _transactions(writes):
                        await self._commit_unless_away(connection, each)
                    await self._tidy(connection)
        finally:
            self._refuse(writes, ServiceUnavailableError("The database is closed."))

    async def _try_again(self, connection: WriteConnection, fault: Fault) -> None:
        """Probe once; when that does not commit, wait until the next time, or until the writer is told to close."""
        if fault.healing is Healing.BY_ITSELF:
            try:
                await connection.probe()
            except AwayError as error:
                self.ground.fall(error.fault)
            except (ServiceUnavailableError, RefusedError) as error:
                log.debug("probe refused", error=str(error))
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
            except AwayError as error:
                self._fall(error, ())
            except (ServiceUnavailableError, RefusedError) as error:
                log.warning("the database could not be tidied", error=str(error))

    def _fall(self, error: AwayError, writes: Sequence[_Write]) -> None:
        self.ground.fall(error.fault)
        self._refuse(writes, error)

    def _refuse(self, writes: Sequence[_Write], error: ServiceUnavailableError) -> None:
        """Tell `writes` and all that waits."""
        waiting = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        for write in (*writes, *waiting):
            if write is None:
                self._queue.put_nowait(None)
            else:
                write.fail(error)

    async def _take(self) -> list[_Write | None]:
        taken = [await self._queue.get()]
        await asyncio.sleep(0)  # what was set off at the same time, as the claim of a job that arrives, comes along
        if self._may_linger():
            self._lingers = True
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_DELAY_S):
                    await self._enough.wait()
            self._lingers = False
        while len(taken) < MAX_BATCH and not self._queue.empty():
            taken.append(self._queue.get_nowait())
        return taken

    def _may_linger(self) -> bool:
        return self._queue.qsize() < FEW - 1 and not self._closing.is_set() and self.has_time()

    async def _commit_unless_away(self, connection: WriteConnection, writes: Sequence[_Write]) -> None:
        """Commit, unless the database has gone away meanwhile."""
        if (fault := self.ground.fault) is None:
            await self._commit(connection, writes)
            return
        for write in writes:
            write.fail(AwayError(fault))

    async def _commit(self, connection: WriteConnection, writes: Sequence[_Write]) -> None:
        try:
            outcomes = await self._apply(connection, writes)
        except AwayError as error:
            self._fall(error, writes)
            return
        except ServiceUnavailableError as error:
            log.warning("batch not taken", size=len(writes), error=str(error))
            for write in writes:
                write.fail(error)
            return
        except (RefusedError, ValueError, TypeError, KeyError, ArithmeticError) as error:
            if len(writes) == 1:
                writes[0].fail(error)
                return
            log.warning("batch refused, trying its writes one by one", size=len(writes), error=str(error))
            for write in writes:
                await self._commit_unless_away(connection, [write])
            return
        self.on_commit(len(writes))
        for write, outcome in zip(writes, outcomes, strict=True):
            if not write.done.done():
                write.done.set_result(outcome)

    async def _apply(self, connection: WriteConnection, writes: Sequence[_Write]) -> list[Any]:
        """All of `writes` in one transaction, grouped by operation, in the order of first items and of `turn_of`."""
        groups: dict[Operation[Any, Any], list[int]] = {}
        for index, write in enumerate(writes):
            groups.setdefault(write.operation, []).append(index)
        order = sorted(groups, key=turn_of)

        async def apply(tx: Transaction) -> list[Any]:
            outcomes: list[Any] = [None] * len(writes)
            for operation in order:
                indexes = groups[operation]
                results = await operation(tx, [writes[index].item for index in indexes])
                for index, result in zip(indexes, results, strict=True):
                    outcomes[index] = result
            if failpoints.active:
                for operation in order:
                    failpoints.hit(_point(operation, "before_commit"))
            return outcomes

        if not failpoints.active:
            return await connection.transact(apply)
        for operation in order:
            await failpoints.reach(_point(operation, "before_begin"))
        applied = await connection.transact(apply)
        for operation in order:
            await failpoints.reach(_point(operation, "after_commit"))
        return applied


def _transactions(writes: Sequence[_Write]) -> list[list[_Write]]:
    """What is committed together: everything, but each operation that is `apart`, which comes last, by itself."""
    shared: list[_Write] = []
    by_operation: dict[Operation[Any, Any], list[_Write]] = {}
    for write in writes:
        if is_apart(write.operation):
            by_operation.setdefault(write.operation, []).append(write)
        else:
            shared.append(write)
    return [each for each in (shared, *by_operation.values()) if each]


def _point(operation: Operation[Any, Any], place: str) -> str:
    return f"{getattr(operation, '__name__', '')}.{place}"
