"""Dramatiq on Redis, results in Redis, two processes of eight threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import dramatiq
import marks
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis import Redis

URL = os.environ["PEER_REDIS"]
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)
WORKERS = [[sys.executable, "-m", "dramatiq", "dramatiq_app", "-p", "2", "-t", "8"]]


@dramatiq.actor(store_results=True)
def job(payload: dict[str, Any]) -> dict[str, Any]:
    return marks.run(payload)


async def prepare() -> None:
    Redis.from_url(URL).flushall()


async def enqueue(payloads: Sequence[Any]) -> None:
    for payload in payloads:
        job.send(payload)
