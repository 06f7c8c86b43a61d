"""What a program that holds a snapshot of the database costs the service, and whether the log shrinks afterwards."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from rich.table import Table

from benchmarks.common import console, job_service

PAYLOAD_BYTES = 1_000
CLIENTS = 16
#: How long the log may take to shrink once the reader has left.
SHRINK_S = 60


class Load:
    """Jobs submitted at a fixed rate, and what was answered."""

    def __init__(self, url: str, rate: float) -> None:
        self._url = url
        self._pause_s = CLIENTS / rate
        self.answers: collections.Counter[int] = collections.Counter()
        self.took_ms: list[float] = []

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Submit until cancelled."""
        await asyncio.gather(*(self._client(session) for _ in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        body = {"plugin": "echo", "payload": {"text": "x" * PAYLOAD_BYTES}}
        while True:
            started = time.monotonic()
            async with session.post(f"{self._url}/v1/jobs", json=body) as answer:
                await answer.read()
                self.answers[answer.status] += 1
            took = time.monotonic() - started
            self.took_ms.append(1_000 * took)
            await asyncio.sleep(max(0.0, self._pause_s - took))

    def p99_ms(self) -> float:
        """Of what was answered since the last time."""
        times, self.took_ms = sorted(self.took_ms), []
        return times[int(0.99 * len(times))] if times else 0.0


async def warnings(session: aiohttp.ClientSession, url: str) -> list[str]:
    """What `/readyz` warns of."""
    async with session.get(f"{url}/readyz") as answer:
        return list(json.loads(await answer.read()).get("warnings") or [])


async def watch(data: Path, url: str, args: argparse.Namespace) -> bool:
    """One row for each step; whether there was no 5xx, a warning, and a log that shrank."""
    wal = data / "jobs.db-wal"
    table = Table("s", "reader", "answers", "p99 ms", "log MB", "warning")
    heard: list[str] = []
    load = Load(url, args.rate)

    def row(seconds: float, reader: str, warning: list[str]) -> None:
        heard.extend(warning)
        answers = " ".join(f"{status}: {count:,}" for status, count in sorted(load.answers.items()))
        size = wal.stat().st_size / 1e6
        table.add_row(f"{seconds:.0f}", reader, answers, f"{load.p99_ms():.0f}", f"{size:,.0f}", "; ".join(warning))

    async with aiohttp.ClientSession() as session:
        loading = asyncio.create_task(load.run(session))
        await asyncio.sleep(5)
        with contextlib.closing(
            sqlite3.connect(f"file:{data / 'jobs.db'}?mode=ro", uri=True, isolation_level=None)
        ) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM report_jobs").fetchone()
            started = time.monotonic()
            while (passed := time.monotonic() - started) < args.seconds and not loading.done():
                row(passed, "holds", await warnings(session, url))
                await asyncio.sleep(min(args.seconds / 10, 60))
            row(time.monotonic() - started, "holds", await warnings(session, url))
        held = wal.stat().st_size
        left = time.monotonic()
        while wal.stat().st_size >= min(held, 64e6) and time.monotonic() - left < SHRINK_S:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        row(time.monotonic() - started, "left", await warnings(session, url))
        is_clean = not loading.done() and max(load.answers) < 500
        loading.cancel()
        await asyncio.wait([loading])
    console.print(table)
    shrank = wal.stat().st_size < min(held, 64e6)
    console.print(f"5xx: {'none' if is_clean else 'yes'}; warned: {bool(heard)}; the log shrank: {shrank}")
    return is_clean and bool(heard) and shrank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=50, help="jobs a second")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        with job_service(data) as server:
            is_kept = asyncio.run(watch(data, server.url, args))
    sys.exit(not is_kept)


if __name__ == "__main__":
    main()
