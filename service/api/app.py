"""The HTTP application, and the server settings that belong to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import uuid_utils
from aiohttp import hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from service.api.access import Gate
from service.api.description import Description
from service.api.middleware import guard, protect
from service.api.problems import Problem, response_of
from service.api.resources import Resource, read_files
from service.api.routes import ROUTES
from service.api.services import Health, Services
from service.errors import StartupError
from service.job_management import JobManagementService
from service.metrics import Metrics
from service.plugin_management import PluginManagementService
from service.settings import Settings

#: Also ends a connection whose request headers do not arrive.
KEEPALIVE_S: Final = 75.0
#: How long a refused body is read and thrown away, so that the client sees the answer rather than a reset.
LINGERING_S: Final = 2.0
#: How long answers may still go out when the process stops.
SHUTDOWN_S: Final = 2.0


def create_app(
    jobs: JobManagementService,
    plugins: PluginManagementService,
    health: Health,
    settings: Settings,
    metrics: Metrics,
    gate: Gate,
) -> web.Application:
    """The application of `routes.ROUTES` over these services; serve it with `create_runner`."""
    if HttpRequestParser is HttpRequestParserPy:
        raise StartupError("aiohttp runs without its C parser, which is not safe to serve with: install its wheel.")
    max_body_bytes = int(settings.max_body_mb * 1_000_000)
    description = Description(ROUTES, plugins)
    files: dict[str, Resource] = {}
    services = Services(
        jobs=jobs,
        plugins=plugins,
        health=health,
        metrics=metrics,
        gate=gate,
        max_body_bytes=max_body_bytes,
        description=description,
        files=files,
    )
    app = web.Application(middlewares=[guard(settings, metrics)])

    async def prepare(app: web.Application) -> None:
        files.update(await asyncio.to_thread(read_files))
        await description.of_routes()

    app.on_startup.append(prepare)

    async def expect(request: web.Request) -> None:
        # A body that is too large is not asked for; its reader then refuses it by its length.
        if request.headers[hdrs.EXPECT].lower() == "100-continue" and (request.content_length or 0) <= max_body_bytes:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0

    for route in ROUTES:
        endpoint = route.endpoint(services)
        app.router.add_route(route.method, route.path, endpoint, expect_handler=expect)
        if route.answers_head:
            app.router.add_route(hdrs.METH_HEAD, route.path, endpoint, expect_handler=expect)
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """A runner with this API's time-outs; it answers malformed HTTP with problem details as well."""
    return _Runner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGERING_S,
        shutdown_timeout=SHUTDOWN_S,
        auto_decompress=False,
        handler_cancellation=False,
    )


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """Speaks of errors below the application (malformed HTTP) as the application speaks of its own."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_exception("unexpected error", exc_info=exc)
        kind, detail = BELOW.get(status, ("malformed-request", "The request is not HTTP as this service takes it."))
        request_id = str(uuid_utils.uuid7())
        response = response_of(Problem(status=HTTPStatus(status), kind=kind, detail=detail, close=True), request_id)
        protect(response, request_id)
        return response


BELOW: Final[Mapping[int, tuple[str, str]]] = {
    500: ("internal-error", "This is a fault of the service; its log tells more under the request id."),
}
