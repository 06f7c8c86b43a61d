"""SAQ on Redis, two processes of ten coroutines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import many
import marks
from redis import Redis
from saq import Queue

URL = os.environ["PEER_REDIS"]
queue = Queue.from_url(URL)
WORKERS = [[str(Path(sys.executable).with_name("saq")), "saq_app.settings", "--quiet"]] * 2


async def job(_context: Any, *, payload: dict[str, Any]) -> dict[str, Any]:
    return marks.run(payload)


settings = {"queue": queue, "functions": [job], "concurrency": 10}


async def prepare() -> None:
    Redis.from_url(URL).flushall()


async def enqueue(payloads: Sequence[Any]) -> None:
    await many.each(lambda payload: queue.enqueue("job", payload=payload, ttl=3600), payloads)
