"""The loops of leases: one keeps those of this process, one takes back what others have lost."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.job_management import JobManagementService

#: Leases are renewed this many times before they would end.
RENEWALS_PER_LEASE: Final = 4
#: How often a failed renewal is tried again, and a lease looked at that was not renewed in time.
CHECKS_PER_LEASE: Final = 12
#: How often lost runs are looked for. A job of a lost process starts again within its lease and this.
RESCUE_EVERY_S: Final = 2.0

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Prolongs the leases of what this process runs, and stops what it can no longer be sure to hold.

    A loop of its own, so that nothing else can hold it up; a renewal that takes too long does not hold up the stopping.
    """

    def __init__(self, jobs: JobManagementService, *, lease_s: float) -> None:
        self._jobs = jobs
        self._renew_every_s = lease_s / RENEWALS_PER_LEASE
        self._check_every_s = lease_s / CHECKS_PER_LEASE

    async def run(self) -> None:
        """Keep leases until cancelled."""
        loop = asyncio.get_running_loop()
        renewing: asyncio.Task[bool] | None = None
        renewed_at = float("-inf")
        try:
            while True:
                self._jobs.stop_untrusted()
                if renewing is not None and renewing.done():
                    if not renewing.result():
                        renewed_at = float("-inf")
                    renewing = None
                if renewing is None and loop.time() - renewed_at >= self._renew_every_s:
                    renewed_at = loop.time()
                    renewing = asyncio.create_task(self._renew(), name="renew leases")
                await asyncio.sleep(self._check_every_s)
        finally:
            if renewing is not None:
                renewing.cancel()

    async def _renew(self) -> bool:
        try:
            await self._jobs.renew_leases()
        except ServiceUnavailableError as error:
            log.debug("cannot renew leases", error=str(error))
            return False
        return True


class Rescuer:
    """Takes back jobs whose lease has ended, so that they run again."""

    def __init__(self, jobs: JobManagementService) -> None:
        self._jobs = jobs

    async def run(self) -> None:
        """Rescue until cancelled."""
        while True:
            try:
                await self._jobs.rescue()
            except ServiceUnavailableError as error:
                log.debug("cannot take back lost jobs", error=str(error))
            await asyncio.sleep(RESCUE_EVERY_S)
