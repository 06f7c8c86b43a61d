"""Celery on Redis, results in Redis, two forked workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import marks
from celery import Celery
from redis import Redis

URL = os.environ["PEER_REDIS"]
app = Celery("celery_app", broker=URL, backend=URL)
app.conf.update(broker_connection_retry_on_startup=True)
WORKERS = [[sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-c", "2", "-l", "ERROR"]]


@app.task(name="job")
def job(payload: dict[str, Any]) -> dict[str, Any]:
    return marks.run(payload)


async def prepare() -> None:
    Redis.from_url(URL).flushall()


async def enqueue(payloads: Sequence[Any]) -> None:
    for payload in payloads:
        job.delay(payload)
