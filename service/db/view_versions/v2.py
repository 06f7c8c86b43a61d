"""Version 2 of the reporting contract: reports over all jobs beside the jobs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The columns of each view. Once this version is in a release, what stands here is promised, and never changed.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "report_jobs": (
        "job_id", "tenant", "plugin", "plugin_version", "status", "priority", "attempt", "max_attempts",
        "created_at", "run_at", "started_at", "finished_at", "queue_s", "run_s", "total_s", "error_type",
        "error_message", "cancel_reason", "tags", "metadata", "parent_job_id", "batch_id", "schedule_id",
    ),
    "report_attempts": (
        "job_id", "tenant", "fence", "attempt", "plugin", "plugin_version", "instance_id", "worker_pid",
        "outcome", "started_at", "finished_at", "run_s", "plugin_s", "cpu_s", "peak_memory_bytes",
        "error_type", "error_message",
    ),
    "report_plugins": (
        "tenant", "plugin", "submitted_count", "pending_count", "running_count", "succeeded_count",
        "failed_count", "cancelled_count", "deleted_count", "success_rate", "attempt_count", "retry_count",
        "lost_count", "timed_count", "queue_mean_s", "queue_p50_s", "queue_p95_s", "queue_p99_s",
        "run_mean_s", "run_p50_s", "run_p95_s", "run_p99_s", "run_total_s", "cpu_total_s",
        "peak_memory_bytes", "last_used_at",
    ),
    "report_hourly": (
        "hour", "tenant", "plugin", "submitted_count", "started_count", "succeeded_count", "failed_count",
        "cancelled_count", "success_rate", "attempt_count", "retry_count", "lost_count", "timed_count",
        "queue_mean_s", "queue_p50_s", "queue_p95_s", "queue_p99_s", "run_mean_s", "run_p50_s", "run_p95_s",
        "run_p99_s", "run_total_s", "cpu_total_s", "peak_memory_bytes",
    ),
    "report_daily": (
        "day", "tenant", "plugin", "submitted_count", "started_count", "succeeded_count", "failed_count",
        "cancelled_count", "success_rate", "attempt_count", "retry_count", "lost_count", "timed_count",
        "queue_mean_s", "queue_p50_s", "queue_p95_s", "queue_p99_s", "run_mean_s", "run_p50_s", "run_p95_s",
        "run_p99_s", "run_total_s", "cpu_total_s", "peak_memory_bytes",
    ),
    "report_failures": (
        "tenant", "plugin", "plugin_version", "error_type", "message_fingerprint", "message_pattern",
        "job_count", "first_seen_at", "last_seen_at", "last_job_id",
    ),
    "report_backlog": (
        "tenant", "plugin", "due_count", "scheduled_count", "running_count", "oldest_due_at",
        "oldest_age_s", "rate_in_per_s", "rate_out_per_s", "eta_s", "as_of",
    ),
    "report_workers": (
        "instance_id", "version", "host", "pid", "started_at", "beat_at", "stopped_at", "state",
        "running_count", "attempt_count", "succeeded_count", "failed_count", "lost_count", "busy_total_s",
        "last_ended_at",
    ),
    "report_webhooks": (
        "webhook_id", "tenant", "url", "state", "failing_since", "created_at", "pending_count",
        "delivered_count", "exhausted_count", "attempt_count", "last_status_code", "last_error",
        "last_delivered_at", "oldest_pending_at", "oldest_pending_age_s",
    ),
    "report_storage": (
        "kind", "item_count", "size_bytes",
    ),
    "report_buckets": (
        "up_to_ms", "value_s",
    ),
    "report_freshness": (
        "as_of", "rates_from", "rates_until",
    ),
    "report_schema_version": ("version",),
}  # fmt: skip

#: What this version says will be gone: a later one may leave it out.
DEPRECATED: Final[frozenset[tuple[str, str]]] = frozenset()

# Column names say the unit; times are UTC. A view must not alias a function call without AS, nor use strftime:
# clients that parse views themselves (DuckDB) stumble over both.

# A job that waited again and was then cancelled, or expired, has not ended by its execution; be it in the transaction
# in which that ended, and so at the same time.
_ENDED_BY_RUN: Final = """
    (status = 'SUCCESS' OR (status IN ('FAILED', 'CANCELLED') AND EXISTS (
        SELECT 1 FROM job_attempts AS last_run
        WHERE last_run.job_id = jobs.id AND last_run.fence = jobs.fence AND last_run.finished_at = jobs.finished_at
              AND CASE WHEN jobs.status = 'FAILED' THEN last_run.error_type = jobs.error_type
                       ELSE last_run.outcome = 'CANCELLED' OR (last_run.outcome <> 'RELEASED'
                            AND jobs.cancel_reason = 'requested while running') END)))"""


def _seconds(column: str) -> str:
    return f"CAST({column} AS DOUBLE PRECISION) / 1000"


def _share(part: str, whole: str) -> str:
    return f"CASE WHEN {whole} > 0 THEN CAST({part} AS DOUBLE PRECISION) / ({whole}) END"


#: How long jobs that ended by an execution waited and ran.
_TIMES: Final = ",\n               ".join(
    [
        "timed AS timed_count",
        *(
            text
            for measure in ("queue", "run")
            for text in (
                f"{_share(_seconds(f'{measure}_ms'), 'timed')} AS {measure}_mean_s",
                *(f"{measure}_p{percent}_s AS {measure}_p{percent}_s" for percent in (50, 95, 99)),
            )
        ),
        f"{_seconds('run_ms')} AS run_total_s",
        "CAST(cpu_us AS DOUBLE PRECISION) / 1000000 AS cpu_total_s",
        "peak_memory_bytes AS peak_memory_bytes",
    ]
)


#: Of the newest delivery to an endpoint that was tried.
def _last_tried(column: str) -> str:
    return f"""(
                   SELECT tried.{column} FROM webhook_deliveries AS tried
                   WHERE tried.endpoint_id = webhook_endpoints.id AND tried.attempt > 0
                   ORDER BY tried.id DESC LIMIT 1)"""  # noqa: S608 - names of ours


def _how_many(status: str) -> str:
    return f"CAST(sum(CASE WHEN status = '{status}' THEN 1 ELSE 0 END) AS BIGINT)"


def _periods(name: str, grain: str) -> str:
    return f"""
        SELECT period AS {name}, tenant AS tenant, plugin AS plugin, submitted AS submitted_count,
               started AS started_count, succeeded AS succeeded_count, failed AS failed_count,
               cancelled AS cancelled_count, {_share("succeeded", "succeeded + failed")} AS success_rate,
               attempts AS attempt_count, retried AS retry_count, lost AS lost_count,
               {_TIMES}
        FROM rollups WHERE grain = '{grain}'"""  # noqa: S608 - names of ours


VIEWS: Final[Mapping[str, str]] = {
    "report_jobs": f"""
        SELECT id AS job_id, tenant AS tenant, plugin AS plugin, plugin_version AS plugin_version, status AS status,
               priority AS priority, attempt AS attempt, max_attempts AS max_attempts, created_at AS created_at,
               run_at AS run_at, started_at AS started_at, finished_at AS finished_at,
               CASE WHEN status = 'RUNNING' OR {_ENDED_BY_RUN} THEN
                    CASE WHEN started_at > run_at THEN {{seconds(run_at, started_at)}} ELSE 0.0 END END AS queue_s,
               CASE WHEN {_ENDED_BY_RUN} THEN {{seconds(started_at, finished_at)}} END AS run_s,
               {{seconds(created_at, finished_at)}} AS total_s,
               error_type AS error_type, error_message AS error_message, cancel_reason AS cancel_reason,
               tags AS tags, metadata AS metadata, parent_id AS parent_job_id, batch_id AS batch_id,
               schedule_id AS schedule_id
        FROM jobs""",  # noqa: S608 - names of ours
    "report_attempts": """
        SELECT job_attempts.job_id AS job_id, jobs.tenant AS tenant, job_attempts.fence AS fence,
               job_attempts.attempt AS attempt, job_attempts.plugin AS plugin,
               job_attempts.plugin_version AS plugin_version, job_attempts.owner AS instance_id,
               job_attempts.worker_pid AS worker_pid, job_attempts.outcome AS outcome,
               job_attempts.started_at AS started_at, job_attempts.finished_at AS finished_at,
               {seconds(job_attempts.started_at, job_attempts.finished_at)} AS run_s,
               job_attempts.run_s AS plugin_s, job_attempts.cpu_s AS cpu_s,
               job_attempts.peak_memory_bytes AS peak_memory_bytes, job_attempts.error_type AS error_type,
               job_attempts.error_message AS error_message
        FROM job_attempts LEFT JOIN jobs ON jobs.id = job_attempts.job_id""",
    "report_plugins": f"""
        SELECT tenant AS tenant, plugin AS plugin, submitted AS submitted_count,
               submitted - started + requeued - ended_waiting AS pending_count,
               started - requeued - (succeeded + failed + cancelled - ended_waiting) AS running_count,
               succeeded AS succeeded_count, failed AS failed_count, cancelled AS cancelled_count,
               deleted AS deleted_count, {_share("succeeded", "succeeded + failed")} AS success_rate,
               attempts AS attempt_count, retried AS retry_count, lost AS lost_count,
               {_TIMES},
               last_used_at AS last_used_at
        FROM rollups WHERE grain = 'all'""",  # noqa: S608 - names of ours
    "report_hourly": _periods("hour", "hour"),
    "report_daily": _periods("day", "day"),
    "report_failures": """
        SELECT tenant AS tenant, plugin AS plugin, CASE WHEN plugin_version <> '' THEN plugin_version END
               AS plugin_version, error_type AS error_type, fingerprint AS message_fingerprint,
               message AS message_pattern, jobs AS job_count, first_seen_at AS first_seen_at,
               last_seen_at AS last_seen_at, last_job_id AS last_job_id
        FROM rollup_failures""",
    "report_backlog": f"""
        SELECT parts.tenant AS tenant, parts.plugin AS plugin, parts.due_count AS due_count,
               parts.scheduled_count AS scheduled_count, parts.running_count AS running_count,
               parts.oldest_due_at AS oldest_due_at,
               CASE WHEN parts.oldest_due_at IS NOT NULL THEN CASE WHEN parts.oldest_due_at < rollup_state.as_of
                    THEN {{seconds(parts.oldest_due_at, rollup_state.as_of)}} ELSE 0.0 END END AS oldest_age_s,
               CAST(parts.arrived AS DOUBLE PRECISION) / 300 AS rate_in_per_s,
               CAST(parts.ended AS DOUBLE PRECISION) / 300 AS rate_out_per_s,
               {_share("parts.due_count * 300", "parts.ended")} AS eta_s, rollup_state.as_of AS as_of
        FROM (
            SELECT tenant AS tenant, plugin AS plugin, CAST(sum(due) AS BIGINT) AS due_count,
                   CAST(sum(scheduled) AS BIGINT) AS scheduled_count, CAST(sum(running) AS BIGINT) AS running_count,
                   min(due_at) AS oldest_due_at, CAST(sum(arrived) AS BIGINT) AS arrived,
                   CAST(sum(ended) AS BIGINT) AS ended
            FROM (
                SELECT tenant AS tenant, plugin AS plugin, 1 AS due, 0 AS scheduled, 0 AS running, run_at AS due_at,
                       0 AS arrived, 0 AS ended
                FROM jobs WHERE status = 'PENDING' AND due
                UNION ALL
                SELECT tenant, plugin, 0, 1, 0, NULL, 0, 0 FROM jobs WHERE status = 'PENDING' AND NOT due
                UNION ALL
                SELECT tenant, plugin, 0, 0, 1, NULL, 0, 0 FROM jobs WHERE status = 'RUNNING'
                UNION ALL
                SELECT rollups.tenant, rollups.plugin, 0, 0, 0, NULL, rollups.submitted,
                       rollups.succeeded + rollups.failed + rollups.cancelled
                FROM rollup_state JOIN rollups
                     ON rollups.period >= rollup_state.rates_from AND rollups.period < rollup_state.rates_until
                WHERE rollups.grain = 'minute'
                UNION ALL
                SELECT tenant, plugin, 0, 0, 0, NULL, 0, 0 FROM rollups WHERE grain = 'all'
            ) AS each_part
            GROUP BY tenant, plugin
        ) AS parts CROSS JOIN rollup_state""",  # noqa: S608 - names of ours
    "report_workers": """
        SELECT instances.id AS instance_id, instances.version AS version, instances.host AS host,
               instances.pid AS pid, instances.started_at AS started_at, instances.beat_at AS beat_at,
               instances.stopped_at AS stopped_at,
               CASE WHEN instances.stopped_at IS NOT NULL THEN 'stopped'
                    WHEN {seconds(instances.beat_at, rollup_state.as_of)} > 120 THEN 'silent'
                    ELSE 'working' END AS state,
               coalesce(held.jobs, 0) AS running_count, coalesce(rollup_workers.attempts, 0) AS attempt_count,
               coalesce(rollup_workers.succeeded, 0) AS succeeded_count,
               coalesce(rollup_workers.failed, 0) AS failed_count, coalesce(rollup_workers.lost, 0) AS lost_count,
               CAST(coalesce(rollup_workers.busy_ms, 0) AS DOUBLE PRECISION) / 1000 AS busy_total_s,
               rollup_workers.last_ended_at AS last_ended_at
        FROM instances CROSS JOIN rollup_state
             LEFT JOIN rollup_workers ON rollup_workers.owner = instances.id
             LEFT JOIN (SELECT owner AS owner, count(*) AS jobs FROM jobs WHERE status = 'RUNNING' GROUP BY owner)
                       AS held ON held.owner = instances.id""",
    "report_webhooks": f"""
        SELECT webhook_endpoints.id AS webhook_id, webhook_endpoints.tenant AS tenant, webhook_endpoints.url AS url,
               CASE WHEN NOT webhook_endpoints.enabled THEN 'disabled'
                    WHEN webhook_endpoints.failing_since IS NOT NULL THEN 'failing' ELSE 'working' END AS state,
               webhook_endpoints.failing_since AS failing_since, webhook_endpoints.created_at AS created_at,
               coalesce(counted.pending, 0) AS pending_count, coalesce(counted.delivered, 0) AS delivered_count,
               coalesce(counted.exhausted, 0) AS exhausted_count, coalesce(counted.attempts, 0) AS attempt_count,
               {_last_tried("last_status_code")} AS last_status_code,
               {_last_tried("last_error")} AS last_error,
               counted.last_delivered_at AS last_delivered_at, counted.oldest_pending_at AS oldest_pending_at,
               CASE WHEN counted.oldest_pending_at IS NOT NULL THEN
                    CASE WHEN counted.oldest_pending_at < rollup_state.as_of
                    THEN {{seconds(counted.oldest_pending_at, rollup_state.as_of)}} ELSE 0.0 END
                    END AS oldest_pending_age_s
        FROM webhook_endpoints CROSS JOIN rollup_state
             LEFT JOIN (
                SELECT endpoint_id AS endpoint_id, {_how_many("PENDING")} AS pending,
                       {_how_many("DELIVERED")} AS delivered, {_how_many("EXHAUSTED")} AS exhausted,
                       CAST(sum(attempt) AS BIGINT) AS attempts,
                       max(CASE WHEN status = 'DELIVERED' THEN finished_at END) AS last_delivered_at,
                       min(CASE WHEN status = 'PENDING' THEN created_at END) AS oldest_pending_at
                FROM webhook_deliveries GROUP BY endpoint_id) AS counted
             ON counted.endpoint_id = webhook_endpoints.id""",  # noqa: S608 - names of ours
    "report_storage": """
        SELECT 'jobs' AS kind, CAST(coalesce(sum(submitted - deleted), 0) AS BIGINT) AS item_count,
               CAST(NULL AS BIGINT) AS size_bytes
        FROM rollups WHERE grain = 'all'
        UNION ALL
        SELECT 'bytes_in_database', count(*), CAST(coalesce(sum(size_bytes), 0) AS BIGINT)
        FROM blobs WHERE data IS NOT NULL
        UNION ALL
        SELECT 'bytes_in_files', count(*), CAST(coalesce(sum(size_bytes), 0) AS BIGINT)
        FROM blobs WHERE data IS NULL
        UNION ALL
        SELECT 'database', NULL, database_bytes FROM rollup_state""",
    "report_buckets": """
        SELECT up_to_ms AS up_to_ms, value_s AS value_s FROM rollup_bounds""",
    "report_freshness": """
        SELECT as_of AS as_of, rates_from AS rates_from, rates_until AS rates_until FROM rollup_state""",
    "report_schema_version": "SELECT 2 AS version",
}
