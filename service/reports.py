"""`ReportService`: keeps what the report views read up to date, and copies the database for those who read for long."""

from __future__ import annotations

import asyncio
from typing import Final

from service.db import rollups
from service.db.database import Database

#: So many events at most are folded in one transaction: a few hundredths of a second in which nothing else is written.
FOLD_PAGE: Final = 2_000
#: Pages that take longer than this get smaller: events of many hours and plugins, or a busy machine.
_LONG_S: Final = 0.1
_SMALLEST_PAGE: Final = 250


class ReportService:
    """The rollups beneath the report views."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._page = _SMALLEST_PAGE

    async def fold(self) -> bool:
        """Fold the next page of what happened into the rollups; whether there may be more.

        False, too, where another process of this database does it now. Raises `ServiceUnavailableError`.
        """
        now, page = asyncio.get_running_loop().time, self._page
        began = now()
        folded = await self._database.writer.write(rollups.fold, page)
        if now() - began > _LONG_S:
            self._page = max(page // 2, _SMALLEST_PAGE)
        else:
            self._page = min(page * 2, FOLD_PAGE)
        return folded == page

    async def catch_up(self, patience_s: float) -> bool:
        """Fold page after page for at most `patience_s`; whether nothing is left. Raises as `fold`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while await self.fold():
            if loop.time() > until:
                return False
        return True
