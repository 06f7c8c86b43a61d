"""Count executions of plugins in 64 bits: PostgreSQL ends 32 at 2,147,483,647. SQLite's integers have had them always.

Bounds of buckets are given, never drawn: the sequence that the sixth revision made for them goes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COUNTS = ("success_count", "error_count", "timed_count", "consecutive_errors")


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        return
    _count_in(sa.BigInteger())
    op.execute("ALTER TABLE rollup_bounds ALTER COLUMN up_to_ms DROP DEFAULT")
    op.execute("DROP SEQUENCE IF EXISTS rollup_bounds_up_to_ms_seq")


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        return
    _count_in(sa.Integer())


def _count_in(kind: sa.Integer) -> None:
    for name in COUNTS:
        op.alter_column("plugin_metrics", name, type_=kind, existing_nullable=False)
