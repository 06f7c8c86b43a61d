"""The loop that folds what happened into the rollups of the report views."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.reports import ReportService

#: Reports are so old at most, unless there is more to fold than fits into that time.
TICK_S: Final = 1.0

log = structlog.get_logger(__name__)


class Bookkeeper:
    """Folds events page by page; after a database of an older version was opened, all there are.

    Between two pages it leaves the writer to others for as long as the first one took.
    """

    def __init__(self, reports: ReportService) -> None:
        self._reports = reports

    async def run(self) -> None:
        """Keep the books until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                there_is_more = await self._reports.fold()
            except ServiceUnavailableError as error:
                log.debug("cannot keep the books", error=str(error))
                there_is_more = False
            await asyncio.sleep(loop.time() - began if there_is_more else TICK_S)
