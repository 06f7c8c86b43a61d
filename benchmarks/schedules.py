"""A schedule each second on two processes that share a PostgreSQL, one of them killed in the middle.

Prints how many ticks there were, how many made a job, and how late; fails when a tick made two, or when one was missed
that its misfire rule would have made up: `all` makes up every tick, `once` may pass by some of a moment when nobody was
there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.common import console
from benchmarks.databases import postgres_server

MISFIRES = ("once", "skip", "all")


@contextlib.contextmanager
def process(url: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `jobservice serve` on the database, and where it listens; killed when the block is left."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--workers", "1", "--data-dir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
    with (
        (folder.with_suffix(".log")).open("ab") as log,
        subprocess.Popen(
            [*command, "--database-url", url], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as started,
    ):
        try:
            assert started.stdout
            found = next((match for line in started.stdout if (match := re.search(r"http://\S+:\d+", line))), None)
            if found is None:
                raise RuntimeError(folder.with_suffix(".log").read_text())
            yield started, found[0]
        finally:
            started.kill()


def call(method: str, url: str, body: Any = None) -> Any:
    """The JSON answer to a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


async def firings(url: str, schedule_id: str) -> list[tuple[datetime, datetime]]:
    """Tick and creation of every job of a schedule, by tick."""
    import asyncpg

    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT scheduled_for, created_at FROM jobs WHERE schedule_id = $1 ORDER BY scheduled_for", schedule_id
        )
        return [(row[0], row[1]) for row in rows]
    finally:
        await connection.close()


def measure(url: str, folder: Path, *, seconds: int, kill_at: int) -> dict[str, list[tuple[datetime, datetime]]]:
    """The firings of one schedule a misfire rule in `seconds`."""
    with process(url, folder / "one") as (doomed, one), process(url, folder / "other") as (_, other):
        ids = {}
        for misfire in MISFIRES:
            body = {"name": misfire, "plugin": "echo", "payload": {}, "every_s": 1, "misfire": misfire}
            ids[misfire] = call("POST", f"{one}/v1/schedules", body)["id"]
        began = time.monotonic()
        time.sleep(kill_at)
        doomed.send_signal(signal.SIGKILL)
        # Half a second more: the last tick is made some time after it.
        time.sleep(max(0.0, began + seconds + 0.5 - time.monotonic()))
        for schedule_id in ids.values():
            call("POST", f"{other}/v1/schedules/{schedule_id}/pause")
        return {misfire: asyncio.run(firings(url, schedule_id)) for misfire, schedule_id in ids.items()}


def main() -> int:
    """Measure and print; 1 when a tick made two jobs, or one is missing that must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kill-at", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server:
        found = measure(server.new_database(), Path(folder), seconds=options.seconds, kill_at=options.kill_at)
    table = Table(title=f"{options.seconds} s, one of two processes killed at {options.kill_at} s")
    for heading in ("misfire", "ticks", "jobs", "twice", "median delay", "longest delay"):
        table.add_column(heading, justify="right")
    is_good = True
    for misfire, made in found.items():
        ticks = [tick for tick, _ in made]
        expected = round((ticks[-1] - ticks[0]).total_seconds()) + 1
        twice = len(ticks) - len(set(ticks))
        delays = sorted((created - tick).total_seconds() for tick, created in made)
        table.add_row(
            misfire,
            str(expected),
            str(len(ticks)),
            str(twice),
            f"{delays[len(delays) // 2] * 1000:.0f} ms",
            f"{delays[-1] * 1000:.0f} ms",
        )
        is_good &= twice == 0 and (misfire != "all" or len(ticks) == expected)
    console.print(table)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
