"""Enqueues with some calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

IN_FLIGHT = 32


async def each(
    enqueue: Callable[[Any], Awaitable[Any]], payloads: Iterable[Any], *, in_flight: int = IN_FLIGHT
) -> None:
    """Call `enqueue` for each payload, so many at once."""
    left = iter(payloads)

    async def one_after_the_other() -> None:
        for payload in left:
            await enqueue(payload)

    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
