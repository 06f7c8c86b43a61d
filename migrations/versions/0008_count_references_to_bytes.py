"""Record who names which bytes, so that those can go that nobody names; and find jobs by when they ended.

What older versions left behind when jobs were deleted goes with this revision; its files follow when the service runs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")

INDEXES = (
    ("ix_jobs_finished", "jobs", ["finished_at", "id"], "finished_at IS NOT NULL"),
    ("ix_webhook_deliveries_pings", "webhook_deliveries", ["finished_at"], "job_id IS NULL"),
)
#: How a reference begins in the text of a document; in a string the quotes would be escaped.
MARK = "'\"$blob\":'"

# Every `{"$blob": {"sha256": ...}}` in a column; `{into}` are the first columns of the new row.
SQLITE_IN_DOCUMENT = f"""
    INSERT INTO {{table}} SELECT DISTINCT {{into}}, blobs.sha256
    FROM {{source}} CROSS JOIN json_tree({{source}}.{{column}}) AS tree
         JOIN blobs ON blobs.sha256 = json_extract(tree.value, '$.sha256')
    WHERE instr({{source}}.{{column}}, {MARK}) > 0 AND tree.key = '$blob' AND tree.type = 'object'"""  # noqa: S608 - names of ours""
POSTGRESQL_IN_DOCUMENT = f"""
    INSERT INTO {{table}} SELECT DISTINCT {{into}}, blobs.sha256
    FROM {{source}} CROSS JOIN LATERAL jsonb_path_query({{source}}.{{column}}, '$.**."$blob".sha256') AS named(sha256)
         JOIN blobs ON blobs.sha256 = named.sha256 #>> '{{{{}}}}'
    WHERE strpos(CAST({{source}}.{{column}} AS TEXT), {MARK}) > 0"""  # noqa: S608 - names of ours
SQLITE_ARTIFACTS = """
    INSERT INTO job_blobs SELECT DISTINCT jobs.id, 'result', blobs.sha256
    FROM jobs CROSS JOIN json_each(jobs.artifacts) AS artifact
         JOIN blobs ON blobs.sha256 = json_extract(artifact.value, '$.sha256')
    WHERE jobs.artifacts <> '[]' ON CONFLICT DO NOTHING"""
POSTGRESQL_ARTIFACTS = """
    INSERT INTO job_blobs SELECT DISTINCT jobs.id, 'result', blobs.sha256
    FROM jobs CROSS JOIN LATERAL jsonb_array_elements(jobs.artifacts) AS artifact(value)
         JOIN blobs ON blobs.sha256 = artifact.value ->> 'sha256'
    WHERE jobs.artifacts <> CAST('[]' AS JSONB) ON CONFLICT DO NOTHING"""
DOCUMENTS = (
    {"table": "job_blobs", "into": "jobs.id, 'payload'", "source": "jobs", "column": "payload"},
    {"table": "job_blobs", "into": "jobs.id, 'result'", "source": "jobs", "column": "result"},
    {"table": "schedule_blobs", "into": "schedules.id", "source": "schedules", "column": "payload"},
)
IS_NAMED = (
    "(EXISTS (SELECT 1 FROM job_blobs WHERE job_blobs.sha256 = blobs.sha256)"
    " OR EXISTS (SELECT 1 FROM schedule_blobs WHERE schedule_blobs.sha256 = blobs.sha256))"
)


def upgrade() -> None:
    _create_tables()
    is_sqlite = op.get_context().dialect.name == "sqlite"
    for document in DOCUMENTS:
        _run((SQLITE_IN_DOCUMENT if is_sqlite else POSTGRESQL_IN_DOCUMENT).format(**document))
    _run(SQLITE_ARTIFACTS if is_sqlite else POSTGRESQL_ARTIFACTS)
    _run(f"INSERT INTO blob_removals SELECT sha256, created_at FROM blobs WHERE data IS NULL AND NOT {IS_NAMED}")  # noqa: S608 - names of ours
    _run(f"DELETE FROM blobs WHERE NOT {IS_NAMED}")  # noqa: S608 - names of ours
    for name, table, columns, predicate in INDEXES:
        where = sa.text(predicate)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table)
    for table in ("blob_removals", "schedule_blobs", "job_blobs"):
        op.drop_table(table)


def _create_tables() -> None:
    op.create_table(
        "job_blobs",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.CheckConstraint("part IN ('payload', 'result')", name=op.f("ck_job_blobs_part")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE", name=op.f("fk_job_blobs_job_id_jobs")),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_job_blobs_sha256_blobs")),
        sa.PrimaryKeyConstraint("job_id", "part", "sha256", name=op.f("pk_job_blobs")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_blobs_sha256", "job_blobs", ["sha256"])
    op.create_table(
        "schedule_blobs",
        sa.Column("schedule_id", Id, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], ondelete="CASCADE", name=op.f("fk_schedule_blobs_schedule_id_schedules")
        ),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_schedule_blobs_sha256_blobs")),
        sa.PrimaryKeyConstraint("schedule_id", "sha256", name=op.f("pk_schedule_blobs")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_schedule_blobs_sha256", "schedule_blobs", ["sha256"])
    op.create_table(
        "blob_removals",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("due_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob_removals")),
    )
    op.create_index("ix_blob_removals_due_at", "blob_removals", ["due_at"])


def _run(text: str) -> None:
    # As it is: `:` and `%` in it are no parameters.
    op.get_bind().exec_driver_sql(text)
