"""One execution of a plugin as the layers around it see it, carried by a context variable.

`execute_plugin(plugin_name, payload)` is a fixed contract with two arguments. What the runner needs beside them, and
what it has to tell beside the pair it returns, travels in `current_call`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextvars import ContextVar

from service.models import Artifact


def _ignore_progress(fraction: float, message: str) -> None:
    """The listener of a call that nobody follows."""


@dataclasses.dataclass(slots=True, kw_only=True)
class CallReport:
    """What the runner measured and kept; filled in by ToolRunner, whatever the outcome."""

    plugin_version: str | None = None
    worker_pid: int | None = None
    run_s: float | None = None  # of `run` alone: neither queueing nor set-up
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None  # resident, of the worker's process group
    traceback: str | None = None
    retryable: bool | None = None  # the plugin's own word about its failure, where it gave one
    retry_after_s: float | None = None
    output: str | None = None  # the tail of what the plugin printed
    artifacts: list[Artifact] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True, kw_only=True)
class Call:
    """The job an execution belongs to. `on_progress(fraction, message)` is called on the event loop, throttled."""

    job_id: str
    attempt: int = 1
    timeout_s: float | None = None  # the job's own limit; the plugin's and the host's win if lower
    on_progress: Callable[[float, str], None] = _ignore_progress
    report: CallReport = dataclasses.field(default_factory=CallReport)


#: Set by JobManagementService around `execute_plugin`; None when a plugin is executed outside a job.
current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
