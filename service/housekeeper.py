"""The loop that lets time pass in the database: what is due, what has expired, what nobody can run."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.job_management import JobManagementService
from service.plugin_management import PluginManagementService

TICK_S: Final = 1.0
#: How often, at most, jobs are looked for whose plugin is not installed, and told of.
LOOK_FOR_ABANDONED_S: Final = 300.0
_STRANDED: Final = (
    "Jobs wait for a plugin that is not installed here. The log says which: install it and start the service again, or "
    "cancel its jobs."
)

log = structlog.get_logger(__name__)


class Housekeeper:
    """Makes scheduled jobs due, fails expired ones, and those whose plugin was missing for `plugin_wait_s`.

    Until they fail, the log and `warnings` tell of those that wait for a missing plugin.

    The wait counts from the start of the process at the earliest: before, a job may have been due for long only because
    many others were. None as `plugin_wait_s` leaves missing plugins to others: where several processes share the work,
    what is not installed here may be installed there.
    """

    def __init__(
        self,
        jobs: JobManagementService,
        plugins: PluginManagementService,
        *,
        plugin_wait_s: float | None,
    ) -> None:
        self._jobs = jobs
        self._plugins = plugins
        self._plugin_wait_s = plugin_wait_s
        self._look_at = 0.0
        self._fail_from = 0.0
        self._stranded: dict[str, int] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know of jobs that nobody can run; neither how many nor which, for anybody may read it."""
        return (_STRANDED,) if self._stranded else ()

    async def run(self) -> None:
        """Tick until cancelled."""
        self._fail_from = asyncio.get_running_loop().time() + (self._plugin_wait_s or 0.0)
        while True:
            try:
                await self.tick()
            except ServiceUnavailableError as error:
                log.debug("cannot keep house", error=str(error))
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """Do what is due now."""
        await self._jobs.promote_and_expire()
        now = asyncio.get_running_loop().time()
        wait_s = self._plugin_wait_s
        if wait_s is not None and now >= self._look_at:
            if now >= self._fail_from:
                await self._jobs.fail_abandoned(self._plugins.names, wait_s)
            self._tell(await self._jobs.count_stranded(self._plugins.names))
            until_fail_s = self._fail_from - now
            self._look_at = now + min(LOOK_FOR_ABANDONED_S, until_fail_s if until_fail_s > 0 else wait_s)

    def _tell(self, stranded: dict[str, int]) -> None:
        if stranded != self._stranded:
            if stranded:
                log.warning("jobs wait for plugins that are not installed here", jobs=stranded)
            else:
                log.info("no job waits any more for a plugin that is not installed here")
        self._stranded = stranded
