"""Claim, submit, GET and first list page on databases of more and more rows, as multiples of the smallest one.

The rows are made by SQL: jobs that have ended, an attempt and three events each. A service on each database takes its
turn in every round; GETs go to jobs all over the table. Claims are measured where they happen, on the service's own
writer: 32 jobs of some hundred waiting ones, without HTTP and workers around them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from uuid_utils.compat import uuid7

from benchmarks.context import Context, Ours, ours
from benchmarks.databases import NAMES, fresh_database
from benchmarks.figures import Sample, alternate, rates
from benchmarks.filling import ENDED, job_id, prepare
from benchmarks.rates import ASKED_FOR, PATH, first_page, submit, whole
from benchmarks.wrk import Load, wrk_get
from service.db import job_claims, job_endings, job_inserts
from service.db.database import Database
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_inserts import NewJob
from service.models import JobOptions, JobStatus, timestamp

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
SHORT_SIZES = (10_000, 100_000)
MEASURED = ("claim", "submit", "GET", "first list page")
CLAIMS = 20
CLAIMED = 32


def new_job() -> NewJob:
    """A job to be claimed."""
    return NewJob(
        id=str(uuid7()), tenant="default", plugin="echo", plugin_version="1.0", payload='{"text": "waiting"}', blobs=(),
        options=JobOptions(), max_attempts=1, created_at=timestamp(), idempotency_key=None, request_hash=None,
    )  # fmt: skip


async def claim_ms(url: str, folder: Path, plugins: frozenset[str] = frozenset({"echo"})) -> float:
    """Milliseconds of a claim and its commit, the median of some; what was claimed ends well."""
    owner = str(uuid7())
    async with Database.open(url, folder, inline_bytes=1_000) as database:
        write = database.writer.write
        await asyncio.gather(*(write(job_inserts.insert, new_job()) for _ in range(CLAIMS * CLAIMED)))
        times = []
        for _ in range(CLAIMS):
            began = time.perf_counter()
            claim = Claim(owner=owner, limit=CLAIMED, lease_s=60, plugins=plugins)
            claimed = await write(job_claims.claim, claim)
            times.append((time.perf_counter() - began) * 1e3)
            endings = (Ending(job=job, owner=owner, status=JobStatus.SUCCESS, result="{}") for job in claimed)
            await asyncio.gather(*(write(job_endings.end, ending) for ending in endings))
        return statistics.median(times)


def get(service: Ours, *, rows: int, seconds: float) -> Load:
    """Jobs from all over the table; every tenth that was filled in is another tenant's."""
    chosen = random.Random(rows).sample(range(1, rows), 2 * ASKED_FOR)
    paths = [f"{PATH}/{job_id(number)}" for number in chosen if number % 10]
    return whole(wrk_get(service.server, paths, seconds=seconds))


def measure(context: Context) -> None:
    """Enter the times of each size, and the largest as a multiple of the smallest, for each database."""
    sizes = SHORT_SIZES if context.is_short else SIZES
    for kind in context.kinds:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
            urls = {}
            for rows in sizes:
                of_size = Path(folder) / str(rows)
                of_size.mkdir()
                urls[rows] = stack.enter_context(fresh_database(kind, of_size, context.postgres))
                asyncio.run(prepare(urls[rows], rows, ENDED))
            times: dict[str, dict[int, list[float]]] = {"claim": {rows: [] for rows in sizes}}
            for _ in range(context.rounds):
                for rows in sizes:
                    times["claim"][rows].append(asyncio.run(claim_ms(urls[rows], Path(folder))))
            services = {rows: stack.enter_context(ours(context, kind, database_url=urls[rows])) for rows in sizes}
            runs: dict[str, Callable[[], Sample]] = {}
            for rows, service in services.items():
                watched = partial(context.lags.watched, f"growth, {NAMES[kind]}")
                for name, run in (
                    ("submit", submit),
                    ("GET", partial(get, rows=rows)),
                    ("first list page", first_page),
                ):
                    one = partial(run, service, seconds=context.seconds)
                    runs[f"{name} {rows}"] = watched(one, service.server.url)
            samples = alternate(context.rounds, runs)
            for name in MEASURED[1:]:
                times[name] = {rows: [1e3 / rate for rate in rates(samples[f"{name} {rows}"])] for rows in sizes}
        _enter(context, kind, times)


def _enter(context: Context, kind: str, times: dict[str, dict[int, list[float]]]) -> None:
    for name, by_rows in times.items():
        for rows, found in by_rows.items():
            context.book.add(f"{name} at {rows:,} rows, {NAMES[kind]}", found, "ms")
        smallest, largest = min(by_rows), max(by_rows)
        context.book.add_ratio(
            f"{name}, most rows / fewest, {NAMES[kind]}",
            by_rows[largest],
            by_rows[smallest],
            note=f"{largest:,} / {smallest:,} rows",
        )
