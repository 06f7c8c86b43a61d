"""`ReportService`: keeps what the report views read up to date, and reads them page by page."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Final

from service.db import report_queries, rollups
from service.db.database import Database
from service.errors import ReportWindowOpenError
from service.models import Timestamp, later
from service.report_models import CREATED_AT, ReportPage, ReportQuery

#: So many events at most are folded in one transaction: a few hundredths of a second in which nothing else is written.
FOLD_PAGE: Final = 2_000
#: Pages that take longer than this get smaller: events of many hours and plugins, or a busy machine.
_LONG_S: Final = 0.1
_SMALLEST_PAGE: Final = 250
#: So many rows are read at once for a stream; they are all of it that is in memory.
READ_PAGE: Final = 1_000
#: A job is on record by then: `created_at` is when the request came, before it waits for its transaction.
SUBMISSION_S: Final = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A report as it is about to be read: `query` with its window closed, and as of when the reports are."""

    query: ReportQuery
    as_of: Timestamp | None
    version: int


class ReportService:
    """The rollups beneath the report views, and the views."""

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

    async def begin(self, query: ReportQuery) -> Reading:
        """Close the window of `query`, at the latest moment where it has no end.

        A closed window of jobs is complete: every job whose time is in it can be read, now and later, unless it is
        deleted. By `finished_at` that is so until `as_of`, and on PostgreSQL until the oldest transaction of the
        service that is open; by `created_at` a minute less, within which a submission must be on record. Raises
        `ReportWindowOpenError` for an end that is later, and `ServiceUnavailableError`.
        """
        as_of, settled = await report_queries.settled(self._database.reader)
        version = await report_queries.version(self._database.reader)
        if query.by is not None and query.report.is_of_jobs:
            if settled is None:
                raise ReportWindowOpenError(None)
            latest = later(settled, -SUBMISSION_S) if query.by == CREATED_AT else settled
            if query.until is not None and query.until > latest:
                raise ReportWindowOpenError(latest)
            query = dataclasses.replace(query, until=query.until or latest)
        return Reading(query=query, as_of=as_of, version=version)

    async def read(self, reading: Reading, size: int) -> ReportPage:
        """The first `size` rows; raises `ServiceUnavailableError`."""
        return await report_queries.read_page(self._database.reader, reading.query, size)

    async def pages(self, reading: Reading) -> AsyncIterator[ReportPage]:
        """All rows, up to the limit of the query, a page at a time; each is a read of its own. Raises as `read`."""
        query, left = reading.query, reading.query.limit
        while left is None or left > 0:
            size = READ_PAGE if left is None else min(left, READ_PAGE)
            page = await report_queries.read_page(self._database.reader, query, size)
            yield page
            if page.next is None:
                return
            left = None if left is None else left - size
            query = dataclasses.replace(query, after=page.next)
