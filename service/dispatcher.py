"""The loop that claims due jobs and starts them: as many as there are free workers, and some that follow at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.job_management import JobManagementService
from service.lookahead import Lookahead
from service.plugin_controls import PluginControls
from service.plugin_management import PluginManagementService

#: Polling is the truth, wake-ups only shorten it.
POLL_S: Final = 1.0

log = structlog.get_logger(__name__)


class Dispatcher:
    """Keeps `capacity` workers at work."""

    def __init__(
        self,
        jobs: JobManagementService,
        plugins: PluginManagementService,
        events: EventBus,
        controls: PluginControls,
        *,
        capacity: int,
    ) -> None:
        self._jobs = jobs
        self._plugins = plugins
        self._events = events
        self._controls = controls
        self._capacity = capacity
        self._lookahead = Lookahead(capacity, plugins.calls_at_once)

    @property
    def is_ahead(self) -> bool:
        """Whether jobs are at hand for whichever worker comes free next."""
        return self._jobs.at_work > self._capacity

    async def run(self) -> None:
        """Dispatch at every wake-up, and at least once in `POLL_S` (sooner under limits), until cancelled."""
        while True:
            self._events.work.clear()
            try:
                await self.dispatch()
            except ServiceUnavailableError as error:
                log.debug("cannot claim jobs", error=str(error))
                await asyncio.sleep(POLL_S)
            # Not `wait_for`: on Python 3.11 it swallows a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._controls.poll_s(POLL_S)):
                    await self._events.work.wait()

    async def dispatch(self) -> int:
        """Claim and start what fits in now; how many jobs."""
        started = 0
        self._events.left_behind = True
        while self._jobs.accepting:
            most, room = self._lookahead.most(), self._capacity - self._jobs.at_work
            free, ahead = max(0, room), most + min(0, room)
            # With half of them still to come, one claim of many is worth more than many claims of one.
            if free == 0 and ahead <= most // 2:
                break
            caps = self._caps()
            claimed = await self._jobs.claim_and_start(
                free, caps, self._plugins.names, self._lookahead, ahead=max(0, ahead)
            )
            started += claimed
            # Fewer than there is room for are all there are, but where a limit has passed some over. To ask once more
            # would keep the writer from the end of a short job.
            are_all = claimed < free and not caps and not self._controls.are_set
            self._events.left_behind = not are_all
            if not claimed or are_all:
                break
        return started

    def _caps(self) -> dict[str, int]:
        """How many more jobs of each limited plugin may start."""
        running = self._jobs.running
        return {
            plugin: max(0, limit - running.get(plugin, 0))
            for plugin, limit in self._plugins.concurrency_limits().items()
        }
