"""PluginManagementService: what plugins there are, what they accept, how they fare. It holds no plugin object."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from service.errors import PayloadInvalidError, PluginLoadError, PluginNotFoundError, PluginUnavailableError
from service.models import Pair, PluginMetrics
from service.payloads import InputSchema
from service.plugin_controls import PluginControl
from service.plugins.manifest import PluginManifest, PluginSource
from service.tool_runner.executor import CALLS_AT_ONCE
from service.tool_runner.runner import ToolRunner

#: How long a request waits for a plugin that is being described.
LOADING_PATIENCE_S: Final = 10.0
LOADING_RETRY_S: Final = 2
#: How soon a plugin that could not be loaded is tried again when somebody asks for it.
RELOAD_AFTER_S: Final = 30.0
#: So many failures in a row, without a success between, are ill health; one is not.
FAILURES_OF_ILL_HEALTH: Final = 5

log = structlog.get_logger(__name__)

LoadMetrics = Callable[[], Awaitable[Mapping[str, PluginMetrics]]]
LoadControls = Callable[[], Awaitable[Mapping[str, PluginControl]]]


class PluginState(enum.StrEnum):
    """Whether a plugin can take work."""

    LOADING = "loading"
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """All that is known about a plugin; `reason` says why it is unavailable or ill, and what to do."""

    name: str
    state: PluginState
    reason: str | None
    healthy: bool
    source: PluginSource
    manifest: PluginManifest | None
    metrics: PluginMetrics
    control: PluginControl


@dataclasses.dataclass(slots=True)
class _Entry:
    source: PluginSource
    manifest: PluginManifest | None = None
    schema: InputSchema | None = None
    reason: str | None = None
    describing: asyncio.Task[None] | None = None
    described_at: float = 0.0

    @property
    def state(self) -> PluginState:
        if self.manifest is not None:
            return PluginState.AVAILABLE
        return PluginState.UNAVAILABLE if self.reason is not None else PluginState.LOADING

    @property
    def concurrency(self) -> int | None:
        if self.manifest is not None:
            return self.manifest.concurrency
        return 1 if self.state is PluginState.LOADING else None  # it may be about to say that it takes no more


class PluginManagementService:
    """Knows manifests, limits, health and metrics of plugins, and delegates their execution to ToolRunner."""

    def __init__(
        self, tool_runner: ToolRunner, load_metrics: LoadMetrics, load_controls: LoadControls | None = None
    ) -> None:
        self._tool_runner = tool_runner
        self._load_metrics = load_metrics
        self._load_controls = load_controls or _uncontrolled
        self._entries = {name: _Entry(source) for name, source in tool_runner.sources.items()}
        self._describing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to describe every plugin; returns at once. One that is asked for meanwhile is described first."""
        self._describing = asyncio.create_task(self._describe_all(), name="describe plugins")

    async def close(self) -> None:
        """Stop describing."""
        tasks = [self._describing, *(entry.describing for entry in self._entries.values())]
        started = [task for task in tasks if task is not None]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)

    async def execute_plugin(self, plugin_name: str, payload: Mapping[str, Any]) -> Pair:
        """Run a plugin; ToolRunner's pair as it is. The job it belongs to travels in `calls.current_call`."""
        return await self._tool_runner.run(plugin_name, payload)

    async def list_plugins(self) -> list[PluginInfo]:
        """Every installed plugin, by name."""
        metrics, controls = await self._load_metrics(), await self._load_controls()
        return [self._info(entry, metrics, controls) for _, entry in sorted(self._entries.items())]

    async def get_plugin(self, name: str) -> PluginInfo:
        """One plugin; raises `PluginNotFoundError`."""
        return self._info(self._entry(name), await self._load_metrics(), await self._load_controls())

    async def manifest(self, name: str) -> PluginManifest:
        """The manifest; waits a while for a plugin that is loading.

        Raises `PluginNotFoundError`, or `PluginUnavailableError` with the reason.
        """
        manifest, _ = await self._described(name)
        return manifest

    async def validate(self, name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as the plugin takes it, its bytes decoded; raises `PayloadInvalidError` naming every fault."""
        _, schema = await self._described(name)
        document, problems = await schema.accept(payload)
        if problems:
            raise PayloadInvalidError(name, problems)
        return document

    async def bind_fields(self, name: str, fields: Mapping[str, str | bytes]) -> dict[str, Any]:
        """Fields of a form or query as the schema's types; what does not convert stays text, for `validate` to name."""
        _, schema = await self._described(name)
        return {key: schema.from_text(key, value) if isinstance(value, str) else value for key, value in fields.items()}

    async def bytes_field(self, name: str) -> str:
        """The field that takes a body of raw bytes: the schema's only bytes field, else `image`."""
        _, schema = await self._described(name)
        return schema.bytes_field

    @property
    def names(self) -> frozenset[str]:
        """Every plugin that is installed here, whether it can be loaded or not."""
        return frozenset(self._entries)

    def manifests(self) -> dict[str, PluginManifest]:
        """The manifests of the plugins that are available now, by name."""
        return {name: entry.manifest for name, entry in sorted(self._entries.items()) if entry.manifest is not None}

    def concurrency_limits(self) -> dict[str, int]:
        """How many jobs of a plugin may run at once, for the plugins that say so, or have not said anything yet."""
        return {name: limit for name, entry in self._entries.items() if (limit := entry.concurrency) is not None}

    def calls_at_once(self, name: str) -> int:
        """How many calls of the plugin a worker may hold; it runs one after the other."""
        entry = self._entries.get(name)
        return CALLS_AT_ONCE if entry is not None and entry.manifest is not None and entry.manifest.short else 1

    def check_installed(self, name: str) -> None:
        """Raise `PluginNotFoundError` unless the plugin is installed here."""
        self._entry(name)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise PluginNotFoundError(name) from None

    async def _described(self, name: str) -> tuple[PluginManifest, InputSchema]:
        entry = self._entry(name)
        if entry.manifest is None:
            describing = self._describe_soon(entry)
            if entry.reason is None:
                await asyncio.wait([describing], timeout=LOADING_PATIENCE_S)
        if entry.manifest is None or entry.schema is None:
            if entry.reason is None:
                raise PluginUnavailableError(name, "it is still loading; try again soon", retry_after_s=LOADING_RETRY_S)
            raise PluginUnavailableError(name, entry.reason)
        return entry.manifest, entry.schema

    async def _describe_all(self) -> None:
        places = asyncio.Semaphore(max(1, self._tool_runner.capacity))

        async def describe(entry: _Entry) -> None:
            async with places:
                await asyncio.wait([self._describe_soon(entry)])

        await asyncio.gather(*map(describe, self._entries.values()))

    def _describe_soon(self, entry: _Entry) -> asyncio.Task[None]:
        is_fresh = entry.reason is None or time.monotonic() - entry.described_at < RELOAD_AFTER_S
        if entry.describing is None or (entry.describing.done() and not is_fresh):
            entry.describing = asyncio.create_task(self._describe(entry), name=f"describe {entry.source.name}")
        return entry.describing

    async def _describe(self, entry: _Entry) -> None:
        try:
            manifest = await self._tool_runner.describe(entry.source.name)
            entry.schema = await asyncio.to_thread(InputSchema, manifest.input_schema)
            entry.manifest, entry.reason = manifest, None
        except PluginLoadError as error:
            entry.reason = error.reason
            found = {"traceback": error.traceback} if error.traceback else {}
            log.warning("plugin unavailable", plugin=entry.source.name, reason=entry.reason, **found)
        except ValueError as error:
            entry.reason = f"its input schema is wrong: {error}"
            log.warning("plugin unavailable", plugin=entry.source.name, reason=entry.reason)
        except Exception:
            entry.reason = "the service failed to read what it says about itself; the log says why"
            log.exception("plugin not described", plugin=entry.source.name)
        finally:
            entry.described_at = time.monotonic()

    def _info(
        self, entry: _Entry, metrics: Mapping[str, PluginMetrics], controls: Mapping[str, PluginControl]
    ) -> PluginInfo:
        name = entry.source.name
        own = metrics.get(name, PluginMetrics())
        reason = entry.reason
        is_failing = own.consecutive_errors >= FAILURES_OF_ILL_HEALTH
        if reason is None and is_failing:
            # Of its error no more than the type: the message may hold what another tenant sent.
            kind = (own.last_error or "").partition(":")[0]
            reason = f"the last {own.consecutive_errors} executions failed; the newest with {kind}"
        return PluginInfo(
            name=name,
            state=entry.state,
            reason=reason,
            healthy=entry.state is not PluginState.UNAVAILABLE and not is_failing,
            source=entry.source,
            manifest=entry.manifest,
            metrics=own,
            control=controls.get(name, PluginControl()),
        )


async def _uncontrolled() -> Mapping[str, PluginControl]:
    return {}
