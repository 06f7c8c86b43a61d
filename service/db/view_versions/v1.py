"""Version 1 of the reporting contract: jobs and their executions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The columns of each view. What stands here was once promised: it is never changed.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "report_jobs": (
        "job_id", "tenant", "plugin", "plugin_version", "status", "priority", "attempt", "max_attempts", "created_at",
        "run_at", "started_at", "finished_at", "queue_s", "run_s", "total_s", "error_type", "error_message",
        "cancel_reason", "tags", "metadata", "parent_job_id",
    ),
    "report_attempts": (
        "job_id", "fence", "attempt", "plugin", "plugin_version", "instance_id", "worker_pid", "outcome", "started_at",
        "finished_at", "run_s", "cpu_s", "peak_memory_bytes", "error_type", "error_message",
    ),
    "report_schema_version": ("version",),
}  # fmt: skip

#: What this version says will be gone: a later one may leave it out.
DEPRECATED: Final[frozenset[tuple[str, str]]] = frozenset()
