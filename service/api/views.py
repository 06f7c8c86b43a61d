"""Records as HTTP shows them: typed shapes, which the OpenAPI document shows too, and what fills them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NotRequired
from urllib.parse import quote

from typing_extensions import TypedDict

from service.api.problems import ErrorView
from service.codec import BLOB_KEY, escape_pointer
from service.models import (
    JSON,
    AttemptRecord,
    BlobRef,
    JobRecord,
    JobStatus,
    JobVersion,
    Progress,
    QueuePlace,
    Timestamp,
)
from service.plugin_controls import PluginControl
from service.plugin_management import PluginInfo, PluginState
from service.plugins.manifest import PluginManifest


class BytesView(TypedDict):
    """Bytes, shown by reference; `url` gives them."""

    sha256: str
    size: int
    media_type: str
    url: str


class ProgressView(TypedDict):
    """How far the plugin says it is, `fraction` in 0..1."""

    fraction: float
    message: str


class LinksView(TypedDict):
    """Where to go from here; `artifacts` by name."""

    self: str
    payload: str
    result: str
    attempts: str
    events: str
    cancel: str
    retry: str
    artifacts: dict[str, str]


class JobSummaryView(TypedDict):
    """A job without its input and result, as lists show it."""

    id: str
    plugin: str
    plugin_version: str | None
    status: JobStatus
    priority: int
    tags: list[str]
    metadata: dict[str, JSON]
    attempt: int
    max_attempts: int
    batch_id: str | None
    parent_id: str | None
    schedule_id: str | None
    webhook_id: str | None
    progress: ProgressView | None
    error: ErrorView | None
    created_at: Timestamp
    run_at: Timestamp
    expires_at: Timestamp | None
    started_at: Timestamp | None
    finished_at: Timestamp | None
    links: LinksView


class JobView(JobSummaryView):
    """A job; bytes in `payload` and `result` stand as references (`sha256`, `size`, `media_type`, `url`).

    `queue_position` is how many jobs start before it (null where it does not wait, or far behind), `eta_s` in about how
    many seconds it starts (null where that is not known, or its plugin is paused, limited or not installed here).
    Answers that are not asked for the record alone have null.
    """

    payload: dict[str, JSON]
    result: dict[str, JSON] | None
    queue_position: int | None
    eta_s: float | None


class JobListView(TypedDict):
    """A page of jobs, newest first; `next` is the cursor of the page behind it."""

    items: list[JobSummaryView]
    next: str | None


class AttemptView(TypedDict):
    """One execution of a job. Times are seconds; `outcome` is null while it runs."""

    attempt: int
    fence: int
    outcome: str | None
    started_at: Timestamp
    finished_at: Timestamp | None
    run_s: float | None
    cpu_s: float | None
    peak_memory_bytes: int | None
    plugin_version: str | None
    error_type: str | None
    error_message: str | None
    metrics: dict[str, float]


class AttemptListView(TypedDict):
    """Every execution of a job, oldest first."""

    items: list[AttemptView]


class PluginMetricsView(TypedDict):
    """Executions of a plugin over all processes; times are seconds of `run`."""

    success_count: int
    error_count: int
    last_run_s: float | None
    mean_run_s: float | None
    last_used_at: Timestamp | None


class PluginLimitsView(TypedDict):
    """What the plugin asks for; null leaves it to the host, whose ceilings win."""

    timeout_s: float | None
    memory_mb: float | None
    concurrency: int | None
    max_attempts: int | None


class PluginControlView(TypedDict):
    """What an operator has set for a plugin, over all processes; with `intake` it takes no jobs while it is paused."""

    paused: bool
    intake: bool
    reason: str | None
    paused_at: Timestamp | None
    concurrency: int | None
    rate_per_s: float | None
    burst: int | None


class PluginSummaryView(TypedDict):
    """A plugin without its schemas; `reason` says why it is not available and what to do."""

    name: str
    version: str | None
    description: str | None
    distribution: str
    state: PluginState
    healthy: bool
    reason: str | None
    limits: PluginLimitsView | None
    control: PluginControlView
    metrics: PluginMetricsView
    links: dict[str, str]


class PluginView(PluginSummaryView):
    """A plugin; the schemas (JSON Schema 2020-12) are null until it is available."""

    input_schema: dict[str, JSON] | None
    output_schema: dict[str, JSON] | None


class PluginListView(TypedDict):
    """Every installed plugin."""

    items: list[PluginSummaryView]


class StateView(TypedDict):
    """One word about the process, and what people should know although all is well."""

    status: str
    warnings: NotRequired[list[str]]


def job_url(job_id: str) -> str:
    """Where a job lives."""
    return f"/v1/jobs/{job_id}"


def job_summary(job: JobRecord) -> JobSummaryView:
    """`job` without payload and result."""
    url = job_url(job.id)
    return {
        "id": job.id,
        "plugin": job.plugin,
        "plugin_version": job.plugin_version,
        "status": job.status,
        "priority": job.priority,
        "tags": list(job.tags),
        "metadata": dict(job.metadata),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "batch_id": job.batch_id,
        "parent_id": job.parent_id,
        "schedule_id": job.schedule_id,
        "webhook_id": job.webhook_id,
        "progress": _progress(job.progress),
        "error": None if job.error is None else error_view(job.error),
        "created_at": job.created_at,
        "run_at": job.run_at,
        "expires_at": job.expires_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "links": {
            "self": url,
            "payload": url + "/payload",
            "result": url + "/result",
            "attempts": url + "/attempts",
            "events": url + "/events",
            "cancel": url + "/cancel",
            "retry": url + "/retry",
            "artifacts": {file.name: f"{url}/artifacts/{quote(file.name, safe='')}" for file in job.artifacts},
        },
    }


def job_view(job: JobRecord, place: QueuePlace | None = None) -> JobView:
    """`job` with payload and result, which must have been loaded, and its place in the queue."""
    url = job_url(job.id)
    return {
        **job_summary(job),
        "payload": referenced(job.payload or {}, url + "/payload"),
        "result": None if job.result is None else referenced(job.result, url + "/result"),
        "queue_position": None if place is None else place.position,
        "eta_s": None if place is None else place.eta_s,
    }


def job_etag(job: JobRecord, place: QueuePlace) -> str:
    """The version of `job_view`: each change of a job is an event, and counted; the count comes first."""
    waiting = "" if place.position is None else f".{place.position}.{place.eta_s or ''}"
    return f'W/"{job.event_count}.{job.created_at}{waiting}"'


_VERSION_IN_ETAG: Final = re.compile(r'"(\d{1,9})(?:\.(\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z))?[."]', re.ASCII)


def version_in(etags: str) -> JobVersion | None:
    """The version of a job that its client knows by a `job_etag`; the first, where there are several."""
    found = _VERSION_IN_ETAG.search(etags)
    return JobVersion(Timestamp(found[2] or ""), int(found[1])) if found else None


def _progress(progress: Progress | None) -> ProgressView | None:
    return None if progress is None else {"fraction": progress.fraction, "message": progress.message}


def error_view(error: Mapping[str, JSON]) -> ErrorView:
    """The inner error object of a job."""
    return {
        "type": error["type"],
        "message": error["message"],
        "plugin": error.get("plugin"),
        "details": error.get("details") or {},
        "timestamp": error["timestamp"],
    }


def attempt_view(attempt: AttemptRecord) -> AttemptView:
    """The public side of `attempt`: neither traceback, output, nor where it ran."""
    return {
        "attempt": attempt.attempt,
        "fence": attempt.fence,
        "outcome": attempt.outcome,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "run_s": attempt.run_s,
        "cpu_s": attempt.cpu_s,
        "peak_memory_bytes": attempt.peak_memory_bytes,
        "plugin_version": attempt.plugin_version,
        "error_type": attempt.error_type,
        "error_message": attempt.error_message,
        "metrics": dict(attempt.metrics),
    }


def plugin_summary(plugin: PluginInfo) -> PluginSummaryView:
    """`plugin` without its schemas."""
    manifest = plugin.manifest
    metrics = plugin.metrics
    url = f"/v1/plugins/{quote(plugin.name, safe='')}"
    return {
        "name": plugin.name,
        "version": None if manifest is None else manifest.version,
        "description": None if manifest is None else manifest.description,
        "distribution": plugin.source.distribution,
        "state": plugin.state,
        "healthy": plugin.healthy,
        "reason": plugin.reason,
        "limits": _limits(manifest),
        "control": _control(plugin.control),
        "metrics": {
            "success_count": metrics.success_count,
            "error_count": metrics.error_count,
            "last_run_s": metrics.last_run_s,
            "mean_run_s": metrics.mean_run_s,
            "last_used_at": metrics.last_used_at,
        },
        "links": {"self": url, "jobs": url + "/jobs"},
    }


def _limits(manifest: PluginManifest | None) -> PluginLimitsView | None:
    if manifest is None:
        return None
    return {
        "timeout_s": manifest.timeout_s,
        "memory_mb": manifest.memory_mb,
        "concurrency": manifest.concurrency,
        "max_attempts": manifest.max_attempts,
    }


def _control(control: PluginControl) -> PluginControlView:
    return {
        "paused": control.paused_at is not None,
        "intake": control.refuses_jobs,
        "reason": control.reason,
        "paused_at": control.paused_at,
        "concurrency": control.concurrency,
        "rate_per_s": control.rate_per_s,
        "burst": control.burst,
    }


def plugin_view(plugin: PluginInfo) -> PluginView:
    """`plugin` with its schemas."""
    manifest = plugin.manifest
    return {
        **plugin_summary(plugin),
        "input_schema": None if manifest is None else manifest.input_schema,
        "output_schema": None if manifest is None else manifest.output_schema,
    }


def referenced(document: Mapping[str, JSON], url: str) -> dict[str, JSON]:
    """A stored document in which each bytes value is a `BytesView` that leads to `url`."""
    view: dict[str, JSON] = _referenced(document, "", url)
    return view


#: What bytes can stand in; a pointer is spelled for nothing else.
_NESTED: Final = (dict, list)


def _referenced(value: Any, pointer: str, url: str) -> Any:
    if type(value) is dict:
        blob = _blob(value)
        if blob:
            view: BytesView = {
                "sha256": blob.sha256,
                "size": blob.size,
                "media_type": blob.media_type,
                "url": f"{url}?pointer={quote(pointer)}",
            }
            return view
        return {
            key: _referenced(item, f"{pointer}/{escape_pointer(key)}", url) if type(item) in _NESTED else item
            for key, item in value.items()
        }
    if type(value) is list:
        return [
            _referenced(item, f"{pointer}/{index}", url) if type(item) in _NESTED else item
            for index, item in enumerate(value)
        ]
    return value


def _blob(value: dict[str, Any]) -> BlobRef | None:
    if len(value) == 1 and BLOB_KEY in value:
        return BlobRef(**value[BLOB_KEY])
    return None
