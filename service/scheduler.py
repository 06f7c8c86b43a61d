"""The loop that makes the jobs of schedules when they tick."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.schedule_management import ScheduleManagementService

#: Somebody else's new schedule is found within this time where no wake-up tells of it.
POLL_S: Final = 5.0
#: When it is tried again while the database is away.
RETRY_S: Final = 1.0

log = structlog.get_logger(__name__)


class Scheduler:
    """Sleeps from tick to tick. Every process has one; whichever comes first makes the jobs of a tick."""

    def __init__(self, schedules: ScheduleManagementService, events: EventBus) -> None:
        self._schedules = schedules
        self._events = events

    async def run(self) -> None:
        """Make jobs until cancelled."""
        while True:
            self._events.schedules.clear()
            try:
                wait_s = await self._schedules.fire_due()
            except ServiceUnavailableError as error:
                log.debug("cannot make the jobs of schedules", error=str(error))
                wait_s = RETRY_S
            # Not `wait_for`: on Python 3.11 it swallows a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if wait_s is None else min(wait_s, POLL_S)):
                    await self._events.schedules.wait()
