"""The loop that takes away what is kept no longer."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.retention import RetentionService

TICK_S: Final = 2.0
#: How often one of the 256 directories of stored files is looked through.
LOOK_S: Final = 60.0

log = structlog.get_logger(__name__)


class Pruner:
    """Prunes what is due, removes the files of what went, and looks for those that nobody names, a few at a time."""

    def __init__(self, retention: RetentionService) -> None:
        self._retention = retention

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            try:
                await self._retention.prune()
                await self._retention.remove_files()
                if loop.time() - looked_at >= LOOK_S:
                    looked_at = loop.time()
                    await self._retention.look_for_files()
            except ServiceUnavailableError as error:
                log.debug("cannot prune", error=str(error))
            await asyncio.sleep(TICK_S)
