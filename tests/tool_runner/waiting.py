"""Waiting for a condition, and one to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.tool_runner import processes


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when `condition` holds; fails when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    return processes.stat(pid)[:1] not in ([], [b"Z"])
