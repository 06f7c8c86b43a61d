"""The tables as they are at head. Internal: people query the `report_*` views (`service.db.views`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.models import DEFAULT_TENANT, TERMINAL, JobStatus

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
# On SQLite a `models.Timestamp`, declared DATETIME so that SQL clients know it for a time.
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
# INTEGER on SQLite, whose integers are of 64 bits, and which numbers rows by a key of that type alone.
BigInt = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def quoted(*statuses: JobStatus) -> str:
    """Statuses as SQL literals: a partial index serves only queries that spell its predicate alike."""
    return ", ".join(f"'{status}'" for status in sorted(statuses))


def _partial_indexes(*indexes: tuple[str, Sequence[sa.Column[Any]], str]) -> None:
    """Add indexes by name, columns and predicate; those whose names say so are unique."""
    for name, columns, predicate in indexes:
        where = sa.text(predicate)
        sa.Index(name, *columns, unique=name.startswith("uq_"), sqlite_where=where, postgresql_where=where)


_ANY_STATUS = quoted(*JobStatus)
_TERMINAL = quoted(*TERMINAL)
#: Where the service has one tenant, nothing is paid for an index by tenant.
NOT_DEFAULT_TENANT: Final = f"tenant <> '{DEFAULT_TENANT}'"

#: Of jobs that wait or run, spelled so that no other index of those serves lists of them, nor this one anything else.
UNFINISHED: Final = "finished_at IS NULL"

# `id` grows with time (UUIDv7), so the primary key is the order of lists. `rank` is the order of claims: see
# `models.rank`. The wide columns stand last, so that lists
# and reports never read their overflow pages.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_hash", sa.Text),
    sa.Column("parent_id", Id),
    sa.Column("plugin", sa.Text, nullable=False),
    sa.Column("plugin_version", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("rank", sa.BigInteger, nullable=False),
    sa.Column("batch_id", Id),
    sa.Column("schedule_id", Id),
    sa.Column("scheduled_for", Time),
    sa.Column("webhook_id", Id),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("due", sa.Boolean, nullable=False),
    sa.Column("run_at", Time, nullable=False),
    sa.Column("expires_at", Time),
    sa.Column("timeout_s", sa.Float),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("lost", sa.Integer, nullable=False),
    sa.Column("max_lost", sa.Integer, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("owner", Id),
    sa.Column("lease_until", Time),
    sa.Column("event_count", sa.Integer, nullable=False),
    sa.Column("progress_fraction", sa.Float),
    sa.Column("progress_message", sa.Text),
    sa.Column("cancel_requested_at", Time),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("started_at", Time),
    sa.Column("finished_at", Time),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("tags", Json, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("artifacts", Json, nullable=False),
    sa.Column("error", Json),
    sa.Column("payload", Json, nullable=False),
    sa.Column("result", Json),
    sa.CheckConstraint(f"status IN ({_ANY_STATUS})", name="status"),
    sa.CheckConstraint("(status = 'RUNNING') = (owner IS NOT NULL)", name="running_has_owner"),
    sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="owner_has_lease"),
    sa.CheckConstraint(f"(status IN ({_TERMINAL})) = (finished_at IS NOT NULL)", name="terminal_has_finished_at"),
    sa.CheckConstraint("(status = 'SUCCESS') = (result IS NOT NULL)", name="success_has_result"),
    sa.CheckConstraint("(status = 'FAILED') = (error IS NOT NULL)", name="failed_has_error"),
    sa.CheckConstraint("(error IS NULL) = (error_type IS NULL)", name="error_has_type"),
    sa.CheckConstraint("(error IS NULL) = (error_message IS NULL)", name="error_has_message"),
    sa.CheckConstraint("(status = 'CANCELLED') = (cancel_reason IS NOT NULL)", name="cancelled_has_reason"),
    sa.CheckConstraint("(idempotency_key IS NULL) OR (request_hash IS NOT NULL)", name="key_has_hash"),
    sa.CheckConstraint("scheduled_for IS NULL OR schedule_id IS NOT NULL", name="scheduled_has_schedule"),
    sa.CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
    sa.CheckConstraint("fence >= 0 AND attempt BETWEEN 0 AND max_attempts", name="attempts"),
    sa.CheckConstraint("lost BETWEEN 0 AND max_lost", name="losses"),
    sa.CheckConstraint("timeout_s > 0", name="timeout"),
    sa.CheckConstraint("progress_fraction BETWEEN 0 AND 1", name="progress"),
    sa.Index("ix_jobs_plugin", "plugin", "tenant", "id"),
)
_partial_indexes(
    ("ix_jobs_claimable", (jobs.c.rank, jobs.c.id), "status = 'PENDING' AND due"),
    ("ix_jobs_scheduled", (jobs.c.run_at,), "status = 'PENDING' AND NOT due"),
    ("ix_jobs_expiring", (jobs.c.expires_at,), "status = 'PENDING' AND expires_at IS NOT NULL"),
    ("ix_jobs_leased", (jobs.c.lease_until,), "status = 'RUNNING'"),
    ("ix_jobs_unfinished", (jobs.c.status, jobs.c.tenant, jobs.c.id), UNFINISHED),
    ("ix_jobs_failed", (jobs.c.tenant, jobs.c.id), "status = 'FAILED'"),
    ("ix_jobs_failed_of_plugin", (jobs.c.plugin, jobs.c.tenant, jobs.c.id), "status = 'FAILED'"),
    ("ix_jobs_error_type", (jobs.c.error_type, jobs.c.tenant, jobs.c.id), "error_type IS NOT NULL"),
    ("ix_jobs_cancelled", (jobs.c.tenant, jobs.c.id), "status = 'CANCELLED'"),
    ("ix_jobs_tenant", (jobs.c.tenant, jobs.c.id), NOT_DEFAULT_TENANT),
    ("ix_jobs_batch", (jobs.c.batch_id, jobs.c.id), "batch_id IS NOT NULL"),
    ("ix_jobs_finished", (jobs.c.finished_at, jobs.c.id), "finished_at IS NOT NULL"),
    ("uq_jobs_firing", (jobs.c.schedule_id, jobs.c.scheduled_for), "scheduled_for IS NOT NULL"),
    ("uq_jobs_idempotency", (jobs.c.tenant, jobs.c.idempotency_key), "idempotency_key IS NOT NULL"),
)

# The tags of jobs once more, for lists by tag: a look at each job's own would read all there are for a rare one.
job_tags = sa.Table(
    "job_tags",
    metadata,
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Index("ix_job_tags_tag", "tag", "tenant", "job_id"),
    sqlite_with_rowid=False,
)

# One row per execution, made in the transaction that claims the job.
job_attempts = sa.Table(
    "job_attempts",
    metadata,
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fence", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("plugin", sa.Text, nullable=False),
    sa.Column("plugin_version", sa.Text),
    sa.Column("owner", Id, nullable=False),
    sa.Column("worker_pid", sa.Integer),
    sa.Column("outcome", sa.Text),
    sa.Column("started_at", Time, nullable=False),
    sa.Column("finished_at", Time),
    sa.Column("run_s", sa.Float),
    sa.Column("cpu_s", sa.Float),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("metrics", Json),
    sa.Column("traceback", sa.Text),
    sa.Column("output", sa.Text),
    sa.CheckConstraint("outcome IN ('SUCCESS', 'FAILED', 'CANCELLED', 'RELEASED', 'LOST')", name="outcome"),
    sa.CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name="ended_has_outcome"),
)

# `n` counts from 1 without a gap; it is `jobs.event_count` of the same transaction. `position` grows over all jobs; on
# PostgreSQL, where transactions end in another order than they take positions, `tx` says which one wrote the event.
job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("position", BigInt, sa.Identity(), primary_key=True),
    sa.Column("tx", sa.BigInteger),
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("at", Time, nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.UniqueConstraint("job_id", "n"),
    sa.CheckConstraint("n >= 1", name="n"),
    # Empty on SQLite, where `position` alone is the order.
    sa.Index(
        "ix_job_events_tx",
        "tx",
        "position",
        sqlite_where=sa.text("tx IS NOT NULL"),
        postgresql_where=sa.text("tx IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# Bytes by content. `data` is NULL when they live in the object store under the same name.
blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("data", sa.LargeBinary),
    sa.CheckConstraint("size_bytes >= 0", name="size"),
)
# Each of them is in one of these, so that they are counted without reading any.
for _name, _where in (("ix_blobs_inline", "data IS NOT NULL"), ("ix_blobs_files", "data IS NULL")):
    sa.Index(_name, blobs.c.size_bytes, sqlite_where=sa.text(_where), postgresql_where=sa.text(_where))

# Who names which bytes: a row of `blobs` cannot go before these. A job whose document says more has lost its bytes.
job_blobs = sa.Table(
    "job_blobs",
    metadata,
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("part", sa.Text, primary_key=True),
    sa.Column("sha256", sa.String(64), sa.ForeignKey("blobs.sha256"), primary_key=True),
    sa.CheckConstraint("part IN ('payload', 'result')", name="part"),
    sa.Index("ix_job_blobs_sha256", "sha256"),
    sqlite_with_rowid=False,
)

# Files whose row is gone, or that never had one: to be removed as soon as nobody can be about to name them again.
blob_removals = sa.Table(
    "blob_removals",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("due_at", Time, nullable=False),
    sa.Index("ix_blob_removals_due_at", "due_at"),
)

# One row per start of a service process; its id is the `owner` of what it runs.
instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", Time, nullable=False),
    sa.Column("beat_at", Time, nullable=False),
    sa.Column("stopped_at", Time),
)

# Counters over all executions of a plugin, kept in the transactions that end them.
plugin_metrics = sa.Table(
    "plugin_metrics",
    metadata,
    sa.Column("plugin", sa.Text, primary_key=True),
    sa.Column("success_count", BigInt, nullable=False),
    sa.Column("error_count", BigInt, nullable=False),
    sa.Column("timed_count", BigInt, nullable=False),
    sa.Column("total_run_s", sa.Float, nullable=False),
    sa.Column("last_run_s", sa.Float),
    sa.Column("last_used_at", Time, nullable=False),
    sa.Column("consecutive_errors", BigInt, nullable=False),
    sa.Column("last_error", sa.Text),
)

# A row comes with a tenant's first key, or with a quota. `max_queued` NULL leaves it to the service's setting.
tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("max_queued", sa.Integer),
    sa.Column("created_at", Time, nullable=False),
    sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name="name"),
    sa.CheckConstraint("max_queued >= 0", name="max_queued"),
)

# Of a key only a hash is kept, and the beginning that may be shown.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("prefix", sa.Text, nullable=False, unique=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.name"), nullable=False),
    sa.Column("roles", Json, nullable=False),
    sa.Column("rate_per_s", sa.Float),
    sa.Column("burst", sa.Integer),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time),
    sa.Column("revoked_at", Time),
    sa.Column("last_used_at", Time),
    sa.CheckConstraint("roles <> '[]'", name="roles"),
    sa.CheckConstraint("(rate_per_s IS NULL) = (burst IS NULL)", name="rate_has_burst"),
    sa.CheckConstraint("rate_per_s > 0 AND burst >= 1", name="rate"),
)

# Where events of ended jobs go. An endpoint `of_jobs` hears only of jobs that name it (`jobs.webhook_id`).
webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("of_jobs", sa.Boolean, nullable=False),
    sa.Column("events", Json, nullable=False),
    sa.Column("plugins", Json),
    sa.Column("description", sa.Text),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("old_secret", sa.Text),
    sa.Column("old_secret_until", Time),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("failing_since", Time),
    sa.Column("created_at", Time, nullable=False),
    sa.CheckConstraint("events <> '[]'", name="events"),
    sa.CheckConstraint("plugins <> '[]'", name="plugins"),
    sa.CheckConstraint("NOT of_jobs OR plugins IS NULL", name="of_jobs_has_no_plugins"),
    sa.CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", name="old_secret_ends"),
    sa.CheckConstraint("enabled = (disabled_reason IS NULL)", name="disabled_has_reason"),
)

# What a job wants to be heard of at its webhook, where that is not everything.
webhook_job_events = sa.Table(
    "webhook_job_events",
    metadata,
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("events", Json, nullable=False),
    sa.CheckConstraint("events <> '[]'", name="events"),
)

# The outbox: one row an event and endpoint, made in the transaction that ends the job. `attempt` only rises, and fences
# late outcomes; while `lease_until` is to come somebody is at it, and `next_at` is the same time. `failures` counts
# since the delivery was made, or asked for again.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("endpoint_id", Id, sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    sa.Column("job_id", Id, sa.ForeignKey("jobs.id", ondelete="CASCADE")),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("next_at", Time),
    sa.Column("lease_until", Time),
    sa.Column("last_status_code", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("finished_at", Time),
    sa.CheckConstraint("status IN ('DELIVERED', 'EXHAUSTED', 'PENDING')", name="status"),
    sa.CheckConstraint("(status = 'PENDING') = (next_at IS NOT NULL)", name="pending_has_next_at"),
    sa.CheckConstraint("(status = 'PENDING') = (finished_at IS NULL)", name="ended_has_finished_at"),
    sa.CheckConstraint("lease_until IS NULL OR status = 'PENDING'", name="leased_is_pending"),
    sa.CheckConstraint("status <> 'EXHAUSTED' OR last_error IS NOT NULL", name="exhausted_has_error"),
    sa.CheckConstraint("(job_id IS NULL) = (type = 'webhook.ping')", name="ping_has_no_job"),
    sa.CheckConstraint("failures >= 0 AND attempt >= failures", name="attempts"),
    sa.Index("ix_webhook_deliveries_endpoint_id_id", "endpoint_id", "id"),
)

# The log of deliveries: one row an attempt whose outcome was recorded.
webhook_attempts = sa.Table(
    "webhook_attempts",
    metadata,
    sa.Column("delivery_id", Id, sa.ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("at", Time, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("took_s", sa.Float, nullable=False),
    sa.CheckConstraint("took_s >= 0", name="took"),
    sa.CheckConstraint("status_code IS NOT NULL OR error IS NOT NULL", name="says_something"),
)

_partial_indexes(
    ("uq_webhook_endpoints_of_jobs", (webhook_endpoints.c.tenant, webhook_endpoints.c.url), "of_jobs"),
    ("ix_webhook_endpoints_tenant", (webhook_endpoints.c.tenant,), "NOT of_jobs"),
    (
        "ix_webhook_deliveries_pending",
        (webhook_deliveries.c.endpoint_id, webhook_deliveries.c.next_at),
        "status = 'PENDING'",
    ),
    ("ix_webhook_deliveries_pings", (webhook_deliveries.c.finished_at,), "job_id IS NULL"),
    ("ix_webhook_deliveries_job", (webhook_deliveries.c.job_id,), "job_id IS NOT NULL"),
)

# What makes jobs by the clock. `next_at` is the next tick, NULL where there is none: paused, or ended. `options` are
# those of its jobs, `max_attempts` what they come to. The payload stands last, so that lists never read it.
schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("plugin", sa.Text, nullable=False),
    sa.Column("cron", sa.Text),
    sa.Column("every_s", sa.Integer),
    sa.Column("timezone", sa.Text, nullable=False),
    sa.Column("misfire", sa.Text, nullable=False),
    sa.Column("starts_at", Time),
    sa.Column("ends_at", Time),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("next_at", Time),
    sa.Column("last_at", Time),
    sa.Column("last_job_id", Id),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("options", Json, nullable=False),
    sa.Column("payload", Json, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
    sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name="name"),
    sa.CheckConstraint("(cron IS NULL) <> (every_s IS NULL)", name="cron_or_every_s"),
    sa.CheckConstraint("every_s >= 1", name="every_s"),
    sa.CheckConstraint("misfire IN ('all', 'once', 'skip')", name="misfire"),
    sa.CheckConstraint("starts_at <= ends_at", name="starts_before_it_ends"),
    sa.CheckConstraint("max_attempts >= 1", name="max_attempts"),
    sa.CheckConstraint("next_at IS NULL OR NOT paused", name="paused_has_no_next"),
    sa.CheckConstraint("next_at <= ends_at", name="next_before_it_ends"),
    sa.CheckConstraint("last_at < next_at", name="ticks_go_forward"),
    sa.CheckConstraint("(last_at IS NULL) = (last_job_id IS NULL)", name="last_has_job"),
    sa.Index(
        "ix_schedules_next",
        "next_at",
        "id",
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    ),
)

# As `job_blobs`, of the payloads of schedules.
schedule_blobs = sa.Table(
    "schedule_blobs",
    metadata,
    sa.Column("schedule_id", Id, sa.ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sha256", sa.String(64), sa.ForeignKey("blobs.sha256"), primary_key=True),
    sa.Index("ix_schedule_blobs_sha256", "sha256"),
    sqlite_with_rowid=False,
)

# What operators have set for a plugin. Where nothing is set there is no row: every claim asks this table.
plugin_controls = sa.Table(
    "plugin_controls",
    metadata,
    sa.Column("plugin", sa.Text, primary_key=True),
    sa.Column("paused_at", Time),
    sa.Column("refuses_jobs", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("concurrency", sa.Integer),
    sa.Column("rate_per_s", sa.Float),
    sa.Column("burst", sa.Integer),
    sa.Column("tokens", sa.Float),
    sa.Column("tokens_at", Time),
    sa.CheckConstraint(
        "paused_at IS NOT NULL OR concurrency IS NOT NULL OR rate_per_s IS NOT NULL", name="controls_something"
    ),
    sa.CheckConstraint("paused_at IS NOT NULL OR (NOT refuses_jobs AND reason IS NULL)", name="only_paused_refuses"),
    sa.CheckConstraint("concurrency >= 1", name="concurrency"),
    sa.CheckConstraint(
        "(rate_per_s IS NULL) = (burst IS NULL) AND (rate_per_s IS NULL) = (tokens IS NULL) "
        "AND (rate_per_s IS NULL) = (tokens_at IS NULL)",
        name="rate_has_bucket",
    ),
    sa.CheckConstraint("rate_per_s > 0 AND burst >= 1", name="rate"),
    sa.CheckConstraint("tokens BETWEEN 0 AND burst", name="tokens"),
)

# --- what reports read: see `service.db.rollups` -------------------------------------------------------------------

#: What a row of `rollups` counts.
ROLLUP_COUNTS: Final = (
    "submitted", "started", "requeued", "retried", "ended_waiting", "succeeded", "failed", "cancelled", "deleted",
    "attempts", "lost", "timed", "queue_ms", "run_ms", "cpu_us",
)  # fmt: skip
#: The percentiles that a row of `rollups` has, in seconds; of its buckets.
ROLLUP_PERCENTILES: Final = tuple(f"{measure}_p{p}_s" for measure in ("queue", "run") for p in (50, 95, 99))
_GRAINS: Final = "grain IN ('all', 'day', 'hour', 'minute')"

# What happened to the jobs of a tenant and plugin in a minute, hour or day, or ever; `period` is its beginning.
rollups = sa.Table(
    "rollups",
    metadata,
    sa.Column("grain", sa.Text, primary_key=True),
    sa.Column("period", Time, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("plugin", sa.Text, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ROLLUP_COUNTS),
    *(sa.Column(name, sa.Float) for name in ROLLUP_PERCENTILES),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    sa.Column("last_used_at", Time),
    sa.CheckConstraint(_GRAINS, name="grain"),
    sqlite_with_rowid=False,
)

# How long the timed jobs of a row of `rollups` waited and ran: how many in each bucket of `service.db.histogram`.
rollup_buckets = sa.Table(
    "rollup_buckets",
    metadata,
    sa.Column("grain", sa.Text, primary_key=True),
    sa.Column("period", Time, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("plugin", sa.Text, primary_key=True),
    sa.Column("measure", sa.Text, primary_key=True),
    sa.Column("up_to_ms", sa.BigInteger, primary_key=True),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    sa.CheckConstraint(_GRAINS, name="grain"),
    sa.CheckConstraint("measure IN ('queue', 'run')", name="measure"),
    sqlite_with_rowid=False,
)

# The buckets there are, for statements that look for the one of a duration.
rollup_bounds = sa.Table(
    "rollup_bounds",
    metadata,
    sa.Column("up_to_ms", BigInt, primary_key=True, autoincrement=False),
    sa.Column("value_s", sa.Float, nullable=False),
)

# FAILED jobs whose errors are alike. `plugin_version` is empty where it is not known.
rollup_failures = sa.Table(
    "rollup_failures",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("plugin", sa.Text, primary_key=True),
    sa.Column("plugin_version", sa.Text, primary_key=True),
    sa.Column("error_type", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    sa.Column("first_seen_at", Time, nullable=False),
    sa.Column("last_seen_at", Time, nullable=False),
    sa.Column("last_job_id", Id, nullable=False),
)

# What each instance has executed.
rollup_workers = sa.Table(
    "rollup_workers",
    metadata,
    sa.Column("owner", Id, primary_key=True),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("succeeded", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("lost", sa.BigInteger, nullable=False),
    sa.Column("busy_ms", sa.BigInteger, nullable=False),
    sa.Column("last_ended_at", Time),
)

# One row: how far the events have been folded into the rollups, by their place among all, and as of when.
rollup_state = sa.Table(
    "rollup_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tx", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("as_of", Time),
    sa.Column("rates_from", Time),
    sa.Column("rates_until", Time),
    sa.Column("database_bytes", sa.BigInteger),
    sa.CheckConstraint("id = 1", name="one_row"),
)
