"""Create webhook endpoints, the outbox of their deliveries and its log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")

INDEXES = (
    ("uq_webhook_endpoints_of_jobs", "webhook_endpoints", ["tenant", "url"], "of_jobs", True),
    ("ix_webhook_endpoints_tenant", "webhook_endpoints", ["tenant"], "NOT of_jobs", False),
    ("ix_webhook_deliveries_pending", "webhook_deliveries", ["endpoint_id", "next_at"], "status = 'PENDING'", False),
    ("ix_webhook_deliveries_job", "webhook_deliveries", ["job_id"], "job_id IS NOT NULL", False),
)


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("of_jobs", sa.Boolean(), nullable=False),
        sa.Column("events", Json, nullable=False),
        sa.Column("plugins", Json),
        sa.Column("description", sa.Text()),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text()),
        sa.Column("old_secret_until", Time),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("failing_since", Time),
        sa.Column("created_at", Time, nullable=False),
        sa.CheckConstraint("events <> '[]'", name=op.f("ck_webhook_endpoints_events")),
        sa.CheckConstraint("plugins <> '[]'", name=op.f("ck_webhook_endpoints_plugins")),
        sa.CheckConstraint("NOT of_jobs OR plugins IS NULL", name=op.f("ck_webhook_endpoints_of_jobs_has_no_plugins")),
        sa.CheckConstraint(
            "(old_secret IS NULL) = (old_secret_until IS NULL)", name=op.f("ck_webhook_endpoints_old_secret_ends")
        ),
        sa.CheckConstraint(
            "enabled = (disabled_reason IS NULL)", name=op.f("ck_webhook_endpoints_disabled_has_reason")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_table(
        "webhook_job_events",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("events", Json, nullable=False),
        sa.CheckConstraint("events <> '[]'", name=op.f("ck_webhook_job_events_events")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_webhook_job_events_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_webhook_job_events")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", Id, nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("job_id", Id),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_at", Time),
        sa.Column("lease_until", Time),
        sa.Column("last_status_code", sa.Integer()),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("finished_at", Time),
        sa.CheckConstraint(
            "status IN ('DELIVERED', 'EXHAUSTED', 'PENDING')", name=op.f("ck_webhook_deliveries_status")
        ),
        sa.CheckConstraint(
            "(status = 'PENDING') = (next_at IS NOT NULL)", name=op.f("ck_webhook_deliveries_pending_has_next_at")
        ),
        sa.CheckConstraint(
            "(status = 'PENDING') = (finished_at IS NULL)", name=op.f("ck_webhook_deliveries_ended_has_finished_at")
        ),
        sa.CheckConstraint(
            "lease_until IS NULL OR status = 'PENDING'", name=op.f("ck_webhook_deliveries_leased_is_pending")
        ),
        sa.CheckConstraint(
            "status <> 'EXHAUSTED' OR last_error IS NOT NULL", name=op.f("ck_webhook_deliveries_exhausted_has_error")
        ),
        sa.CheckConstraint(
            "(job_id IS NULL) = (type = 'webhook.ping')", name=op.f("ck_webhook_deliveries_ping_has_no_job")
        ),
        sa.CheckConstraint("failures >= 0 AND attempt >= failures", name=op.f("ck_webhook_deliveries_attempts")),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f("fk_webhook_deliveries_endpoint_id_webhook_endpoints"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index("ix_webhook_deliveries_endpoint_id_id", "webhook_deliveries", ["endpoint_id", "id"])
    op.create_table(
        "webhook_attempts",
        sa.Column("delivery_id", Id, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", Time, nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("took_s", sa.Float(), nullable=False),
        sa.CheckConstraint("took_s >= 0", name=op.f("ck_webhook_attempts_took")),
        sa.CheckConstraint(
            "status_code IS NOT NULL OR error IS NOT NULL", name=op.f("ck_webhook_attempts_says_something")
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f("fk_webhook_attempts_delivery_id_webhook_deliveries"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name=op.f("pk_webhook_attempts")),
    )
    for name, table, columns, where, unique in INDEXES:
        op.create_index(
            name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )


def downgrade() -> None:
    op.drop_table("webhook_attempts")
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_job_events")
    op.drop_table("webhook_endpoints")
