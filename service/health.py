"""Whether a process can serve, and why not: what `/readyz` tells, and what ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from service.db import instances
from service.db.database import Database
from service.db.ground import Healing
from service.errors import ServiceError
from service.housekeeper import Housekeeper
from service.job_management import JobManagementService

_PROBE_S: Final = 2.0


class Health:
    """Whether the process can serve, and why not."""

    def __init__(self, database: Database, jobs: JobManagementService, housekeeper: Housekeeper) -> None:
        self._database = database
        self._jobs = jobs
        self._housekeeper = housekeeper
        self.dead_loops: list[str] = []

    @property
    def draining(self) -> bool:
        """True once no new work is taken."""
        return not self._jobs.accepting

    @property
    def must_end_at_once(self) -> bool:
        """True when nothing that this process writes can be trusted any more."""
        fault = self._database.ground.fault
        return fault is not None and fault.healing is Healing.NEVER

    @property
    def warnings(self) -> Sequence[str]:
        """What people should know although the process can serve."""
        return (*self._database.ground.warnings, *self._housekeeper.warnings)

    async def readiness(self) -> list[str]:
        """Why the process cannot serve now; empty when it can. Commits a probe, so that it tells the truth."""
        reasons = [f"The {name} loop has ended." for name in self.dead_loops]
        if self.draining:
            reasons.append("The service is shutting down.")
        if (fault := self._database.ground.fault) is not None:
            return [*reasons, fault.reason]
        probe = asyncio.ensure_future(self._database.writer.write(instances.beat, self._jobs.instance_id))
        try:
            await asyncio.wait_for(asyncio.shield(probe), _PROBE_S)
        except TimeoutError:
            probe.add_done_callback(lambda done: done.cancelled() or done.exception())
            reasons.append(f"The database took no write within {_PROBE_S:g} s.")
        except ServiceError as error:
            reasons.append(str(error))
        return reasons
