"""Index lists of jobs by tenant and filter together, and jobs by tag: a filter that finds little read all there is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

OLD = (
    ("ix_jobs_plugin", ["plugin", "id"], None),
    ("ix_jobs_unfinished", ["status", "id"], "finished_at IS NULL"),
    ("ix_jobs_failed", ["id"], "status = 'FAILED'"),
    ("ix_jobs_cancelled", ["id"], "status = 'CANCELLED'"),
)
NEW = (
    ("ix_jobs_plugin", ["plugin", "tenant", "id"], None),
    ("ix_jobs_unfinished", ["status", "tenant", "id"], "finished_at IS NULL"),
    ("ix_jobs_failed", ["tenant", "id"], "status = 'FAILED'"),
    ("ix_jobs_failed_of_plugin", ["plugin", "tenant", "id"], "status = 'FAILED'"),
    ("ix_jobs_error_type", ["error_type", "tenant", "id"], "error_type IS NOT NULL"),
    ("ix_jobs_cancelled", ["tenant", "id"], "status = 'CANCELLED'"),
)
TAGS = {
    "sqlite": "json_each(jobs.tags) AS each",
    "postgresql": "jsonb_array_elements_text(jobs.tags) AS each(value)",
}


def upgrade() -> None:
    _replace(OLD, NEW)
    op.create_table(
        "job_tags",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_tags_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "tag", name=op.f("pk_job_tags")),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO job_tags (job_id, tag, tenant) SELECT DISTINCT jobs.id, each.value, jobs.tenant "  # noqa: S608 - names of ours
        f"FROM jobs CROSS JOIN {TAGS[op.get_bind().dialect.name]} WHERE CAST(jobs.tags AS TEXT) <> '[]'"
    )
    op.create_index("ix_job_tags_tag", "job_tags", ["tag", "tenant", "job_id"])


def downgrade() -> None:
    op.drop_table("job_tags")
    _replace(NEW, OLD)


def _replace(
    old: tuple[tuple[str, list[str], str | None], ...], new: tuple[tuple[str, list[str], str | None], ...]
) -> None:
    for name, _, _ in old:
        op.drop_index(name, "jobs")
    for name, columns, condition in new:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
