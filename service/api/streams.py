"""Server-sent events: one bounded piece at a time, to a client that must keep taking them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from typing import Final

import orjson
import structlog
from aiohttp import hdrs, web

from service.api.connections import TAKE_S, when_lost
from service.api.middleware import finish
from service.api.services import Services
from service.errors import ServiceUnavailableError
from service.event_tail import happens
from service.following import Follower
from service.models import JobEvent

HEARTBEAT_S: Final = 15.0
#: How long a client may take nothing of what is there for it.
WRITE_S: Final = TAKE_S
#: At least so often it is asked whether the caller may still listen.
ADMIT_S: Final = 5.0
#: When a client should come back that lost its connection.
_RECONNECT_MS: Final = 1_000
#: What is handed to the connection at once, and what the kernel may hold of it: no more memory waits for one client.
_PIECE_BYTES: Final = 16_384
_KERNEL_BYTES: Final = 32_768
_RETRY_READ_S: Final = 1.0
_HEADERS: Final = {hdrs.CONTENT_TYPE: "text/event-stream", "X-Accel-Buffering": "no"}

log = structlog.get_logger(__name__)


async def stream(services: Services, request: web.Request, follower: Follower) -> web.StreamResponse:
    """Send what `follower` reads until it has ended, the client is gone or too slow, or may not listen any more.

    Raises what the first `read` raises, before anything is sent. Nothing to follow any more is answered 204.
    """
    if services.following.is_closing:
        raise ServiceUnavailableError("The service is shutting down: resume elsewhere, or after its next start.")
    follower.changed.clear()
    begin = follower.place  # told first: whoever is cut before the events come resumes before them
    events = await follower.read()
    if follower.has_ended and not events:
        return web.Response(status=204)
    sender = _Sender(request)
    with when_lost(request, follower.changed.set), contextlib.suppress(ConnectionError):
        try:
            await sender.open(begin)
            await _send_all(services, request, follower, sender, events)
            await sender.close()
        except TimeoutError:
            services.metrics.slow_clients.labels("stream").inc()
            log.info("stream closed: its client takes nothing", waited_s=WRITE_S)
    return sender.response


async def _send_all(
    services: Services, request: web.Request, follower: Follower, sender: _Sender, events: Iterable[JobEvent]
) -> None:
    clock = asyncio.get_running_loop().time
    admitted = clock()
    end = admitted + services.stream_s
    while True:
        if events:
            async with services.streams.turn():
                pieces = _pieces(follower, events)
            events = ()
            for piece in pieces:
                await sender.write(piece)
        if follower.has_ended or clock() >= end:
            return
        await sender.beat_if_due(follower.place)
        if not follower.is_behind:
            await happens(follower.changed, min(ADMIT_S, end - clock()))
        if services.following.is_closing or not sender.is_wanted:
            return
        if clock() - admitted >= ADMIT_S:
            admitted = clock()
            if not await _is_admitted(services, request):
                return
        follower.changed.clear()
        try:
            events = await follower.read()
        except ServiceUnavailableError as error:
            log.debug("events cannot be read", error=str(error))
            events = ()
            await asyncio.sleep(_RETRY_READ_S)


async def _is_admitted(services: Services, request: web.Request) -> bool:
    try:
        return await services.gate.is_still_admitted(request)
    except ServiceUnavailableError:
        return True  # nor can any event be read now


class _Sender:
    """Writes to one client. Raises `TimeoutError` for one that is too slow, `ConnectionError` for one that is gone."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._wrote_at = 0.0
        self.response = web.StreamResponse(headers=_HEADERS)
        self.response.force_close()

    @property
    def is_wanted(self) -> bool:
        """Whether the client is still there."""
        transport = self._request.transport
        return transport is not None and not transport.is_closing()

    async def open(self, place: str | None) -> None:
        """Send the headers, and from where on the client is told."""
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError
        transport.set_write_buffer_limits(high=0)  # a piece is gone before the next one comes
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        finish(self._request, self.response)
        self._writer = await self.response.prepare(self._request)
        await self.write(b"retry: %d\n%b\n" % (_RECONNECT_MS, _id_line(place)))

    async def beat_if_due(self, place: str | None) -> None:
        """Send a sign of life, if nothing was sent for long."""
        if asyncio.get_running_loop().time() - self._wrote_at >= HEARTBEAT_S:
            await self.write(b": still here\n%b\n" % _id_line(place))

    async def close(self) -> None:
        """Say that there is no more."""
        async with asyncio.timeout(WRITE_S):
            await self.response.write_eof()

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when the connection has taken it."""
        self._wrote_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(WRITE_S):
                await self.response.write(data)
                if self._writer is not None:
                    await self._writer.drain()
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise


def _pieces(follower: Follower, events: Iterable[JobEvent]) -> list[bytes]:
    """The events as messages, some in a piece."""
    pieces: list[bytes] = []
    messages: list[bytes] = []
    size = 0
    for event in events:
        messages.append(_message(event, follower.place_of(event)))
        size += len(messages[-1])
        if size >= _PIECE_BYTES:
            pieces.append(b"".join(messages))
            messages, size = [], 0
    return [*pieces, b"".join(messages)] if messages else pieces


def _id_line(place: str | None) -> bytes:
    """Without data it is no message, but a client resumes there."""
    return b"" if place is None else b"id: %b\n" % place.encode()


def _message(event: JobEvent, place: str) -> bytes:
    data = orjson.dumps(
        {
            "job_id": event.job_id,
            "plugin": event.plugin,
            "n": event.n,
            "type": event.type,
            "at": event.at,
            "data": orjson.Fragment(event.data),
        }
    )
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (place.encode(), event.type.encode(), data)
