"""What the rollups cost: CPU time of the thread that writes, for the life of a job with and without folding its events.

A job's life is an insert, a claim and an end, in batches. Batches with and without are alternated, and CPU time is
measured, not the clock, so that what else runs on the machine matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from uuid_utils.compat import uuid7

from benchmarks.common import print_table, save
from service.db import job_claims, job_endings, job_inserts, rollups
from service.db.database import Database
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_inserts import NewJob
from service.db.migrate import upgrade
from service.db.transaction import Operation
from service.models import JobOptions, JobStatus, timestamp

OWNER = str(uuid7())
PLUGINS = 4


class Writing:
    """The database's writer, and the CPU time of its transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.cpu_s = 0.0
        self.longest_s = 0.0

    async def write(self, operation: Operation, items: list) -> list:
        """Apply `items` in one transaction, timed on the thread that runs it."""

        async def timed(tx: object, given: list) -> list:
            started, clock = time.thread_time(), time.monotonic()
            outcomes = await operation(tx, given)
            self.cpu_s += time.thread_time() - started
            self.longest_s = max(self.longest_s, time.monotonic() - clock)
            return list(outcomes)

        return list(await asyncio.gather(*(self._database.writer.write(timed, item) for item in items)))


def new_job(number: int) -> NewJob:
    return NewJob(
        id=str(uuid7()), tenant="default", plugin=f"plugin_{number % PLUGINS}", plugin_version="1.0",
        payload='{"text": "' + "x" * 150 + '"}', blobs=(), options=JobOptions(), max_attempts=1,
        created_at=timestamp(), idempotency_key=None, request_hash=None,
    )  # fmt: skip


async def live(writing: Writing, batch: int) -> None:
    await writing.write(job_inserts.insert, [new_job(number) for number in range(batch)])
    (claimed,) = await writing.write(job_claims.claim, [Claim(owner=OWNER, limit=batch, lease_s=30)])
    endings = [Ending(job=job, owner=OWNER, status=JobStatus.SUCCESS, result='{"ok": true}') for job in claimed]
    await writing.write(job_endings.end, endings)


async def measure(jobs: int, batch: int, page: int) -> dict[str, float]:
    """Microseconds of CPU a job, of its life and of its folding; the longest fold in milliseconds."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite+aiosqlite:///{directory}/jobs.db"
        await upgrade(url)
        async with Database.open(url, Path(directory) / "blobs", inline_bytes=1_000) as database:
            lives, folds = Writing(database), Writing(database)
            events = 0
            for _ in range(jobs // batch):
                await live(lives, batch)
                events += 3 * batch
                while events >= page:
                    (folded,) = await folds.write(rollups.fold, [page])
                    events -= folded
    return {
        "life_us": lives.cpu_s / jobs * 1e6,
        "fold_us": folds.cpu_s / jobs * 1e6,
        "longest_fold_ms": folds.longest_s * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--page", type=int, default=2_000)
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        with contextlib.suppress(KeyboardInterrupt):
            rounds.append(asyncio.run(measure(args.jobs, args.batch, args.page)))
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    share = median["fold_us"] / median["life_us"]
    rows = [
        ("life of a job: insert, claim, end", f"{median['life_us']:.1f} us"),
        ("folding its events", f"{median['fold_us']:.1f} us"),
        ("share", f"{share:.1%}"),
        ("longest fold", f"{median['longest_fold_ms']:.0f} ms"),
    ]
    print_table(f"CPU time of the writing thread, batches of {args.batch}", ("", "a job"), rows)
    save("rollups", {"share": share, **median})


if __name__ == "__main__":
    main()
