"""How long every report view and every filter of the list of jobs takes, warm, on a database of many jobs.

The rows are made by SQL, a month of jobs of six plugins up to now. Folding them into the rollups is what an upgrade of
such a database does beside its work; that is timed too, and the longest page, during which nothing else is written.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from benchmarks.common import print_table, save
from benchmarks.databases import KINDS, fresh_databases
from benchmarks.filling import fill
from service.db import job_queries
from service.db.database import Database
from service.db.migrate import upgrade
from service.db.statements import Statement
from service.db.views import view_names
from service.models import JobQuery, JobStatus, Timestamp, timestamp
from service.reports import ReportService

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


def run(jobs: int, kinds: list[str]) -> None:
    with fresh_databases(kinds) as urls:
        results = {kind: asyncio.run(measure(url, jobs)) for kind, url in urls.items()}
    names = list(next(iter(results.values())))
    rows = [(name, *(f"{results[kind][name]:.1f}" for kind in results)) for name in names]
    print_table(f"{jobs:,} jobs, {timestamp()[:10]}; milliseconds unless said", ("", *results), rows)
    slow = [name for name in names for kind in results if ": s" not in name and results[kind][name] > AIM_MS]
    print(f"slower than {AIM_MS} ms: {', '.join(slow) or 'none'}")
    save("reports", {"jobs": jobs, **results})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    run(args.jobs, args.databases)


if __name__ == "__main__":
    main()
