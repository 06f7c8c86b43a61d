"""The sockets below the application: how long they may be idle or slow, how many there may be, malformed HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service.api.middleware import REQUEST_ID, protect
from service.api.problems import Problem, response_of
from service.metrics import Metrics

#: How long a connection may wait for its next request.
KEEPALIVE_S: Final = 75.0
#: How long the head of a request may take, from its first byte; for the first one from the connection on.
HEAD_S: Final = 15.0
#: How long the client's end may take nothing of what was sent; the kernel then gives the connection up.
TAKE_S: Final = 30.0
#: How long it may take nothing of a piece of an answer that is made as it is taken.
PIECE_S: Final = TAKE_S
#: How long a refused body is read and thrown away, so that the client sees the answer rather than a reset.
LINGERING_S: Final = 2.0
#: How long answers may still go out when the process stops.
SHUTDOWN_S: Final = 2.0

log = structlog.get_logger(__name__)


def create_runner(
    app: web.Application, *, max_connections: int | None = None, metrics: Metrics | None = None
) -> web.AppRunner:
    """A runner with this API's time-outs; it answers malformed HTTP with problem details as well.

    Beyond `max_connections` the longest idle one is closed for each that comes; if none is idle, the one that came.
    """
    return _Runner(
        app,
        max_connections=max_connections,
        metrics=metrics or Metrics(),
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGERING_S,
        shutdown_timeout=SHUTDOWN_S,
        auto_decompress=False,
        handler_cancellation=False,
    )


def has_left(request: web.BaseRequest) -> bool:
    """Whether nobody can take an answer to `request` any more."""
    return request.transport is None or request.transport.is_closing()


@contextlib.contextmanager
def when_lost(request: web.Request, call: Callable[[], None]) -> Iterator[None]:
    """Call `call` at once when the connection of `request` is lost inside the block."""
    protocol = cast("_Protocol", request.protocol)
    protocol.on_lost = call
    try:
        yield
    finally:
        protocol.on_lost = None


@contextlib.contextmanager
def for_whoever_waits(request: web.Request) -> Iterator[None]:
    """Hold an answer back inside the block; raises `ConnectionResetError` there as soon as nobody waits for it."""
    if has_left(request):
        raise ConnectionResetError
    task = asyncio.current_task()
    is_lost = False

    def give_up() -> None:
        nonlocal is_lost
        if task is not None:
            is_lost = task.cancel()

    with when_lost(request, give_up):
        try:
            yield
        except asyncio.CancelledError:
            if is_lost and task is not None and not task.uncancel():
                raise ConnectionResetError from None
            raise


async def taken(request: web.Request, pieces: AsyncIterator[bytes], metrics: Metrics) -> AsyncIterator[bytes]:
    """`pieces` as fast as the client takes them.

    A connection that breaks tells that they are not whole: because they cannot go on, or the client takes nothing.
    """
    loop = asyncio.get_running_loop()

    def give_up() -> None:
        metrics.slow_clients.labels("answer").inc()
        _abort(request)

    try:
        async for piece in pieces:
            # What is yielded is being written until the next one is asked for.
            late = loop.call_later(PIECE_S, give_up)
            try:
                yield piece
            finally:
                late.cancel()
    except BaseException:  # a cancellation too: whatever ends them early, what has gone out must not look whole
        _abort(request)
        raise


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


class _Runner(web.AppRunner):
    def __init__(self, app: web.Application, *, max_connections: int | None, metrics: Metrics, **more: Any) -> None:
        super().__init__(app, **more)
        self._max_connections = max_connections
        self._metrics = metrics

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(made.request_handler, request_factory=made.request_factory, **self._kwargs)
        server.max_connections = self._max_connections
        server.metrics = self._metrics
        self._metrics.gauge("jobservice_connections", "Connections open now", lambda: len(server.open))
        return server


class _Server(web.Server):
    max_connections: int | None
    metrics: Metrics

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.open: dict[_Protocol, None] = {}  # the oldest first

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

    def make_room(self, newcomer: _Protocol) -> None:
        """Close a connection if there are too many."""
        if self.max_connections is None or len(self.open) <= self.max_connections:
            return
        victim = next((protocol for protocol in self.open if protocol.is_idle and protocol is not newcomer), newcomer)
        self.metrics.slow_clients.labels("refused" if victim is newcomer else "idle").inc()
        victim.force_close()


class _Protocol(web.RequestHandler):
    """Speaks of errors below the application (malformed HTTP) as the application speaks of its own."""

    __slots__ = ("_head_timer", "_server", "on_lost")

    def __init__(self, server: _Server, **more: Any) -> None:
        super().__init__(server, **more)
        self._server = server
        self._head_timer: Any = None
        self.on_lost: Callable[[], None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, nor has one arrived."""
        return self._waiter is not None and not self._waiter.done()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TAKE_S * 1000))
        self._server.open[self] = None
        self._expect_head()
        self._server.make_room(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.open.pop(self, None)
        self._stop_expecting()
        super().connection_lost(exc)
        if isinstance(exc, TimeoutError):
            self._server.metrics.slow_clients.labels("answer").inc()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._stop_expecting()
        elif self._head_timer is None:
            self._expect_head()

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(HEAD_S, self._no_head)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _no_head(self) -> None:
        self._head_timer = None
        if self.is_idle:
            self._server.metrics.slow_clients.labels("head").inc()
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        # Where no call of ours takes the request, aiohttp refuses its `Expect` before the application hears of it.
        answer = self.handle_error(request, resp.status) if isinstance(resp, web.HTTPException) else resp
        return await super().finish_response(request, answer, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError) and has_left(request):
            log.debug("the client did not wait for its answer", method=request.method, path=request.rel_url.raw_path)
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_exception("unexpected error", exc_info=exc)
        kind, detail = BELOW.get(status) or ("malformed-request", _refusal(exc, message))
        request_id = str(uuid_utils.uuid7())
        response = response_of(Problem(status=HTTPStatus(status), kind=kind, detail=detail, close=True), request_id)
        protect(response, {REQUEST_ID: request_id})
        return response


def _refusal(error: BaseException | None, message: str | None) -> str:
    """What is wrong with a request that is none; the parser's own words, without the bytes it shows behind them."""
    if isinstance(error, LineTooLong):
        _, limit, _ = error.args
        return f"The address of the request, or one of its headers, is too long: each may have {limit} bytes."
    reason = (message or "").partition("\n")[0].rstrip(":.")
    return "The request is not HTTP as this service takes it." + (f" {reason}." if reason else "")


BELOW: Final[Mapping[int, tuple[str, str]]] = {
    500: ("internal-error", "This is a fault of the service; its log tells more under the request id."),
}
