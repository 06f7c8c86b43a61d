"""JobBatches: how far jobs are that were submitted together, and what became of each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from service.db import job_batches
from service.db.database import Database
from service.errors import BatchNotFoundError
from service.events import EventBus
from service.models import DEFAULT_TENANT, BatchState, JobOutcome, canonical_uuid

#: How long a waiter trusts the wake-ups of this process before it looks again, and how soon it looks at the earliest.
_LOOK_AGAIN_S: Final = 2.0
_PAUSE_S: Final = 0.1
_BEFORE_ALL: Final = "00000000-0000-0000-0000-000000000000"


class JobBatches:
    """Reads batches. One of another tenant is answered like one that never was."""

    def __init__(self, database: Database, events: EventBus) -> None:
        self._reader = database.reader
        self._events = events

    async def get(self, batch_id: str, *, tenant: str = DEFAULT_TENANT) -> BatchState:
        """How far a batch is; raises `BatchNotFoundError`, also when all of its jobs were deleted."""
        canonical = canonical_uuid(batch_id)
        state = None if canonical is None else await job_batches.get(self._reader, canonical, tenant)
        if state is None:
            raise BatchNotFoundError(batch_id[:100])
        return state

    async def wait_for(self, batch_id: str, timeout_s: float, *, tenant: str = DEFAULT_TENANT) -> BatchState:
        """How far a batch is as soon as all of its jobs have ended, after `timeout_s`, or when the service stops.

        Raises as `get`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        state = await self.get(batch_id, tenant=tenant)
        while state.finished_at is None and (left := end - loop.time()) > 0 and not self._events.is_over:
            # Jobs start about in the order of their ids: the newest one is likely to be among the last to end.
            newest = await self._newest_active(state.id, tenant)
            if newest is not None:
                with self._events.watch(newest) as changed, contextlib.suppress(TimeoutError):
                    # Its end may have been told between that read and this watch.
                    if not self._events.may_have_ended(newest) or newest == await self._newest_active(state.id, tenant):
                        async with asyncio.timeout(min(left, _LOOK_AGAIN_S)):
                            await asyncio.sleep(_PAUSE_S)
                            await changed.wait()
            state = await self.get(batch_id, tenant=tenant)
        return state

    async def outcomes(self, batch_id: str, *, tenant: str = DEFAULT_TENANT) -> AsyncIterator[Sequence[JobOutcome]]:
        """What became of each job so far, in the order of ids, read page by page as they are asked for.

        Raises `BatchNotFoundError` before the first page.
        """
        state = await self.get(batch_id, tenant=tenant)
        return self._pages(state.id, tenant)

    async def _newest_active(self, batch_id: str, tenant: str) -> str | None:
        return await job_batches.newest_active(self._reader, batch_id, tenant)

    async def _pages(self, batch_id: str, tenant: str) -> AsyncIterator[Sequence[JobOutcome]]:
        after = _BEFORE_ALL
        while page := await job_batches.list_outcomes(self._reader, batch_id, tenant, after):
            after = page[-1].id
            yield page
