"""What ToolRunner asks of whatever executes plugins: the local pool now, a cluster later."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from service.calls import Call
from service.errors import FieldProblem
from service.plugins.manifest import PluginManifest, PluginSource

MB: Final = 1_000_000
#: How many calls one worker may hold whose plugin is declared short. Sent one by one, each waits for a trip to the
#: event loop and back; with eight on their way the next one is there already (no-op jobs: 2,500 a second, not 1,240).
CALLS_AT_ONCE: Final = 8


class Phase(enum.StrEnum):
    """How far an execution had come."""

    IMPORT = "import"
    SETUP = "setup"
    RUN = "run"


class Incident(enum.StrEnum):
    """What can go wrong with an execution, by who or what ended it."""

    REFUSED = "refused"  # the payload does not become the arguments of `run`
    DEFINITION = "definition"  # the plugin breaks the contract
    IMPORT = "import"  # its import or constructor raised
    SETUP = "setup"  # its `setup` raised
    RAISED = "raised"  # its `run` raised
    OUTPUT = "output"  # what it returned or attached is no document, or too large
    TIME = "time"
    MEMORY = "memory"
    CRASH = "crash"  # its process died
    PROTOCOL = "protocol"  # its process sent or did what no worker does
    HOST = "host"  # nothing could be executed, by no fault of the plugin


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An execution without a result; `details` is JSON fit for a client, `traceback` is for administrators.

    `place` is the file and line that raised while the plugin was loaded, if that is known. `retryable` and
    `retry_after_s` are what the plugin's exception said of itself, None where it said nothing.
    """

    incident: Incident
    message: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problems: Sequence[FieldProblem] = ()
    traceback: str | None = None
    place: str | None = None
    retryable: bool | None = None
    retry_after_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the host grants at most to any execution, whatever plugin or job ask for."""

    timeout_s: float
    memory_bytes: int
    result_bytes: int  # of the result with its bytes and all artifacts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one execution gets: the lowest of what host, plugin and job say."""

    setup_s: float
    run_s: float
    memory_bytes: int


def limits_of(manifest: PluginManifest, call: Call, ceilings: Ceilings) -> Limits:
    """The limits of one call; the job's own time limit is for `run` alone."""
    plugin_s = ceilings.timeout_s if manifest.timeout_s is None else min(manifest.timeout_s, ceilings.timeout_s)
    asked = ceilings.memory_bytes if manifest.memory_mb is None else manifest.memory_mb * MB
    return Limits(
        setup_s=plugin_s if manifest.setup_timeout_s is None else min(manifest.setup_timeout_s, ceilings.timeout_s),
        run_s=plugin_s if call.timeout_s is None else min(call.timeout_s, plugin_s),
        memory_bytes=int(min(asked, ceilings.memory_bytes)),  # in this order: what is asked may be infinite by now
    )


#: The document a plugin returned, its bytes as bytes, or why there is none.
Outcome = dict[str, Any] | Failure


class Executor(Protocol):
    """Executes plugins somewhere else than in the service process. No method raises for what a plugin does."""

    @property
    def capacity(self) -> int:
        """How many calls run at once; more of them wait."""

    async def start(self) -> None:
        """Make ready for calls; raises `StartupError` where that is impossible."""

    async def close(self) -> None:
        """End everything that still runs; returns when no plugin code is left running."""

    async def ended(self) -> None:
        """Return once something has ended without which calls cannot be executed or watched."""

    async def describe(self, source: PluginSource, ceilings: Ceilings) -> PluginManifest | Failure:
        """Load the plugin where it would be executed and tell its manifest."""

    async def submit(self, source: PluginSource, payload: Mapping[str, Any], call: Call, ceilings: Ceilings) -> Outcome:
        """Execute the plugin once, within `limits_of` it.

        `call.on_progress` is called on the event loop, throttled; `call.report` is filled, whatever the outcome.
        Cancelling the awaiting task cancels the call: `CancelledError` comes out when the plugin has stopped.
        """
