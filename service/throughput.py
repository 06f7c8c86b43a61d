"""How many executions end in a second, over all processes: sampled from a counter that only grows."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.errors import ServiceUnavailableError

SAMPLE_S: Final = 5.0
WINDOW_S: Final = 60.0

log = structlog.get_logger(__name__)


class Throughput:
    """The rate of the last `WINDOW_S`, as far as this process has watched."""

    def __init__(self, count: Callable[[], Awaitable[int]]) -> None:
        """`count` gives the executions that have ever ended."""
        self._count = count
        self._samples: collections.deque[tuple[float, int]] = collections.deque(maxlen=int(WINDOW_S / SAMPLE_S) + 1)

    async def sample(self) -> None:
        """Count once; raises `ServiceUnavailableError`."""
        self._samples.append((asyncio.get_running_loop().time(), await self._count()))

    async def keep(self) -> None:
        """Count at regular intervals, until cancelled."""
        while True:
            try:
                await self.sample()
            except ServiceUnavailableError as error:
                log.debug("executions cannot be counted", error=str(error))
            await asyncio.sleep(SAMPLE_S)

    def seconds_for(self, executions: int) -> float | None:
        """How long so many take at this rate; None while there was none."""
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        if last <= first:
            return None
        return round(executions * (ended - began) / (last - first), 1)
