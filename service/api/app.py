"""The HTTP application: every route with the services behind it."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.typedefs import Handler

from service.api.access import Gate
from service.api.description import Description
from service.api.ended_jobs import EndedJobs
from service.api.middleware import guard
from service.api.open_streams import OpenStreams
from service.api.resources import Resource, read_files
from service.api.routes import ROUTES
from service.api.services import Health, Services
from service.control_management import PluginControlService
from service.errors import StartupError
from service.following import FollowingService
from service.job_actions import JobActions
from service.job_batches import JobBatches
from service.job_management import JobManagementService
from service.metrics import Metrics
from service.plugin_management import PluginManagementService
from service.reports import ReportService
from service.schedule_management import ScheduleManagementService
from service.settings import Settings
from service.webhook_management import WebhookManagementService


def create_app(
    *,
    jobs: JobManagementService,
    actions: JobActions,
    batches: JobBatches,
    plugins: PluginManagementService,
    webhooks: WebhookManagementService,
    schedules: ScheduleManagementService,
    controls: PluginControlService,
    reports: ReportService,
    health: Health,
    settings: Settings,
    metrics: Metrics,
    gate: Gate,
    following: FollowingService,
) -> web.Application:
    """The application of `routes.ROUTES` over these services; serve it with `connections.create_runner`."""
    if HttpRequestParser is HttpRequestParserPy:
        raise StartupError("aiohttp runs without its C parser, which is not safe to serve with: install its wheel.")
    max_body_bytes = int(settings.max_body_mb * 1_000_000)
    description = Description(ROUTES, plugins)
    files: dict[str, Resource] = {}
    streams = OpenStreams(most=settings.max_streams, most_per_caller=settings.max_streams_per_caller)
    metrics.gauge("jobservice_event_streams", "Streams of events open now", lambda: streams.count)
    services = Services(
        jobs=jobs,
        actions=actions,
        batches=batches,
        plugins=plugins,
        webhooks=webhooks,
        schedules=schedules,
        controls=controls,
        reports=reports,
        health=health,
        metrics=metrics,
        gate=gate,
        following=following,
        ended_jobs=EndedJobs(),
        streams=streams,
        stream_s=settings.stream_s,
        max_body_bytes=max_body_bytes,
        description=description,
        files=files,
    )
    app = web.Application(middlewares=[guard(settings, metrics)])

    async def prepare(app: web.Application) -> None:
        files.update(await asyncio.to_thread(read_files))

    app.on_startup.append(prepare)

    async def expect(request: web.Request) -> None:
        # A body that is too large is not asked for; its reader then refuses it by its length.
        if request.headers[hdrs.EXPECT].lower() == "100-continue" and (request.content_length or 0) <= max_body_bytes:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0

    # Calls of one path beside each other are one resource of aiohttp's, which asks one after the other by its pattern.
    for route in sorted(ROUTES, key=lambda route: route.path):
        endpoint = route.endpoint(services)
        app.router.add_route(route.method, route.path, endpoint, expect_handler=expect)
        if route.answers_head:
            app.router.add_route(hdrs.METH_HEAD, route.path, endpoint, expect_handler=expect)
    for path in {route.path for route in ROUTES if not route.path_parameters}:
        app.router.add_route(hdrs.METH_ANY, path, _refusing_others(path))
    return app


def _refusing_others(path: str) -> Handler:
    """Without it, other methods would take `batch` in `/v1/jobs/batch` for the id of a job."""
    routes = [route for route in ROUTES if route.path == path]
    allowed = {route.method for route in routes} | {hdrs.METH_HEAD for route in routes if route.answers_head}

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    return refuse
