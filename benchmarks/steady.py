"""From POST to the committed result at 50 jobs a second, as multiples of one durable insert at the same pace.

Each request says `Prefer: wait`: its answer is sent after the result's commit, so the time until it has come is never
too short; it has the way back in it. Requests go out at their pace, whatever became of those before. The client writes
bytes made beforehand on connections kept open: it adds a tenth of a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

from benchmarks.common import percentile
from benchmarks.context import PAYLOAD, Context, Ours, ours
from benchmarks.databases import DURABILITY, NAMES
from benchmarks.echo import loop_factory
from benchmarks.limits import paced_inserts, paced_postgresql_inserts

RATE = 50
#: 300 jobs: fewer have no p99.
MIN_S = 6.0
_WAIT_S = 30


class Client:
    """Posts one job at a time on each of its connections; makes as many of them as are needed at once."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._address = (str(address.hostname), int(address.port or 80))
        body = json.dumps({"plugin": "echo", "payload": PAYLOAD}).encode()
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            f"Prefer: wait={_WAIT_S}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run_job(self) -> None:
        """Submit a job and return when its success has been told."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith("http/1.1 200") or json.loads(body)["status"] != "SUCCESS":
            raise RuntimeError(f"a job was answered with {head.splitlines()[0]}: {body.decode()}")
        self._idle.append((reader, writer))

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def latencies(url: str, *, seconds: float, rate: float = RATE) -> list[float]:
    """Milliseconds from each POST until its result was committed and told."""
    client = Client(url)
    times: list[float] = []

    async def job() -> None:
        began = time.perf_counter()
        await client.run_job()
        times.append((time.perf_counter() - began) * 1e3)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(seconds * rate)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(job())
    await client.close()
    return times


def run(service: Ours, seconds: float) -> list[float]:
    """One run against the service."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(latencies(service.server.url, seconds=seconds))


def _inserts(context: Context, kind: str, seconds: float) -> list[float]:
    if kind == "sqlite":
        return paced_inserts(seconds, RATE)
    assert context.postgres is not None
    return paced_postgresql_inserts(context.postgres.new_database(), seconds, RATE)


def measure(context: Context) -> None:
    """Enter latencies and multiples for each database."""
    seconds = max(MIN_S, context.seconds)
    for kind in context.kinds:
        inserts, jobs = [], []
        with ours(context, kind) as service:
            run(service, 1)
            for _ in range(context.rounds):
                inserts.append(_inserts(context, kind, seconds / 2))
                with context.lags.watch(f"{RATE} jobs/s, {NAMES[kind]}", service.server.url):
                    jobs.append(run(service, seconds))
        one = [percentile(times, 0.5) for times in inserts]
        context.book.add(f"one durable insert at {RATE}/s, {NAMES[kind]}: p50", one, "ms", durability=DURABILITY[kind])
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            found = [percentile(times, q) for times in jobs]
            title = f"POST to result at {RATE}/s, {NAMES[kind]}: {name}"
            context.book.add(title, found, "ms", durability=DURABILITY[kind])
            context.book.add_ratio(f"{title} / one insert", found, one)
