"""Create schedules, and what operators set for plugins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text()),
        sa.Column("every_s", sa.Integer()),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("starts_at", Time),
        sa.Column("ends_at", Time),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("next_at", Time),
        sa.Column("last_at", Time),
        sa.Column("last_job_id", Id),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("payload", Json, nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name=op.f("ck_schedules_name")),
        sa.CheckConstraint("(cron IS NULL) <> (every_s IS NULL)", name=op.f("ck_schedules_cron_or_every_s")),
        sa.CheckConstraint("every_s >= 1", name=op.f("ck_schedules_every_s")),
        sa.CheckConstraint("misfire IN ('all', 'once', 'skip')", name=op.f("ck_schedules_misfire")),
        sa.CheckConstraint("starts_at <= ends_at", name=op.f("ck_schedules_starts_before_it_ends")),
        sa.CheckConstraint("max_attempts >= 1", name=op.f("ck_schedules_max_attempts")),
        sa.CheckConstraint("next_at IS NULL OR NOT paused", name=op.f("ck_schedules_paused_has_no_next")),
        sa.CheckConstraint("next_at <= ends_at", name=op.f("ck_schedules_next_before_it_ends")),
        sa.CheckConstraint("last_at < next_at", name=op.f("ck_schedules_ticks_go_forward")),
        sa.CheckConstraint("(last_at IS NULL) = (last_job_id IS NULL)", name=op.f("ck_schedules_last_has_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_schedules_tenant_name")),
    )
    op.create_index(
        "ix_schedules_next",
        "schedules",
        ["next_at", "id"],
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_table(
        "plugin_controls",
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("paused_at", Time),
        sa.Column("refuses_jobs", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("rate_per_s", sa.Float()),
        sa.Column("burst", sa.Integer()),
        sa.Column("tokens", sa.Float()),
        sa.Column("tokens_at", Time),
        sa.CheckConstraint(
            "paused_at IS NOT NULL OR concurrency IS NOT NULL OR rate_per_s IS NOT NULL",
            name=op.f("ck_plugin_controls_controls_something"),
        ),
        sa.CheckConstraint(
            "paused_at IS NOT NULL OR (NOT refuses_jobs AND reason IS NULL)",
            name=op.f("ck_plugin_controls_only_paused_refuses"),
        ),
        sa.CheckConstraint("concurrency >= 1", name=op.f("ck_plugin_controls_concurrency")),
        sa.CheckConstraint(
            "(rate_per_s IS NULL) = (burst IS NULL) AND (rate_per_s IS NULL) = (tokens IS NULL) "
            "AND (rate_per_s IS NULL) = (tokens_at IS NULL)",
            name=op.f("ck_plugin_controls_rate_has_bucket"),
        ),
        sa.CheckConstraint("rate_per_s > 0 AND burst >= 1", name=op.f("ck_plugin_controls_rate")),
        sa.CheckConstraint("tokens BETWEEN 0 AND burst", name=op.f("ck_plugin_controls_tokens")),
        sa.PrimaryKeyConstraint("plugin", name=op.f("pk_plugin_controls")),
    )


def downgrade() -> None:
    op.drop_table("plugin_controls")
    op.drop_index("ix_schedules_next", "schedules")
    op.drop_table("schedules")
