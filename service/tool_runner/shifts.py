"""Which call goes to which worker, and when: one of its own, or a place behind the calls of one that is at work."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, deque
from collections.abc import Callable

from service.plugins.manifest import PluginSource
from service.tool_runner.executor import CALLS_AT_ONCE
from service.tool_runner.worker_process import WorkerProcess


@dataclasses.dataclass(slots=True, eq=False)
class Shift:
    """One slot's time with one worker, from its first call until it has none left."""

    source: PluginSource
    worker: WorkerProcess | None = None  # until it is found, or started
    calls: int = 0


class Shifts:
    """At most so many at once, and of each plugin as many as it says. Calls wait in the order of their coming.

    Only a plugin that calls itself short gets calls behind one another, and only while nobody waits for a slot who came
    before: who does waits for the few calls that are on their way and for no more. `on_end` takes the worker of a shift
    that is over.
    """

    def __init__(self, slots: int, on_end: Callable[[WorkerProcess], None]) -> None:
        self._free = slots
        self._on_end = on_end
        self._limits: dict[str, int | None] = {}
        self._open: list[Shift] = []
        self._at_work: Counter[str] = Counter()
        self._waiting: deque[tuple[PluginSource, asyncio.Future[Shift]]] = deque()

    def limit(self, plugin_name: str, concurrency: int | None) -> None:
        """Have no more than `concurrency` shifts of that plugin at once; of one that was never limited, one."""
        self._limits[plugin_name] = concurrency
        self.assign()

    async def take(self, source: PluginSource) -> Shift:
        """A place for one call, which must `leave` it again; without a worker it is the caller's to find one."""
        place: asyncio.Future[Shift] = asyncio.get_running_loop().create_future()
        self._waiting.append((source, place))
        self.assign()
        try:
            return place.result() if place.done() else await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(place.result())
            raise

    def leave(self, shift: Shift) -> None:
        """The call is over, or is not to be."""
        shift.calls -= 1
        if not shift.calls:
            self._open.remove(shift)
            self._at_work[shift.source.name] -= 1
            self._free += 1
            if shift.worker is not None:
                self._on_end(shift.worker)
        self.assign()

    def assign(self) -> None:
        """Give places to those who wait; to be called whenever there may be one more."""
        held = []
        while self._waiting:
            source, place = waiter = self._waiting.popleft()
            if place.done():  # its caller was cancelled
                continue
            shift = self._place_for(source)
            if shift is not None:
                shift.calls += 1
                place.set_result(shift)
                continue
            held.append(waiter)
            if not self._free:  # whoever comes later waits too
                break
        self._waiting.extendleft(reversed(held))

    def _place_for(self, source: PluginSource) -> Shift | None:
        limit = self._limits.get(source.name, 1)
        if self._free and (limit is None or self._at_work[source.name] < limit):
            shift = Shift(source)
            self._open.append(shift)
            self._at_work[source.name] += 1
            self._free -= 1
            return shift
        with_room = (
            shift
            for shift in self._open
            if shift.source == source
            and shift.calls < CALLS_AT_ONCE
            and shift.worker is not None
            and shift.worker.takes_more
        )
        return min(with_room, key=lambda shift: shift.calls, default=None)
