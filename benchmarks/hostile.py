"""Runs every hostile plugin round after round beside well-behaved ones, and looks for what leaks."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from service.plugins.discovery import installed_plugins
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.processes import marked, resident_bytes, stat
from service.tool_runner.runner import ToolRunner
from tests.hostile_plugins.cases import CASES

HOSTILE = Path(__file__).parents[1] / "tests" / "hostile_plugins"

#: What one worker costs the service in descriptors: its channel, its pidfd, its output.
DESCRIPTORS_OF_A_WORKER = 3
#: Growth of the service's memory, from the second quarter of the rounds to the last, that is no noise.
GROWTH_MB = 10


async def neighbours(runner: ToolRunner, stop: asyncio.Event) -> tuple[int, int]:
    """Well-behaved calls, one after the other; how many there were, and how many failed."""
    done = failed = 0
    while not stop.is_set():
        pair = await runner.run("neighbour", {"number": done})
        done += 1
        failed += pair != ({"echo": {"number": done - 1}}, {})
        await asyncio.sleep(0.01)
    return done, failed


async def one_round(runner: ToolRunner) -> list[str]:
    """Every hostile plugin once, some at a time; what came out other than it must."""
    wrong = []

    at_once = asyncio.Semaphore(runner.capacity - 1)  # one slot is the neighbours'

    async def one(plugin: str, payload: dict, expected: str) -> None:
        async with at_once:
            _, error = await runner.run(plugin, payload)
        got = error["error"]["type"] if error else "success"
        if got != expected:
            wrong.append(f"{plugin} {payload or ''}: {got}, not {expected}")

    await asyncio.gather(*(one(plugin, payload, expected) for plugin, payload, expected, _ in CASES))
    return wrong


async def measure(rounds: int, data_dir: Path) -> bool:
    settings = Settings(
        _env_file=None, data_dir=data_dir, workers=4, warm=2, timeout_s=2.5, memory_mb=200, max_result_mb=20
    )
    pool = WorkerPool(settings)
    runner = ToolRunner(pool, installed_plugins(), settings)
    await runner.start()
    stop = asyncio.Event()
    descriptors, memory_mb, strays, wrong = [], [], 0, 0
    done = failed = 0
    try:
        for number in range(1, rounds + 1):
            begun = time.monotonic()
            stop.clear()
            beside = asyncio.create_task(neighbours(runner, stop))
            surprises = await one_round(runner)
            stop.set()
            did, failures = await beside
            done, failed, wrong = done + did, failed + failures, wrong + len(surprises)
            while len(pool.worker_pids) > settings.warm:  # noqa: ASYNC110  # the last are on their way out
                await asyncio.sleep(0.01)
            left = marked(pool.instance).keys() - pool.worker_pids - {int(stat(pid)[1]) for pid in pool.worker_pids}
            strays += len(left)
            held = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone, at once
            descriptors.append(held - DESCRIPTORS_OF_A_WORKER * len(pool.worker_pids))
            memory_mb.append(resident_bytes(os.getpid()) / 1e6)
            print(
                f"round {number}: {time.monotonic() - begun:.1f} s, stray processes {len(left)}, "
                f"descriptors {descriptors[-1]}, memory {memory_mb[-1]:.1f} MB, neighbours {did} ({failures} failed)",
                *surprises,
                sep="\n  ",
                flush=True,
            )
    finally:
        await runner.close()
    strays += len(marked(pool.instance))
    growth_mb = _growth(memory_mb)
    print(
        f"{rounds} rounds of {len(CASES)} hostile calls: {strays} stray processes,",
        f"{failed} of {done} neighbours failed,",
        f"{wrong} unexpected outcomes, descriptors {descriptors[0]} → {descriptors[-1]},",
        f"memory growth {growth_mb:+.1f} MB",
    )
    return not (strays or failed or wrong or descriptors[-1] > descriptors[0] or growth_mb > GROWTH_MB)


def _growth(memory_mb: list[float]) -> float:
    """From the second quarter, when all is warm, to the last."""
    quarter = len(memory_mb) // 4
    if quarter == 0:
        return 0.0
    return statistics.median(memory_mb[-quarter:]) - statistics.median(memory_mb[quarter : 2 * quarter])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    sys.path.insert(0, str(HOSTILE))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if asyncio.run(measure(rounds, Path(folder))) else 1)


if __name__ == "__main__":
    main()
