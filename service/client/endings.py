"""Which jobs have ended, as a hint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any, Final

from service.client.connection import Connection
from service.client.errors import ApiError
from service.client.records import LAST_EVENTS

_LEAST_PAUSE_S: Final = 0.5
#: Looking at everything again and again takes at most a part of the time.
_PAUSE_SHARE: Final = 2.0


async def endings(connection: Connection) -> AsyncGenerator[str | None, None]:
    """The id of each job that ends from now on, in that order; None means that every job has to be looked at.

    That is so at the beginning, and again and again where the service gives no stream of events: it has none (404), or
    has too many open (429).
    """
    clock = asyncio.get_running_loop().time
    query = [("type", ",".join(sorted(LAST_EVENTS)))]
    while True:
        try:
            async with contextlib.aclosing(connection.follow("/v1/events", query, waits_for_room=False)) as stream:
                async for news in stream:
                    yield None if news is None else connection.understood(_job_id, news.document)
        except ApiError as refusal:
            if refusal.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS):
                raise
        began = clock()
        yield None
        await asyncio.sleep(max(_LEAST_PAUSE_S, _PAUSE_SHARE * (clock() - began)))


def _job_id(document: Mapping[str, Any]) -> str:
    return str(document["job_id"])
