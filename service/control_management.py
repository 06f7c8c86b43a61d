"""PluginControlService: what operators set for plugins, over all processes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import structlog

from service.db import plugin_controls
from service.db.database import Database
from service.db.plugin_controls import Limits, Pause
from service.db.transaction import Operation
from service.events import CONTROLS, EventBus
from service.plugin_controls import PluginControls
from service.plugin_management import PluginInfo, PluginManagementService

log = structlog.get_logger(__name__)


class PluginControlService:
    """Pauses, resumes and limits plugins. What it sets is on stable storage, and holds for every claim after that.

    All methods raise `PluginNotFoundError` for a plugin that is not installed here, and `ServiceUnavailableError`.
    """

    def __init__(
        self, database: Database, plugins: PluginManagementService, controls: PluginControls, events: EventBus
    ) -> None:
        self._database = database
        self._plugins = plugins
        self._controls = controls
        self._events = events

    async def pause(self, plugin: str, *, refuses_jobs: bool = False, reason: str | None = None) -> PluginInfo:
        """Start none of its waiting jobs; with `refuses_jobs`, take no new ones. Running ones run on."""
        return await self._set(
            plugin, plugin_controls.pause, Pause(plugin=plugin, refuses_jobs=refuses_jobs, reason=reason)
        )

    async def resume(self, plugin: str) -> PluginInfo:
        """Start its waiting jobs again; of one that is not paused too."""
        return await self._set(plugin, plugin_controls.resume, plugin)

    async def set_limits(
        self, plugin: str, *, concurrency: int | None, rate_per_s: float | None, burst: int | None
    ) -> PluginInfo:
        """How many of its jobs may run at once, and start a second; None is no limit.

        `burst` is how many may start at once where a rate is given; default: the rate, up.
        """
        if rate_per_s is not None:
            burst = burst or max(1, math.ceil(rate_per_s))
        limits = Limits(plugin=plugin, concurrency=concurrency, rate_per_s=rate_per_s, burst=burst)
        return await self._set(plugin, plugin_controls.set_limits, limits)

    async def _set(self, plugin: str, operation: Operation[Any, None], item: Any) -> PluginInfo:
        self._plugins.check_installed(plugin)
        await self._database.writer.write(operation, item)
        await self._controls.refresh()
        self._events.changed(CONTROLS)
        self._events.work_arrived()
        info = await self._plugins.get_plugin(plugin)
        log.info("plugin control set", plugin=plugin, **dataclasses.asdict(info.control))
        return info
