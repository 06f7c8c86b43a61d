"""Create tenants and API keys, and the index by which a tenant finds its jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_queued", sa.Integer()),
        sa.Column("created_at", Time, nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name=op.f("ck_tenants_name")),
        sa.CheckConstraint("max_queued >= 0", name=op.f("ck_tenants_max_queued")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenants")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", Id, nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("roles", Json, nullable=False),
        sa.Column("rate_per_s", sa.Float()),
        sa.Column("burst", sa.Integer()),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("expires_at", Time),
        sa.Column("revoked_at", Time),
        sa.Column("last_used_at", Time),
        sa.CheckConstraint("roles <> '[]'", name=op.f("ck_api_keys_roles")),
        sa.CheckConstraint("(rate_per_s IS NULL) = (burst IS NULL)", name=op.f("ck_api_keys_rate_has_burst")),
        sa.CheckConstraint("rate_per_s > 0 AND burst >= 1", name=op.f("ck_api_keys_rate")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_api_keys_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_keys_prefix")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    # Where the service has one tenant, nothing is paid for this index.
    op.create_index(
        "ix_jobs_tenant",
        "jobs",
        ["tenant", "id"],
        sqlite_where=sa.text("tenant <> 'default'"),
        postgresql_where=sa.text("tenant <> 'default'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_tenant", "jobs")
    op.drop_table("api_keys")
    op.drop_table("tenants")
