"""Procrastinate on PostgreSQL, two processes of ten coroutines; how a job ended is stored, what it returned is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import many
import marks
import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["PEER_POSTGRESQL"]))
# Not by its command, which logs two lines a job.
WORKERS = [[sys.executable, "-c", "import asyncio, procrastinate_app as it; asyncio.run(it.work())"]] * 2


@app.task(name="job", queue="bench")
async def job(payload: dict[str, Any]) -> dict[str, Any]:
    return marks.run(payload)


async def work() -> None:
    async with app.open_async():
        await app.run_worker_async(queues=["bench"], concurrency=10)


async def prepare() -> None:
    await app.open_async()
    await app.schema_manager.apply_schema_async()


async def enqueue(payloads: Sequence[Any]) -> None:
    await many.each(lambda payload: job.defer_async(payload=payload), payloads, in_flight=8)
