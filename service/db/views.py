"""The reporting contract: the `report_*` views, created anew after every migration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

#: Raised whenever a column of a view changes its name, type or meaning.
REPORT_SCHEMA_VERSION: Final = 1

# Column names say the unit; times are UTC. A view must not alias a function call without AS, nor use strftime:
# clients that parse views themselves (DuckDB) stumble over both.
_VIEWS: Final[Mapping[str, str]] = {
    "report_jobs": """
        SELECT id AS job_id, tenant AS tenant, plugin AS plugin, plugin_version AS plugin_version, status AS status,
               priority AS priority, attempt AS attempt, max_attempts AS max_attempts, created_at AS created_at,
               run_at AS run_at, started_at AS started_at, finished_at AS finished_at,
               {seconds(run_at, started_at)} AS queue_s,
               {seconds(started_at, finished_at)} AS run_s,
               {seconds(created_at, finished_at)} AS total_s,
               error_type AS error_type, error_message AS error_message, cancel_reason AS cancel_reason,
               tags AS tags, metadata AS metadata, parent_id AS parent_job_id
        FROM jobs""",
    "report_attempts": """
        SELECT job_id AS job_id, fence AS fence, attempt AS attempt, plugin AS plugin,
               plugin_version AS plugin_version, owner AS instance_id, worker_pid AS worker_pid, outcome AS outcome,
               started_at AS started_at, finished_at AS finished_at, run_s AS run_s, cpu_s AS cpu_s,
               peak_memory_bytes AS peak_memory_bytes, error_type AS error_type, error_message AS error_message
        FROM job_attempts""",
    "report_schema_version": f"SELECT {REPORT_SCHEMA_VERSION} AS version",
}

_SECONDS: Final[Mapping[str, str]] = {
    "sqlite": "round((julianday({end}) - julianday({start})) * 86400.0, 3)",
    "postgresql": "round(extract(epoch FROM {end} - {start}), 3)::double precision",
}


def view_names() -> tuple[str, ...]:
    """Every view of the contract."""
    return tuple(_VIEWS)


def drop_views(connection: sa.Connection) -> None:
    """Take the views away, so that a migration may rebuild the tables beneath them."""
    for name in _VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


def create_views(connection: sa.Connection) -> None:
    """Make every view; they must not exist."""
    seconds = _SECONDS[connection.dialect.name]
    for name, text in _VIEWS.items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {_with_durations(text, seconds)}")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"COMMENT ON VIEW report_schema_version IS '{_fingerprint()}'")


def are_current(connection: sa.Connection) -> bool:
    """Whether the views are as `create_views` makes them. Only PostgreSQL knows; there a reader holds up a change."""
    if connection.dialect.name != "postgresql":
        return False
    made_of = "SELECT obj_description(to_regclass('report_schema_version'), 'pg_class')"
    return bool(connection.exec_driver_sql(made_of).scalar() == _fingerprint())


def _fingerprint() -> str:
    return hashlib.sha256(repr((sorted(_VIEWS.items()), _SECONDS["postgresql"])).encode()).hexdigest()


def _with_durations(text: str, seconds: str) -> str:
    for start, end in (("run_at", "started_at"), ("started_at", "finished_at"), ("created_at", "finished_at")):
        text = text.replace(f"{{seconds({start}, {end})}}", seconds.format(start=start, end=end))
    return text
