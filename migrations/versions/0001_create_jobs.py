"""Create jobs, their attempts and events, the bytes, the instances and the counters of plugins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("data", sa.LargeBinary()),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_blobs_size")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_table(
        "instances",
        sa.Column("id", Id, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("beat_at", Time, nullable=False),
        sa.Column("stopped_at", Time),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("request_hash", sa.Text()),
        sa.Column("parent_id", Id),
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("plugin_version", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("due", sa.Boolean(), nullable=False),
        sa.Column("run_at", Time, nullable=False),
        sa.Column("expires_at", Time),
        sa.Column("timeout_s", sa.Float()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("max_lost", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("owner", Id),
        sa.Column("lease_until", Time),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.Column("progress_fraction", sa.Float()),
        sa.Column("progress_message", sa.Text()),
        sa.Column("cancel_requested_at", Time),
        sa.Column("cancel_reason", sa.Text()),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("started_at", Time),
        sa.Column("finished_at", Time),
        sa.Column("error_type", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("tags", Json, nullable=False),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("artifacts", Json, nullable=False),
        sa.Column("error", Json),
        sa.Column("payload", Json, nullable=False),
        sa.Column("result", Json),
        sa.CheckConstraint(
            "(status = 'CANCELLED') = (cancel_reason IS NOT NULL)", name=op.f("ck_jobs_cancelled_has_reason")
        ),
        sa.CheckConstraint("(status = 'FAILED') = (error IS NOT NULL)", name=op.f("ck_jobs_failed_has_error")),
        sa.CheckConstraint("(status = 'RUNNING') = (owner IS NOT NULL)", name=op.f("ck_jobs_running_has_owner")),
        sa.CheckConstraint("(status = 'SUCCESS') = (result IS NOT NULL)", name=op.f("ck_jobs_success_has_result")),
        sa.CheckConstraint(
            "(status IN ('CANCELLED', 'FAILED', 'SUCCESS')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_terminal_has_finished_at"),
        ),
        sa.CheckConstraint(
            "status IN ('CANCELLED', 'FAILED', 'PENDING', 'RUNNING', 'SUCCESS')", name=op.f("ck_jobs_status")
        ),
        sa.CheckConstraint("(error IS NULL) = (error_message IS NULL)", name=op.f("ck_jobs_error_has_message")),
        sa.CheckConstraint("(error IS NULL) = (error_type IS NULL)", name=op.f("ck_jobs_error_has_type")),
        sa.CheckConstraint(
            "(idempotency_key IS NULL) OR (request_hash IS NOT NULL)", name=op.f("ck_jobs_key_has_hash")
        ),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_jobs_owner_has_lease")),
        sa.CheckConstraint("fence >= 0 AND attempt BETWEEN 0 AND max_attempts", name=op.f("ck_jobs_attempts")),
        sa.CheckConstraint("lost BETWEEN 0 AND max_lost", name=op.f("ck_jobs_losses")),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name=op.f("ck_jobs_priority")),
        sa.CheckConstraint("progress_fraction BETWEEN 0 AND 1", name=op.f("ck_jobs_progress")),
        sa.CheckConstraint("timeout_s > 0", name=op.f("ck_jobs_timeout")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "uq_jobs_idempotency",
        "jobs",
        ["tenant", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    for name, columns, where in (
        ("ix_jobs_claimable", [sa.text("priority DESC"), "id"], "status = 'PENDING' AND due"),
        ("ix_jobs_scheduled", ["run_at"], "status = 'PENDING' AND NOT due"),
        ("ix_jobs_expiring", ["expires_at"], "status = 'PENDING' AND expires_at IS NOT NULL"),
        ("ix_jobs_leased", ["lease_until"], "status = 'RUNNING'"),
        ("ix_jobs_failed", ["id"], "status = 'FAILED'"),
        ("ix_jobs_cancelled", ["id"], "status = 'CANCELLED'"),
    ):
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_index("ix_jobs_plugin", "jobs", ["plugin", "id"])
    op.create_table(
        "plugin_metrics",
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("success_count", sa.Integer(), nullable=False),
        sa.Column("error_count", sa.Integer(), nullable=False),
        sa.Column("timed_count", sa.Integer(), nullable=False),
        sa.Column("total_run_s", sa.Float(), nullable=False),
        sa.Column("last_run_s", sa.Float()),
        sa.Column("last_used_at", Time, nullable=False),
        sa.Column("consecutive_errors", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("plugin", name=op.f("pk_plugin_metrics")),
    )
    op.create_table(
        "job_attempts",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("plugin_version", sa.Text()),
        sa.Column("owner", Id, nullable=False),
        sa.Column("worker_pid", sa.Integer()),
        sa.Column("outcome", sa.Text()),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("finished_at", Time),
        sa.Column("run_s", sa.Float()),
        sa.Column("cpu_s", sa.Float()),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("error_type", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("metrics", Json),
        sa.Column("traceback", sa.Text()),
        sa.Column("output", sa.Text()),
        sa.CheckConstraint(
            "outcome IN ('SUCCESS', 'FAILED', 'CANCELLED', 'RELEASED', 'LOST')", name=op.f("ck_job_attempts_outcome")
        ),
        sa.CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name=op.f("ck_job_attempts_ended_has_outcome")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_attempts_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_job_attempts")),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", Time, nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.CheckConstraint("n >= 1", name=op.f("ck_job_events_n")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "n", name=op.f("pk_job_events")),
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_table("job_attempts")
    op.drop_table("plugin_metrics")
    op.drop_table("jobs")
    op.drop_table("instances")
    op.drop_table("blobs")
