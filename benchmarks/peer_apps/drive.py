"""Drives one peer within its own environment: starts its workers, enqueues no-op jobs, prints the live rate as JSON.

An app has `WORKERS` (commands), `prepare()` and `enqueue(payloads)`. The rate is of all jobs over the time from the
first enqueue until the last one has run; storing its result is not waited for, which is in the peer's favour.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import marks

PAYLOAD = {"kind": "report", "count": 42, "tags": ["a", "b"], "text": "x" * 100}
WARM_JOBS = 20
STOP_S = 10


async def until(jobs: int, timeout_s: float) -> None:
    """Wait until so many jobs have run."""
    end = time.monotonic() + timeout_s
    while marks.count() < jobs:
        if time.monotonic() > end:
            raise RuntimeError(f"{marks.count()} of {jobs} jobs ran within {timeout_s:g} s")
        await asyncio.sleep(0.005)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """A worker command in a session of its own, all of which is ended with it."""
    with (Path(os.environ["PEER_FOLDER"]) / "log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(worker.pid, number)
            worker.wait(STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


async def live(app: Any, jobs: int, timeout_s: float) -> dict[str, float]:
    """Enqueue while workers run."""
    await app.prepare()
    marks.clear()
    workers = [start(command) for command in app.WORKERS]
    try:
        await app.enqueue([PAYLOAD] * WARM_JOBS)
        await until(WARM_JOBS, timeout_s)
        await asyncio.sleep(0.5)  # whatever the workers do after a job
        marks.clear()
        began = time.time()
        await app.enqueue([PAYLOAD] * jobs)
        enqueued = time.time()
        await until(jobs, timeout_s)
        return {"rate": jobs / (marks.last() - began), "enqueue_rate": jobs / (enqueued - began)}
    finally:
        for worker in workers:
            stop(worker)


def main() -> None:
    """Print the figures of one round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--timeout", type=float, default=90)
    options = parser.parse_args()
    app = importlib.import_module(options.app)
    print(json.dumps(asyncio.run(live(app, options.jobs, options.timeout))), flush=True)


if __name__ == "__main__":
    main()
