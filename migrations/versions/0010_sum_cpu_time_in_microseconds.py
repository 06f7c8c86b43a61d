"""Sum CPU time in microseconds: of plugins that take less than a millisecond, milliseconds are nothing."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE rollups RENAME COLUMN cpu_ms TO cpu_us")
    op.execute("UPDATE rollups SET cpu_us = cpu_us * 1000")


def downgrade() -> None:
    op.execute("UPDATE rollups SET cpu_us = cpu_us / 1000")
    op.execute("ALTER TABLE rollups RENAME COLUMN cpu_us TO cpu_ms")
