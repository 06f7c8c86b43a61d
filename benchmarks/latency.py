"""How the API answers while every worker is busy: latency of `GET /v1/jobs/{id}` and lag of the service's event loop.

Three cases on the real `jobservice serve` with as many workers as there are cores: idle, every worker in a loop of
Python code, every worker in C calls that hold the interpreter lock. Requests are sent at a fixed rate whatever the
answers do, and latency counts from the moment a request was due, so a stall is charged to every request it delays. The
lag is the service's own measurement, read from `/metrics`; quantiles are the upper bounds of buckets.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common import console, job_service, percentile, print_table, save
from benchmarks.lag import lag_between, lag_bound_ms, parse_lag

P99_AIM_MS = 50.0
LAG_AIM_MS = 50.0
CASES: Mapping[str, str | None] = {"idle": None, "CPU-bound": "spin", "holding the GIL": "hold_gil"}


async def submit(session: aiohttp.ClientSession, plugin: str, payload: dict[str, Any]) -> str:
    """Submit one job; its id."""
    async with session.post("/v1/jobs", json={"plugin": plugin, "payload": payload}) as response:
        document = await response.json()
        if response.status != 202:
            raise RuntimeError(f"{plugin}: {response.status} {document}")
        return str(document["id"])


async def wait_for(session: aiohttp.ClientSession, job_id: str, *statuses: str) -> None:
    """Return when the job has one of `statuses`; raises when it ends with another."""
    while True:
        async with session.get(f"/v1/jobs/{job_id}") as response:
            record = await response.json()
        if record["status"] in statuses:
            return
        if record["status"] not in ("PENDING", "RUNNING"):
            raise RuntimeError(f"Job {job_id} is {record['status']}: {record['error']}")
        await asyncio.sleep(0.02)


async def lag_buckets(session: aiohttp.ClientSession) -> dict[float, float]:
    """What the service has observed of its lag."""
    async with session.get("/metrics") as response:
        return parse_lag(await response.text())


async def probe(session: aiohttp.ClientSession, job_ids: Sequence[str], *, seconds: float, rate: float) -> list[float]:
    """Latencies in ms of requests that fall due `rate` times a second, for each job in turn."""
    latencies: list[float] = []

    async def get(job_id: str, due: float) -> None:
        async with session.get(f"/v1/jobs/{job_id}") as response:
            await response.read()
        if response.status != 200:
            raise RuntimeError(f"GET of job {job_id} answered {response.status}")
        latencies.append((time.perf_counter() - due) * 1e3)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number, job_id in zip(range(int(seconds * rate)), itertools.cycle(job_ids), strict=False):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(get(job_id, due))
    return latencies


async def measure(url: str, plugin: str | None, *, workers: int, seconds: float, rate: float) -> dict[str, float]:
    """One case against a fresh service."""
    async with aiohttp.ClientSession(url) as session:
        finished = await submit(session, "echo", {"text": "hello"})
        await wait_for(session, finished, "SUCCESS")
        busy = []
        if plugin:
            busy = [await submit(session, plugin, {"seconds": seconds + 10.0}) for _ in range(workers)]
        for job_id in busy:
            await wait_for(session, job_id, "RUNNING")
        # The workers are claimed; let them leave set-up behind, so that all of the window is plugin code.
        await probe(session, [finished], seconds=3, rate=rate)
        before = await lag_buckets(session)
        latencies = await probe(session, [finished, *busy], seconds=seconds, rate=rate)
        after = await lag_buckets(session)
        for job_id in busy:
            await wait_for(session, job_id, "RUNNING")
            async with session.post(f"/v1/jobs/{job_id}/cancel") as response:
                await response.read()
    return {
        "requests": len(latencies),
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": max(latencies),
        "lag_p99_ms_at_most": lag_bound_ms(lag_between(before, after), 0.99),
        "lag_p999_ms_at_most": lag_bound_ms(lag_between(before, after), 0.999),
    }


def main() -> int:
    """Measure, print, write build/bench/latency.json; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each case")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for case, plugin in CASES.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            job_service(Path(folder), "--workers", str(options.workers), plugins=True) as service,
        ):
            results[case] = asyncio.run(
                measure(service.url, plugin, workers=options.workers, seconds=options.seconds, rate=options.rate)
            )
    columns = ["workers are", "requests", "GET p50 ms", "GET p99 ms", "GET max ms", "lag p99 <= ms", "lag p99.9 <= ms"]
    rows = [[case, *(f"{value:,.4g}" for value in figures.values())] for case, figures in results.items()]
    print_table(f"GET /v1/jobs/{{id}} with {options.workers} workers, {options.rate:g} requests/s", columns, rows)
    worst_p99 = max(figures["p99_ms"] for figures in results.values())
    worst_lag = max(figures["lag_p999_ms_at_most"] for figures in results.values())
    console.print(
        f"Worst p99 [bold]{worst_p99:.1f} ms[/] (aim < {P99_AIM_MS:g}), "
        f"worst loop lag p99.9 [bold]<= {worst_lag:g} ms[/] (aim {LAG_AIM_MS:g})."
    )
    save("latency", {"workers": options.workers, "rate": options.rate, "cases": results})
    return int(worst_p99 >= P99_AIM_MS or worst_lag > LAG_AIM_MS)


if __name__ == "__main__":
    sys.exit(main())
