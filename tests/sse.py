"""A client of server-sent events: what a browser's EventSource does with the lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A block of lines. `id` is the last one sent so far; one without data is no event for a browser."""

    id: str | None
    type: str
    data: Any
    comment: str | None = None


async def messages(answer: aiohttp.ClientResponse) -> AsyncIterator[Message]:
    """Every block of the stream, those without data too, to its end."""
    last_id: str | None = None
    fields: dict[str, str] = {}
    async for raw in answer.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(":")
            fields[name or "comment"] = value.removeprefix(" ")
            continue
        last_id = fields.get("id", last_id)
        data = json.loads(fields["data"]) if "data" in fields else None
        yield Message(last_id, fields.get("event", "message"), data, fields.get("comment"))
        fields = {}


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[Message]:
    """What a browser would hear."""
    async for message in messages(answer):
        if message.data is not None:
            yield message
