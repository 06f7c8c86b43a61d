"""The loop that lets time pass in the database: schedules, expiry, leases."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.job_management import JobManagementService

TICK_S: Final = 1.0
#: Leases are renewed this many times before they would end.
RENEWALS_PER_LEASE: Final = 4

log = structlog.get_logger(__name__)


class Housekeeper:
    """Makes scheduled jobs due, fails expired ones, and prolongs the leases of what this process runs."""

    def __init__(self, jobs: JobManagementService, events: EventBus, *, lease_s: float) -> None:
        self._jobs = jobs
        self._events = events
        self._renew_every_s = lease_s / RENEWALS_PER_LEASE
        self._renewed_at = float("-inf")

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            try:
                await self.tick()
            except ServiceUnavailableError as error:
                log.debug("cannot keep house", error=str(error))
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """Do what is due now."""
        if await self._jobs.promote_and_expire():
            self._events.work_arrived()
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at >= self._renew_every_s:
            await self._jobs.renew_leases()
            self._renewed_at = now
