"""Huey with two processes: on SQLite as it comes, which is synced, or on Redis where PEER_HUEY says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marks
from huey import RedisHuey, SqliteHuey

if os.environ.get("PEER_HUEY") == "redis":
    huey = RedisHuey("bench", url=os.environ["PEER_REDIS"])
else:
    huey = SqliteHuey("bench", filename=str(Path(os.environ["PEER_FOLDER"]) / "huey.db"), fsync=True)
CONSUMER = str(Path(sys.executable).with_name("huey_consumer"))
WORKERS = [[CONSUMER, "huey_app.huey", "-w", "2", "-k", "process", "-q"]]


@huey.task()
def job(payload: dict[str, Any]) -> dict[str, Any]:
    return marks.run(payload)


async def prepare() -> None:
    huey.flush()


async def enqueue(payloads: Sequence[Any]) -> None:
    for payload in payloads:
        job(payload)
