"""What an upgrade of a full database of the first revision costs: how long the start takes, and what clients notice.

The service is started on it, killed half-way through filling the rollups, and started again, while a job is submitted
twenty times a second. At the end the rollups say what counting says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from alembic import command

from benchmarks.common import percentile, print_table, save
from benchmarks.databases import KINDS, fresh_databases
from benchmarks.filling import fill
from service.db.engine import create_migration_engine
from service.db.migrate import alembic_config, upgrade

RATE = 20
AIM_S = 1.0
BODY = {"plugin": "echo", "payload": {}, "run_at": "2999-01-01T00:00:00Z"}

_FOLDED = "SELECT position, (SELECT max(position) FROM job_events) FROM rollup_state"
_BY_ROLLUPS = """
    SELECT plugin, CAST(sum(submitted_count) AS bigint), CAST(sum(succeeded_count) AS bigint),
           CAST(sum(failed_count) AS bigint), CAST(sum(cancelled_count) AS bigint), CAST(sum(attempt_count) AS bigint)
    FROM report_plugins GROUP BY plugin ORDER BY plugin"""
_BY_COUNTING = """
    SELECT plugin, count(*), count(CASE WHEN status = 'SUCCESS' THEN 1 END),
           count(CASE WHEN status = 'FAILED' THEN 1 END), count(CASE WHEN status = 'CANCELLED' THEN 1 END),
           (SELECT count(*) FROM job_attempts WHERE job_attempts.plugin = jobs.plugin AND outcome IS NOT NULL)
    FROM jobs GROUP BY plugin ORDER BY plugin"""


class Service:
    """`jobservice serve` on the database, killed and started by hand."""

    def __init__(self, url: str, directory: Path) -> None:
        self._command = [
            *(sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(directory)),
            *("--database-url", url, "--workers", "1"),
        ]

    async def start(self) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        self._process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here yet
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout
        line = await asyncio.to_thread(self._process.stdout.readline)
        self.url = line.rpartition(" ")[2].strip()
        return time.monotonic() - began

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and return when the process has ended."""
        os.kill(self._process.pid, number)
        self._process.wait()


@contextlib.asynccontextmanager
async def submitting(url: str, times_s: list[float]) -> AsyncIterator[None]:
    """Submit at a fixed rate inside the block; seconds from when each was due to its 202."""

    async def submit(session: aiohttp.ClientSession, due: float) -> None:
        async with session.post("/v1/jobs", json=BODY) as response:
            if response.status != 202:
                raise RuntimeError(f"{response.status} {await response.text()}")
        times_s.append(time.monotonic() - due)

    async def all_the_time(session: aiohttp.ClientSession) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not enough.is_set():
                tasks.create_task(submit(session, due))
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    enough = asyncio.Event()
    async with aiohttp.ClientSession(url) as session:
        task = asyncio.create_task(all_the_time(session))
        try:
            yield
        finally:
            enough.set()
            await task


async def measure(url: str, jobs: int, directory: Path) -> dict[str, float]:
    """Upgrade a database of so many jobs; raises when the rollups are wrong at the end."""
    await upgrade(url)
    await fill(url, jobs)
    os.environ["JOBSERVICE_DATABASE_URL"] = url
    await asyncio.to_thread(command.downgrade, alembic_config(), "0001")
    service, times_s = Service(url, directory), list[float]()
    migrating_s = await service.start()
    began = time.monotonic()
    try:
        async with _reading(url) as read:

            async def until(share: float) -> None:
                while True:
                    ((position, last),) = await read(_FOLDED)
                    if position >= share * last:
                        return
                    await asyncio.sleep(0.2)

            async with submitting(service.url, times_s):
                await until(0.5)
            service.kill()
            again_s = await service.start()
            async with submitting(service.url, times_s):
                await until(0.9999)
            filling_s = time.monotonic() - began - again_s
            await until(1)
            found, counted = await read(_BY_ROLLUPS), await read(_BY_COUNTING)
            if found != counted:
                raise RuntimeError(f"The rollups say {found}, counting says {counted}.")
    finally:
        service.kill(signal.SIGTERM)
    return {
        "start with the migration: s": migrating_s,
        "start after the kill: s": again_s,
        "filling, beside the load: s": filling_s,
        "submissions": len(times_s),
        "submit p50: ms": 1000 * percentile(times_s, 0.5),
        "submit p99: ms": 1000 * percentile(times_s, 0.99),
        "slowest submit: ms": 1000 * max(times_s),
    }


@contextlib.asynccontextmanager
async def _reading(url: str) -> AsyncIterator[Callable[[str], Awaitable[list[tuple[Any, ...]]]]]:
    async def read(query: str) -> list[tuple[Any, ...]]:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.exec_driver_sql(query)]

    engine = create_migration_engine(url)
    try:
        yield read
    finally:
        await engine.dispose()


def run(jobs: int, kinds: list[str]) -> int:
    with fresh_databases(kinds) as urls, tempfile.TemporaryDirectory() as directory:
        results = {kind: asyncio.run(measure(url, jobs, Path(directory))) for kind, url in urls.items()}
    names = list(next(iter(results.values())))
    rows = [(name, *(f"{results[kind][name]:,.1f}" for kind in results)) for name in names]
    print_table(f"An upgrade of {jobs:,} jobs of the first revision, killed half-way", ("", *results), rows)
    save("upgrade", {"jobs": jobs, **results})
    return int(any(result["slowest submit: ms"] > 1000 * AIM_S for result in results.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    return run(args.jobs, args.databases)


if __name__ == "__main__":
    sys.exit(main())
