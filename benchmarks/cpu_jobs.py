"""Jobs of 20 ms of CPU time, plain and with pictures, against two bare processes that run the same function.

32 clients wait for their jobs (`Prefer: wait`), so that some thirty are under way and the load generator costs next to
nothing. The rate is of completions in the database, from the second to the 98th percent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.context import Context, Ours, ours
from benchmarks.databases import DURABILITY, completion_rate, settle
from benchmarks.figures import alternate, rates
from benchmarks.rates import whole
from benchmarks.wrk import Load, wrk_post, wrk_post_files
from service.models import timestamp

PLAIN = "20 ms CPU jobs"
WITH_PICTURES = "20 ms CPU jobs with 100 KB pictures"
PROCESSES = 2
PICTURE_BYTES = 100_000
#: A run shorter than this has too few jobs to tell 2 % apart.
MIN_S = 3.0
WAIT = {"Prefer": "wait=30"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of the function a second."""

    rate: float
    is_void: bool = False


def bare_rate(seconds: float, picture_bytes: int) -> Calls:
    """Of two bare processes, together."""
    command = [sys.executable, "-m", "benchmarks.bare_work", "--seconds", str(seconds)]
    command += ["--picture-bytes", str(picture_bytes)]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(PROCESSES)
        ]
        for worker in workers:
            assert worker.stdout
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return Calls(rate=sum(float(worker.stdout.readline()) for worker in workers if worker.stdout))


def job_rate(service: Ours, picture: Path | None, seconds: float) -> Calls:
    """Of the service."""
    since = timestamp()
    _post(service, picture, seconds)
    settle(service.rows)
    return Calls(rate=completion_rate(service.rows, since=since))


def _post(service: Ours, picture: Path | None, seconds: float) -> Load:
    if picture is None:
        return whole(wrk_post(service.server, "/v1/plugins/burn/jobs", b"{}", seconds=seconds, headers=WAIT))
    path = "/v1/plugins/look/jobs"
    return whole(wrk_post_files(service.server, path, picture, "image/png", seconds=seconds, headers=WAIT))


def measure(context: Context) -> None:
    """Enter both kinds, on SQLite."""
    seconds = max(MIN_S, context.seconds)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        picture = Path(folder) / "picture"
        picture.write_bytes(os.urandom(PICTURE_BYTES))
        for name, file in ((PLAIN, None), (WITH_PICTURES, picture)):
            with ours(context, "sqlite", plugins=True) as service:
                _post(service, file, 1)
                settle(service.rows)
                size = 0 if file is None else PICTURE_BYTES
                samples = alternate(
                    context.rounds,
                    {
                        "bare": partial(bare_rate, seconds, size),
                        "jobs": context.lags.watched(
                            name, partial(job_rate, service, file, seconds), service.server.url
                        ),
                    },
                )
            bare, jobs = rates(samples["bare"]), rates(samples["jobs"])
            context.book.add(f"two bare processes: {name}", bare, durability="none")
            context.book.add(name, jobs, durability=f"{DURABILITY['sqlite']}; pictures synced")
            context.book.add_ratio(f"{name} / two bare processes", jobs, bare)
