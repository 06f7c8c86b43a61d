"""Databases of many jobs, their rows made by SQL: what a service would have written, in a hundredth of the time."""

from __future__ import annotations

import dataclasses
import time

from service.db.engine import create_migration_engine
from service.db.migrate import upgrade

DAYS = 30.0
#: Rows of one transaction.
CHUNK = 1_000_000

_SERIES = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})",
    "postgresql": "WITH n(i) AS (SELECT CAST(g AS bigint) FROM generate_series({first}, {last}) AS g)",
}
_TIME = {
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%fZ', {base} + {0}, 'unixepoch')",
    "postgresql": "date_trunc('milliseconds', to_timestamp({base} + {0}))",
}
_ID = {
    "sqlite": "printf('01900000-0000-7000-8000-%012x', {0})",
    "postgresql": "CAST('01900000-0000-7000-8000-' || lpad(to_hex(CAST({0} AS bigint)), 12, '0') AS uuid)",
}
#: Seconds after the beginning: each job waits up to 20 s and runs up to 5 s, mostly far less.
_CREATED = "(i * {step})"
_STARTED = "(i * {step} + 0.02 + (i * 7919 % 1000) * (i * 7919 % 1000) * 0.00002)"
_FINISHED = f"({_STARTED} + 0.05 + (i * 104729 % 997) * (i * 104729 % 997) * 0.000005)"
_ENDED = "CASE WHEN i % 50 = 0 THEN 'FAILED' WHEN i % 67 = 0 THEN 'CANCELLED' ELSE 'SUCCESS' END"
_STATE = "CASE WHEN i > {jobs} - {jobs} / 100 THEN 'PENDING' ELSE " + _ENDED + " END"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the jobs are, as SQL expressions of their number `i`; `payload` is JSON."""

    plugin: str = "'plugin_' || (i % 6)"
    state: str = _STATE
    tenant: str = "CASE WHEN i % 10 = 0 THEN 'acme' ELSE 'default' END"
    payload: str = "{}"


MIXED = Rows()
#: Of a plugin that everybody has: all have ended, or all are to be claimed.
ENDED = Rows(plugin="'echo'", state=_ENDED, payload='{"text": "' + "x" * 150 + '"}')
QUEUED = dataclasses.replace(ENDED, state="'PENDING'", tenant="'default'")

FILL = (
    """
    INSERT INTO jobs (id, tenant, plugin, plugin_version, status, rank, priority, due, run_at, attempt, max_attempts,
        lost, max_lost, fence, event_count, created_at, started_at, finished_at, error_type, error_message, error,
        cancel_reason, tags, metadata, artifacts, payload, result)
    {series}, job AS (
        SELECT i, {state} AS state, {created} AS created, {started} AS started, {finished} AS finished FROM n)
    SELECT {id}, {tenant}, {plugin}, '1.0', state, i, 0, {true},
        created, CASE WHEN state = 'PENDING' THEN 0 ELSE 1 END, 1, 0, 3, CASE WHEN state = 'PENDING' THEN 0 ELSE 1 END,
        CASE WHEN state = 'PENDING' THEN 1 ELSE 3 END, created, CASE WHEN state <> 'PENDING' THEN started END,
        CASE WHEN state <> 'PENDING' THEN finished END, CASE WHEN state = 'FAILED' THEN 'ExecutionError' END,
        CASE WHEN state = 'FAILED' THEN
            'Page ' || i || ' has fault ' || substr('abcdefghijklmnopqrst', CAST(i / 50 % 20 + 1 AS integer), 1) END,
        CASE WHEN state = 'FAILED' THEN {object} END, CASE WHEN state = 'CANCELLED' THEN 'asked' END,
        CASE WHEN i % 2 = 0 THEN {even} ELSE {empty} END, {object}, {empty}, {payload},
        CASE WHEN state = 'SUCCESS' THEN {object} END
    FROM job""",
    """
    INSERT INTO job_tags (job_id, tag, tenant) SELECT id, 'even', tenant FROM jobs WHERE {these} AND tags <> {empty}""",
    """
    INSERT INTO job_attempts (job_id, fence, attempt, plugin, plugin_version, owner, outcome, started_at,
        finished_at, run_s, cpu_s, peak_memory_bytes, error_type)
    SELECT id, 1, 1, plugin, '1.0', {owner}, status, started_at, finished_at, 0.1, 0.1, 1000000, error_type
    FROM jobs WHERE {these} AND status <> 'PENDING'""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 1, 'submitted', created_at, {object} FROM jobs WHERE {these} ORDER BY id""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 2, 'started', started_at, {fence} FROM jobs WHERE {these} AND status <> 'PENDING' ORDER BY id""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 3, lower(status), finished_at, {fence} FROM jobs
    WHERE {these} AND status <> 'PENDING' ORDER BY id""",
)


async def fill(url: str, jobs: int, *, days: float = DAYS, rows: Rows = MIXED) -> None:
    """Make the rows of so many days, numbered from 1, then let the database look at how many there are."""
    kind = url.partition("+")[0]
    engine = create_migration_engine(url)
    for first in range(1, jobs + 1, CHUNK):
        values = _values(kind, jobs, days, rows, range(first, min(first + CHUNK, jobs + 1)))
        async with engine.begin() as connection:
            for statement in FILL:
                await connection.exec_driver_sql(_fill(statement, values))
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("ANALYZE" if kind == "sqlite" else "VACUUM ANALYZE")
    await engine.dispose()


async def prepare(url: str, jobs: int, rows: Rows, *, days: float = DAYS) -> None:
    """A new database of so many jobs, with nothing left to fold."""
    await upgrade(url)
    await fill(url, jobs, days=days, rows=rows)
    await mark_folded(url)


async def mark_folded(url: str) -> None:
    """Have the rollups leave out what was filled: the service does not fold it while it is measured."""
    engine = create_migration_engine(url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE rollup_state SET position = (SELECT coalesce(max(position), 0) FROM job_events)"
        )
    await engine.dispose()


def job_id(number: int) -> str:
    """The id of a job that `fill` made."""
    return f"01900000-0000-7000-8000-{number:012x}"


def _values(kind: str, jobs: int, days: float, rows: Rows, numbers: range) -> dict[str, object]:
    as_json = "'{}'" if kind == "sqlite" else "CAST('{}' AS jsonb)"
    span = days * 86_400
    parts = {
        "jobs": jobs, "step": span / jobs, "base": int(time.time() - span), "first": numbers[0], "last": numbers[-1],
    }  # fmt: skip
    first_id, last_id = (_ID[kind].replace("{0}", str(number)) for number in (numbers[0], numbers[-1]))

    def at(expression: str) -> str:
        return _fill(_TIME[kind], {**parts, "0": expression})

    values: dict[str, object] = {
        **parts,
        "series": _fill(_SERIES[kind], parts), "state": _fill(rows.state, parts), "id": _ID[kind].replace("{0}", "i"),
        "created": at(_fill(_CREATED, parts)), "started": at(_fill(_STARTED, parts)),
        "finished": at(_fill(_FINISHED, parts)), "true": "1" if kind == "sqlite" else "true",
        "object": as_json, "empty": as_json.replace("{}", "[]"), "even": as_json.replace("{}", '["even"]'),
        "fence": as_json.replace("{}", '{"fence": 1}'), "tx": "NULL" if kind == "sqlite" else "0",
        "owner": "'00000000-0000-7000-9000-000000000001'", "these": f"id BETWEEN {first_id} AND {last_id}",
        "plugin": rows.plugin, "tenant": rows.tenant, "payload": as_json.replace("{}", rows.payload),
    }  # fmt: skip
    if kind == "postgresql":
        values["owner"] = f"CAST({values['owner']} AS uuid)"
    return values


def _fill(text: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text
