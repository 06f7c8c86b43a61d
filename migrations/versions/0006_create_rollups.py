"""Create the rollups that reports read; `service.db.rollups` fills them, from the first event on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")

COUNTS = (
    "submitted", "started", "requeued", "retried", "ended_waiting", "succeeded", "failed", "cancelled", "deleted",
    "attempts", "lost", "timed", "queue_ms", "run_ms", "cpu_ms",
)  # fmt: skip
PERCENTILES = ("queue_p50_s", "queue_p95_s", "queue_p99_s", "run_p50_s", "run_p95_s", "run_p99_s")
GRAINS = "grain IN ('all', 'day', 'hour', 'minute')"
BLOB_INDEXES = (("ix_blobs_inline", "data IS NOT NULL"), ("ix_blobs_files", "data IS NULL"))
UNFINISHED = "finished_at IS NULL"
LONGEST_MS = 31 * 86_400_000


def upgrade() -> None:
    op.create_table(
        "rollups",
        *_group_columns(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        *(sa.Column(name, sa.Float()) for name in PERCENTILES),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("last_used_at", Time),
        sa.CheckConstraint(GRAINS, name=op.f("ck_rollups_grain")),
        sa.PrimaryKeyConstraint("grain", "period", "tenant", "plugin", name=op.f("pk_rollups")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollup_buckets",
        *_group_columns(),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("up_to_ms", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(GRAINS, name=op.f("ck_rollup_buckets_grain")),
        sa.CheckConstraint("measure IN ('queue', 'run')", name=op.f("ck_rollup_buckets_measure")),
        sa.PrimaryKeyConstraint(
            "grain", "period", "tenant", "plugin", "measure", "up_to_ms", name=op.f("pk_rollup_buckets")
        ),
        sqlite_with_rowid=False,
    )
    bounds = op.create_table(
        "rollup_bounds",
        sa.Column("up_to_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("value_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("up_to_ms", name=op.f("pk_rollup_bounds")),
    )
    op.bulk_insert(bounds, [{"up_to_ms": bound, "value_s": value} for bound, value in _buckets()])
    op.create_table(
        "rollup_failures",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("tenant", "plugin", "plugin_version", "error_type", "fingerprint", "message")
        ),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", Time, nullable=False),
        sa.Column("last_seen_at", Time, nullable=False),
        sa.Column("last_job_id", Id, nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "plugin", "plugin_version", "error_type", "fingerprint", name=op.f("pk_rollup_failures")
        ),
    )
    op.create_table(
        "rollup_workers",
        sa.Column("owner", Id, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("attempts", "succeeded", "failed", "lost", "busy_ms")
        ),
        sa.Column("last_ended_at", Time),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_rollup_workers")),
    )
    state = op.create_table(
        "rollup_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tx", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("as_of", Time),
        sa.Column("rates_from", Time),
        sa.Column("rates_until", Time),
        sa.Column("database_bytes", sa.BigInteger()),
        sa.CheckConstraint("id = 1", name=op.f("ck_rollup_state_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollup_state")),
    )
    op.bulk_insert(state, [{"id": 1, "tx": -1, "position": 0}])
    for name, where in BLOB_INDEXES:
        op.create_index(name, "blobs", ["size_bytes"], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    # Without it, a list of what waits or runs reads every job there ever was when nothing does.
    where = sa.text(UNFINISHED)
    op.create_index("ix_jobs_unfinished", "jobs", ["status", "id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index("ix_jobs_unfinished", "jobs")
    for name, _ in BLOB_INDEXES:
        op.drop_index(name, "blobs")
    for name in ("state", "workers", "failures", "bounds", "buckets"):
        op.drop_table(f"rollup_{name}")
    op.drop_table("rollups")


def _group_columns() -> list[sa.Column[str]]:
    types = {"grain": sa.Text(), "period": Time, "tenant": sa.Text(), "plugin": sa.Text()}
    return [sa.Column(name, type_, nullable=False) for name, type_ in types.items()]


def _buckets() -> list[tuple[int, float]]:
    """Bound in milliseconds and the value that stands for the bucket, in seconds."""
    buckets = [(0, 0.0)]
    while (below := buckets[-1][0]) < LONGEST_MS:
        bound = max(below + 1, below * 120 // 100)
        buckets.append((bound, round(2 * (below + 1) * bound / (below + 1 + bound) / 1000, 6)))
    return buckets
