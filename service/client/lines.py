"""Answers that come in lines: one after the other, and as server-sent events."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator

import aiohttp


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A server-sent event; without data it only says where a stream resumes."""

    id: str | None
    data: str


async def lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """The lines of a body as they come, without their ends and without empty ones at its end."""
    begun: list[bytes] = []
    async for chunk in content.iter_any():
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for line in others:
            yield b"".join(begun).removesuffix(b"\r")
            begun = [line]
    if last := b"".join(begun):
        yield last


async def messages(content: aiohttp.StreamReader) -> AsyncGenerator[Message, None]:
    """The messages of a `text/event-stream`. What is incomplete at its end is none."""
    place: str | None = None
    data: list[str] = []
    async for line in lines(content):
        if not line:
            if place is not None or data:
                yield Message(place, "\n".join(data))
            place, data = None, []
            continue
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            place = value
        elif name == "data":
            data.append(value)
