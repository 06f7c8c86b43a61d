"""What operators have set for plugins, as this process knows it: asking costs a submission and a claim nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from service.errors import PluginPausedError, ServiceUnavailableError
from service.events import EventBus
from service.models import Timestamp

#: How often the database is asked when nobody says that something was set.
REFRESH_S: Final = 2.0
#: How often work is looked for while a plugin has a limit: places and tokens come back without a word.
LIMITED_POLL_S: Final = 0.1

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginControl:
    """What is set for a plugin, over all processes.

    Paused since `paused_at`: its waiting jobs are not started, and with `refuses_jobs` no new ones are taken. At most
    `concurrency` of its jobs run at once; `rate_per_s` start a second in the long run, `burst` at once.
    """

    paused_at: Timestamp | None = None
    refuses_jobs: bool = False
    reason: str | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    burst: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether some of its jobs may have to wait for others."""
        return self.concurrency is not None or self.rate_per_s is not None


class PluginControls:
    """The controls that are set, at most some `REFRESH_S` old; what decides about a claim is the database alone."""

    def __init__(self, load: Callable[[], Awaitable[Mapping[str, PluginControl]]], events: EventBus) -> None:
        self._load = load
        self._events = events
        self._known: Mapping[str, PluginControl] = {}

    @property
    def are_set(self) -> bool:
        """Whether there is any control: claims must ask for them then."""
        return bool(self._known)

    def poll_s(self, usual_s: float) -> float:
        """How soon to look for work again: after `usual_s`, or sooner where a limit holds jobs back."""
        is_limited = any(control.is_limited for control in self._known.values())
        return min(usual_s, LIMITED_POLL_S) if is_limited else usual_s

    def may_hold(self, plugin: str) -> bool:
        """Whether what is set may keep jobs of `plugin` waiting: how long, only who set it knows."""
        control = self._known.get(plugin)
        return control is not None and (control.paused_at is not None or control.is_limited)

    def check_intake(self, plugin: str) -> None:
        """Raise `PluginPausedError` for a plugin that takes no jobs."""
        control = self._known.get(plugin)
        if control is not None and control.refuses_jobs:
            raise PluginPausedError(plugin, control.reason)

    async def refresh(self) -> None:
        """Read what is set now; where that has changed there may be work. Raises `ServiceUnavailableError`."""
        before, self._known = self._known, await self._load()
        if self._known != before:
            self._events.work.set()

    async def keep(self) -> None:
        """Refresh at every change that is told, and now and then, until cancelled."""
        while True:
            self._events.controls.clear()
            try:
                await self.refresh()
            except ServiceUnavailableError as error:
                log.debug("what is set for plugins cannot be read", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._events.controls.wait()
