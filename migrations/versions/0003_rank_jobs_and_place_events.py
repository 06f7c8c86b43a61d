"""Give jobs a rank that ages, and what they belong to; give events a place among all events."""

from __future__ import annotations

import re
from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")

ADDED = ("rank", "batch_id", "schedule_id", "scheduled_for", "webhook_id")
SCHEDULED_HAS_SCHEDULE = "scheduled_for IS NULL OR schedule_id IS NOT NULL"
INDEXES = (
    ("ix_jobs_claimable", ["rank", "id"], "status = 'PENDING' AND due", False),
    ("ix_jobs_batch", ["batch_id", "id"], "batch_id IS NOT NULL", False),
    ("uq_jobs_firing", ["schedule_id", "scheduled_for"], "scheduled_for IS NOT NULL", True),
)
OLD_CLAIMABLE = ("ix_jobs_claimable", [sa.text("priority DESC"), "id"], "status = 'PENDING' AND due", False)
RANK = {
    "sqlite": "CAST(round((julianday(created_at) - 2440587.5) * 86400000) AS INTEGER) - priority * 60000",
    "postgresql": "CAST(extract(epoch FROM created_at) * 1000 AS bigint) - priority * 60000",
}


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.drop_index("ix_jobs_claimable", "jobs")
    if on_sqlite:
        # SQLite adds columns behind the wide ones only, where lists would have to read past those.
        added = (
            "rank BIGINT NOT NULL, \n\tbatch_id VARCHAR(36), \n\tschedule_id VARCHAR(36), \n\tscheduled_for DATETIME, "
            "\n\twebhook_id VARCHAR(36), "
        )
        check = f"CONSTRAINT ck_jobs_scheduled_has_schedule CHECK ({SCHEDULED_HAS_SCHEDULE}), "
        _rebuild(
            "jobs", [("\n\tpriority ", f"\n\t{added}\n\tpriority "), ("\n\tCONSTRAINT", f"\n\t{check}\n\tCONSTRAINT")]
        )
    else:
        for name, type_ in zip(ADDED, (sa.BigInteger(), Id, Id, Time, Id), strict=True):
            op.add_column("jobs", sa.Column(name, type_))
        op.execute(f"UPDATE jobs SET rank = {RANK['postgresql']}")  # noqa: S608 - from the table above
        op.alter_column("jobs", "rank", nullable=False)
        op.create_check_constraint(op.f("ck_jobs_scheduled_has_schedule"), "jobs", SCHEDULED_HAS_SCHEDULE)
    _create_indexes(*INDEXES)

    op.rename_table("job_events", "job_events_before")
    _create_events()
    tx = "NULL" if on_sqlite else "0"
    op.execute(
        f"INSERT INTO job_events (tx, job_id, n, type, at, data) SELECT {tx}, job_id, n, type, at, data "  # noqa: S608 - names of ours
        "FROM job_events_before ORDER BY at, job_id, n"
    )
    op.drop_table("job_events_before")
    if not on_sqlite:
        _rename_event_constraints()
    op.create_index(
        "ix_job_events_tx",
        "job_events",
        ["tx", "position"],
        sqlite_where=sa.text("tx IS NOT NULL"),
        postgresql_where=sa.text("tx IS NOT NULL"),
    )


def downgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.rename_table("job_events", "job_events_after")
    suffix = "" if on_sqlite else "_before"
    op.create_table(
        "job_events",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", Time, nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.CheckConstraint("n >= 1", name=op.f(f"ck_job_events_n{suffix}")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f(f"fk_job_events_job_id_jobs{suffix}"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "n", name=op.f(f"pk_job_events{suffix}")),
    )
    op.execute("INSERT INTO job_events SELECT job_id, n, type, at, data FROM job_events_after")
    op.drop_table("job_events_after")
    if not on_sqlite:
        _rename_event_constraints()
    for name, *_ in INDEXES:
        op.drop_index(name, "jobs")
    if on_sqlite:
        removed = [(rf"\n\t{name} [^\n]*", "") for name in ADDED]
        _rebuild("jobs", [*removed, (r"\n\tCONSTRAINT ck_jobs_scheduled_has_schedule [^\n]*", "")])
    else:
        op.drop_constraint("ck_jobs_scheduled_has_schedule", "jobs")
        for name in ADDED:
            op.drop_column("jobs", name)
    _create_indexes(OLD_CLAIMABLE)


def _create_indexes(*indexes: tuple[str, list[object], str, bool]) -> None:
    for name, columns, where, unique in indexes:
        op.create_index(
            name, "jobs", columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )


def _create_events() -> None:
    # On PostgreSQL names of constraints must differ while the table before stands beside.
    suffix = "" if op.get_bind().dialect.name == "sqlite" else "_before"
    op.create_table(
        "job_events",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("tx", sa.BigInteger()),
        sa.Column("job_id", Id, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", Time, nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.CheckConstraint("n >= 1", name=op.f(f"ck_job_events_n{suffix}")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f(f"fk_job_events_job_id_jobs{suffix}"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("position", name=op.f(f"pk_job_events{suffix}")),
        sa.UniqueConstraint("job_id", "n", name=op.f("uq_job_events_job_id_n")),
        sqlite_autoincrement=True,
    )


def _rename_event_constraints() -> None:
    for name in ("ck_job_events_n", "fk_job_events_job_id_jobs", "pk_job_events"):
        op.execute(f"ALTER TABLE job_events RENAME CONSTRAINT {name}_before TO {name}")


def _rebuild(table: str, changes: list[tuple[str, str]]) -> None:
    """Make a table of SQLite anew, its definition changed by the first match of each pattern; rows and indexes stay."""
    bind = op.get_bind()
    master = "SELECT sql FROM sqlite_master WHERE type = '{}' AND tbl_name = '{}' AND sql IS NOT NULL"
    definition = str(bind.exec_driver_sql(master.format("table", table)).scalar_one())
    indexes = [sql for (sql,) in bind.exec_driver_sql(master.format("index", table))]
    for pattern, replacement in changes:
        definition = re.sub(pattern, replacement.replace("\\", "\\\\"), definition, count=1)
    definition = re.sub(rf'^CREATE TABLE "?{table}"?', f"CREATE TABLE {table}_new", definition)
    bind.exec_driver_sql(definition)
    before, after = (
        [row[1] for row in bind.exec_driver_sql(f"PRAGMA table_info({name})")] for name in (table, f"{table}_new")
    )
    values: Mapping[str, str] = {**{name: name for name in before}, "rank": RANK["sqlite"]}
    kept = [name for name in after if name in values]
    bind.exec_driver_sql(
        f"INSERT INTO {table}_new ({', '.join(kept)}) SELECT {', '.join(values[name] for name in kept)} FROM {table}"  # noqa: S608 - names of ours
    )
    bind.exec_driver_sql(f"DROP TABLE {table}")
    bind.exec_driver_sql(f"ALTER TABLE {table}_new RENAME TO {table}")
    for sql in indexes:
        bind.exec_driver_sql(sql)
