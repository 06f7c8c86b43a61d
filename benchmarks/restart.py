"""How soon a killed service is ready again, and runs again what it was running, by the number of rows."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.table import Table

from benchmarks.common import console, job_service

COLUMNS = (
    "id, tenant, plugin, status, rank, priority, due, run_at, attempt, max_attempts, lost, max_lost, fence, owner, "
    "lease_until, event_count, created_at, started_at, finished_at, result, tags, metadata, artifacts, payload"
)
OWNER = "00000000-0000-7000-8000-000000000000"
ORPHANS = 4
RUNNING = "SELECT count(*) FROM jobs WHERE status = 'RUNNING' AND owner > ?"


def fill(path: Path, rows: int) -> None:
    """`rows` jobs that ended, an attempt and two events each; some were running when their service was killed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        at = "'2026-01-01T00:00:00.000Z'"
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        job_id = "printf('00000000-0000-7000-8000-%012d', i)"
        connection.execute(
            f"INSERT INTO jobs ({COLUMNS}) {numbers} SELECT {job_id}, 'default', 'sleep', "
            f"iif(i <= {ORPHANS}, 'RUNNING', 'SUCCESS'), 0, 0, 1, {at}, 1, 1, 0, 3, 1, "
            f"iif(i <= {ORPHANS}, '{OWNER}', NULL), "
            f"iif(i <= {ORPHANS}, {at}, NULL), 2, {at}, {at}, iif(i <= {ORPHANS}, NULL, {at}), "
            f"iif(i <= {ORPHANS}, NULL, '{{}}'), '[]', '{{}}', '[]', '{{\"seconds\": 60}}' FROM n",
            (rows,),
        )
        connection.execute(
            "INSERT INTO job_attempts (job_id, fence, attempt, plugin, owner, outcome, started_at, finished_at) "
            f"{numbers} SELECT {job_id}, 1, 1, 'sleep', '{OWNER}', iif(i <= {ORPHANS}, NULL, 'SUCCESS'), {at}, "
            f"iif(i <= {ORPHANS}, NULL, {at}) FROM n",
            (rows,),
        )
        for n in (1, 2):
            connection.execute(
                "INSERT INTO job_events (job_id, n, type, at, data) "
                f"{numbers} SELECT {job_id}, {n}, 'submitted', {at}, '{{}}' FROM n",
                (rows,),
            )
        connection.commit()


def measure(rows: int) -> tuple[float, float, int]:
    """Seconds from the start to ready, seconds from then until every orphan runs, bytes of the database."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        with job_service(data):
            pass
        fill(data / "jobs.db", rows)
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", directory, "--workers", "4"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            with contextlib.closing(sqlite3.connect(data / "jobs.db", timeout=60)) as connection:
                connection.execute("UPDATE jobs SET priority = priority WHERE rowid % 100 = 0")  # a log to recover
                connection.commit()
                while connection.execute(RUNNING, ("",)).fetchone()[0] < ORPHANS:
                    time.sleep(0.005)
                (before,) = connection.execute("SELECT max(owner) FROM jobs WHERE status = 'RUNNING'").fetchone()
            os.kill(process.pid, signal.SIGKILL)
        size = (data / "jobs.db").stat().st_size
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            url = process.stdout.readline().rpartition(" ")[2].strip()
            with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
                assert answer.status == 200
            ready = time.monotonic()
            with contextlib.closing(sqlite3.connect(f"file:{data / 'jobs.db'}?mode=ro", uri=True)) as reader:
                while reader.execute(RUNNING, (before,)).fetchone()[0] < ORPHANS:
                    time.sleep(0.005)
            again = time.monotonic()
            process.kill()
        return ready - started, again - ready, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    table = Table("rows", "database MB", "ready s", "orphans run again after s")
    for rows in parser.parse_args().rows:
        ready, again, size = measure(rows)
        table.add_row(f"{rows:,}", f"{size / 1e6:,.0f}", f"{ready:.2f}", f"{again:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
