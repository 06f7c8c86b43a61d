"""Relays between a client and a service that lose or hold what they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from urllib.parse import urlsplit


@contextlib.asynccontextmanager
async def holding(url: str, before: Callable[[int], Awaitable[object]]) -> AsyncIterator[str]:
    """The address of a relay to `url` that lets the n-th request through, n from 1, when `before(n)` has returned."""
    target = urlsplit(url)
    numbers = itertools.count(1)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(65_536)
        await before(next(numbers))
        service_reader, service_writer = await asyncio.open_connection(target.hostname, target.port)
        service_writer.write(request.replace(b"Host: ", b"Connection: close\r\nHost: "))
        writer.write(await service_reader.read())
        writer.close()
        service_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def losing_answers(url: str, losses: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a relay to `url` that lets requests through and drops the first answers; and those requests."""
    target = urlsplit(url)
    requests: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(65_536))
        service_reader, service_writer = await asyncio.open_connection(target.hostname, target.port)
        service_writer.write(requests[-1].replace(b"Host: ", b"Connection: close\r\nHost: "))
        answer = await service_reader.read()
        if len(requests) > losses:
            writer.write(answer)
        writer.close()
        service_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


@contextlib.asynccontextmanager
async def cutting(url: str, lives: Iterable[int]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a relay to `url` that cuts each connection after so many bytes of its answer; and the requests."""
    target = urlsplit(url)
    requests: list[bytes] = []
    left = iter(lives)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        life = next(left, None)
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        service_reader, service_writer = await asyncio.open_connection(target.hostname, target.port)
        service_writer.write(requests[-1].replace(b"Host: ", b"Connection: close\r\nHost: "))
        sent = 0
        while chunk := await service_reader.read(65_536):
            chunk = chunk if life is None else chunk[: life - sent]
            sent += len(chunk)
            writer.write(chunk)
            if sent == life:
                break
        writer.close()
        service_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
