"""PgQueuer on PostgreSQL, two processes that take ten jobs at a time; it stores no results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
import many
import marks
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries

URL = os.environ["PEER_POSTGRESQL"]
IN_FLIGHT = 8
WORKERS = [[sys.executable, "-c", "import asyncio, pgqueuer_app as it; asyncio.run(it.work())"]] * 2
_queries: list[Queries] = []


async def work() -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))

    @queue.entrypoint("job")
    async def job(item: Any) -> None:
        marks.run(json.loads(item.payload))

    await queue.run(batch_size=10)


async def prepare() -> None:
    connection = await asyncpg.connect(URL)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def enqueue(payloads: Sequence[Any]) -> None:
    if not _queries:
        _queries.append(
            Queries(AsyncpgPoolDriver(await asyncpg.create_pool(URL, min_size=IN_FLIGHT, max_size=IN_FLIGHT)))
        )
    await many.each(
        lambda payload: _queries[0].enqueue("job", json.dumps(payload).encode()), payloads, in_flight=IN_FLIGHT
    )
