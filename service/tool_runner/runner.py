"""ToolRunner: the only caller of plugins, and the only place where what goes wrong there becomes the error envelope."""

from __future__ import annotations

import types
import uuid
from collections.abc import Mapping
from typing import Any, Final

import structlog

from service.calls import Call, current_call
from service.errors import PluginLoadError, PluginNotFoundError, error_object, raised
from service.models import ErrorType, Pair
from service.plugins.manifest import PluginManifest, PluginSource
from service.settings import Settings
from service.tool_runner.executor import MB, Ceilings, Executor, Failure, Incident

#: Whose fault an incident is.
ERROR_TYPES: Final[Mapping[Incident, ErrorType]] = types.MappingProxyType(
    {
        Incident.REFUSED: ErrorType.VALIDATION,
        Incident.DEFINITION: ErrorType.PLUGIN,
        Incident.IMPORT: ErrorType.PLUGIN,
        Incident.SETUP: ErrorType.PLUGIN,
        Incident.RAISED: ErrorType.EXECUTION,
        Incident.OUTPUT: ErrorType.INVALID_OUTPUT,
        Incident.TIME: ErrorType.TIME_LIMIT,
        Incident.MEMORY: ErrorType.MEMORY_LIMIT,
        Incident.CRASH: ErrorType.WORKER_CRASHED,
        Incident.PROTOCOL: ErrorType.WORKER_CRASHED,
        Incident.HOST: ErrorType.INTERNAL,
    }
)

log = structlog.get_logger(__name__)


class ToolRunner:
    """Runs plugins by name on an executor."""

    def __init__(self, executor: Executor, sources: Mapping[str, PluginSource], settings: Settings) -> None:
        self.sources: Mapping[str, PluginSource] = types.MappingProxyType(dict(sources))
        self._executor = executor
        self._ceilings = Ceilings(
            timeout_s=settings.timeout_s,
            memory_bytes=int(settings.memory_mb * MB),
            result_bytes=int(settings.max_result_mb * MB),
        )

    @property
    def capacity(self) -> int:
        """How many jobs run at once."""
        return self._executor.capacity

    async def start(self) -> None:
        """Make ready; raises `StartupError` where nothing can be executed here."""
        await self._executor.start()

    async def close(self) -> None:
        """Stop; returns when no plugin code is left running."""
        await self._executor.close()

    async def ended(self) -> None:
        """Return once the executor is no longer fit, though nobody has closed it."""
        await self._executor.ended()

    async def describe(self, plugin_name: str) -> PluginManifest:
        """What the plugin says about itself, read in a worker.

        Raises `PluginNotFoundError`, or `PluginLoadError` with the type that a job would have failed with.
        """
        source = self.sources.get(plugin_name)
        if source is None:
            raise PluginNotFoundError(plugin_name)
        described = await self._executor.describe(source, self._ceilings)
        if isinstance(described, Failure):
            raise PluginLoadError(
                plugin_name,
                ERROR_TYPES[described.incident],
                _reason(described),
                details=described.details,
                traceback=described.traceback,
            )
        return described

    async def run(self, plugin_name: str, payload: Mapping[str, Any]) -> Pair:
        """Execute a plugin once: `(result, {})`, or `({}, {"error": {...}})` whatever went wrong.

        Raises nothing but `CancelledError`, when the plugin has stopped. `calls.current_call` names the job and takes
        progress and report.
        """
        call = current_call.get() or Call(job_id=str(uuid.uuid4()))
        try:
            source = self.sources.get(plugin_name)
            if source is None:
                error = error_object(ErrorType.PLUGIN, str(PluginNotFoundError(plugin_name)), plugin=plugin_name)
                return {}, {"error": error}
            outcome = await self._executor.submit(source, payload, call, self._ceilings)
            if not isinstance(outcome, Failure):
                return outcome, {}
            call.report.traceback = outcome.traceback
            call.report.retryable, call.report.retry_after_s = outcome.retryable, outcome.retry_after_s
            return {}, {"error": _error_of(outcome, plugin_name)}
        except Exception:
            log.exception("the runner itself failed", plugin=plugin_name, job_id=call.job_id)
            message = "The service failed to execute the plugin; the log says why."
            return {}, {"error": error_object(ErrorType.INTERNAL, message, plugin=str(plugin_name))}


def _reason(failure: Failure) -> str:
    """Why a plugin cannot be loaded, for whoever mends it."""
    exception = failure.details.get("exception")
    if exception is None:
        return failure.message
    place = f" ({failure.place})" if failure.place else ""
    return f"loading it raised {raised(failure.message, exception)}{place}"


def _error_of(failure: Failure, plugin_name: str) -> dict[str, Any]:
    details = dict(failure.details)
    if failure.problems:
        details["errors"] = [{"pointer": problem.pointer, "message": problem.message} for problem in failure.problems]
    return error_object(ERROR_TYPES[failure.incident], failure.message, plugin=plugin_name, details=details)
