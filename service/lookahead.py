"""How many due jobs may be claimed before a worker is free for them: what the workers are through with in a moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

#: A plugin is short while its executions take no longer on average, the last ones counting most.
SHORT_S: Final = 0.025
#: So much work at most may wait here for each worker, and so many jobs for all of them: two commits take long enough
#: for two workers to run a hundred, and what one transaction claims keeps all other writes waiting.
_AHEAD_S: Final = 0.05
_MOST_AHEAD: Final = 128
#: Who is longer at work than this holds its worker: nothing is claimed to wait for it.
_LONG_S: Final = 0.25
#: A job that has waited so long for a worker here goes back to where every process finds it.
PATIENCE_S: Final = 1.0
#: The share of the newest execution in the average.
_NEWEST: Final = 0.2


class _Waiter(NamedTuple):
    share: float
    granted: asyncio.Future[None]
    on_near: Callable[[], None]


class Lookahead:
    """Places for jobs that run, and how many more may be claimed to follow them.

    A commit takes longer than a short job, and the one that claims a job another: with as many jobs claimed as there
    are workers those would be idle nearly all the time. Of plugins that are not short nothing is claimed ahead, so a
    job that has to wait for long waits in the queue, where its rank counts and other processes see it.

    A worker has one place, or as many as `calls_at_once` says of the plugin: a power of two, for shares to add up.
    """

    def __init__(self, workers: int, calls_at_once: Callable[[str], int] = lambda plugin: 1) -> None:
        self._workers = workers
        self._calls_at_once = calls_at_once
        self._free = float(workers)
        self._waiting: deque[_Waiter] = deque()
        self._mean_s: dict[str, float] = {}
        self._at_work: dict[object, tuple[str, float]] = {}  # plugin, and since when

    @asynccontextmanager
    async def place(self, plugin: str, on_near: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """A place for as long as the block runs, in the order of asking; raises `TimeoutError` after `PATIENCE_S`.

        Who has to wait is told by `on_near` as soon as fewer wait before it than there are workers: for what it makes
        ready then no worker waits.
        """
        share = 1 / self._calls_at_once(plugin)
        if not self._waiting and self._free >= share:
            self._free -= share
        else:
            await self._wait(share, on_near)
        run = object()
        self._at_work[run] = plugin, asyncio.get_running_loop().time()
        try:
            yield
        finally:
            del self._at_work[run]
            self._give(share)

    async def _wait(self, share: float, on_near: Callable[[], None]) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(share, granted, on_near)
        self._waiting.append(waiter)
        if len(self._waiting) <= self._workers:
            on_near()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await granted
        except (TimeoutError, asyncio.CancelledError):
            with suppress(ValueError):  # it may have been taken out of the line by then
                self._leave_line(self._waiting.index(waiter))
            # What was granted in the same moment is for others, and so is the turn of who was first in line.
            self._give(0.0 if granted.cancelled() else share)
            raise

    def _give(self, share: float) -> None:
        """Take back a share of a worker, and pass on what is free."""
        self._free += share
        while self._waiting:
            first = self._waiting[0]
            if not first.granted.done():
                if first.share > self._free:
                    break
                self._free -= first.share
                first.granted.set_result(None)
            self._leave_line(0)

    def _leave_line(self, place: int) -> None:
        """Take out who stands at `place`; somebody comes near by that if it was among those that are near."""
        del self._waiting[place]
        if place < self._workers <= len(self._waiting):
            self._waiting[self._workers - 1].on_near()

    def ended(self, plugin: str, run_s: float) -> None:
        """An execution of `plugin` took that long."""
        mean_s = self._mean_s.get(plugin, run_s)
        self._mean_s[plugin] = mean_s + _NEWEST * (run_s - mean_s)

    def short(self) -> frozenset[str]:
        """The plugins whose jobs may be claimed ahead."""
        held = self._long()
        return frozenset(name for name, mean_s in self._mean_s.items() if mean_s <= SHORT_S and name not in held)

    def most(self) -> int:
        """How many jobs, all of short plugins, may be claimed and wait for a worker."""
        longest_s = max((self._mean_s[name] for name in self.short()), default=None)
        if longest_s is None:
            return 0
        each = _MOST_AHEAD if longest_s * _MOST_AHEAD <= _AHEAD_S else int(_AHEAD_S / longest_s)
        return min(_MOST_AHEAD, max(0, self._workers - len(self._long())) * each)

    def _long(self) -> list[str]:
        """The plugin of each that holds its worker."""
        before = asyncio.get_running_loop().time() - _LONG_S
        return [plugin for plugin, since in self._at_work.values() if since < before]
