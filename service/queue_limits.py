"""How many jobs may wait: counters kept beside the database and refreshed from it, so that asking costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final

import structlog

from service.errors import QueueFullError, ServiceUnavailableError, TooManyAtOnceError

#: While jobs are taken, they are counted this often, and never for more than a tenth of the time.
REFRESH_S: Final = 0.25
#: While jobs wait and none are taken, they are counted this often: that some have started is told by nobody.
IDLE_REFRESH_S: Final = 1.0
_SHARE: Final = 10
#: So many counts follow each other at most, while jobs are recorded during each.
_COUNTS: Final = 3
RETRY_AFTER_S: Final = 5

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True)
class Depth:
    """Jobs that wait. `tenants` and `plugins` are empty where nobody asked for them; `quotas` are single tenants'."""

    total: int = 0
    tenants: Counter[str] = dataclasses.field(default_factory=Counter)
    plugins: Counter[str] = dataclasses.field(default_factory=Counter)
    quotas: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def add(self, tenant: str, counts: Mapping[str, int]) -> None:
        """Count jobs of a tenant by their plugins; fewer, where a count is below 0."""
        for plugin, count in counts.items():
            self.total += count
            self.tenants[tenant] += count
            self.plugins[plugin] += count

    def take_away(self, other: Depth) -> None:
        """Forget what `other` had counted already."""
        self.total -= other.total
        self.tenants -= other.tenants
        self.plugins -= other.plugins


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many jobs may wait in all, of any one tenant, and of any one plugin; None is no limit."""

    total: int | None = None
    per_tenant: int | None = None
    per_plugin: int | None = None


class QueueLimits:
    """Refuses what would wait beyond the limits.

    The count is the database's, at most some `REFRESH_S` old (`IDLE_REFRESH_S` where none were taken for a while), and
    what this process has taken since. Several processes together may exceed a limit by what the others took in that
    time.
    """

    def __init__(self, limits: Limits, load: Callable[[bool], Awaitable[Depth]]) -> None:
        """`load` counts; it is told whether tenants and plugins must be counted apart."""
        self._limits = limits
        self._load = load
        self._each = limits.per_tenant is not None or limits.per_plugin is not None
        self._counted = Depth()
        self._coming = Depth()  # being recorded now: the next count may have them or not
        self._recorded = Depth()  # since the last count began
        self._asked = asyncio.Event()

    def room_for(self, tenant: str, plugin: str, count: int = 1) -> AbstractContextManager[None]:
        """As `room_for_all`, for `count` jobs of one plugin."""
        return self.room_for_all(tenant, {plugin: count})

    @contextlib.contextmanager
    def room_for_all(self, tenant: str, counts: Mapping[str, int]) -> Iterator[None]:
        """Record so many jobs of each plugin inside the block.

        Raises before it: `QueueFullError` where there is no room for all, `TooManyAtOnceError` where there never is.
        """
        limits, count = self._limits, sum(counts.values())
        if limits.total is not None:
            self._ask(limits.total, count, lambda depth: depth.total, "in all")
        of_tenant = self._counted.quotas.get(tenant, limits.per_tenant)
        if of_tenant is not None:
            self._ask(of_tenant, count, lambda depth: depth.tenants[tenant], "of this tenant")
        if limits.per_plugin is not None:
            for plugin, of_plugin in counts.items():
                self._ask_for_plugin(limits.per_plugin, of_plugin, plugin)
        self._coming.add(tenant, counts)
        try:
            yield
            self._recorded.add(tenant, counts)
        finally:
            self._coming.add(tenant, {plugin: -of_plugin for plugin, of_plugin in counts.items()})
            # Not before: a count that sees these rows and does not know that they are recorded takes them twice.
            self._asked.set()

    def _ask_for_plugin(self, most: int, count: int, plugin: str) -> None:
        self._ask(most, count, lambda depth: depth.plugins[plugin], f"of plugin {plugin!r}")

    def _ask(self, most: int, count: int, of: Callable[[Depth], int], where: str) -> None:
        if count > max(most, 1):
            self._asked.set()  # the limit may have changed
            raise TooManyAtOnceError(where, count, most)
        waiting = of(self._counted) + of(self._coming) + of(self._recorded)
        if count and waiting + count > most:
            self._asked.set()
            raise QueueFullError(where, waiting, most, retry_after_s=RETRY_AFTER_S)

    async def refresh(self) -> None:
        """Count anew, again where jobs were recorded meanwhile: those are in the count, or not, and count twice."""
        for _ in range(_COUNTS):
            before = copy.deepcopy(self._recorded)
            self._counted = await self._load(self._each)
            self._recorded.take_away(before)
            if not self._recorded.total:
                return

    async def keep(self) -> None:
        """Count again as long as jobs are taken or wait, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_REFRESH_S if self._counted.total else None):
                    await self._asked.wait()
            self._asked.clear()
            began = loop.time()
            try:
                await self.refresh()
            except ServiceUnavailableError as error:
                log.debug("waiting jobs cannot be counted", error=str(error))
            await asyncio.sleep(max(REFRESH_S, (loop.time() - began) * _SHARE))
