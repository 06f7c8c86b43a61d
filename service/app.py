"""The one composition root: settings, lock, database, plugins, loops, HTTP; each in order, and back in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import structlog
from aiohttp import web

from service import __version__, logs
from service.api.app import create_app, create_runner
from service.db import instances, plugin_metrics
from service.db.database import Database
from service.db.engine import sqlite_path
from service.db.ground import Healing
from service.db.instances import Instance
from service.db.lock import exclusive_lock
from service.db.migrate import upgrade
from service.dispatcher import Dispatcher
from service.errors import ServiceError, ServiceUnavailableError, StartupError
from service.events import EventBus
from service.housekeeper import Housekeeper
from service.job_management import JobManagementService
from service.metrics import Metrics, measure_loop_lag
from service.models import timestamp
from service.plugin_management import PluginManagementService
from service.plugins.discovery import installed_plugins
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner

_PROBE_S: Final = 2.0

log = structlog.get_logger(__name__)


class Health:
    """Whether the process can serve, and why not."""

    def __init__(self, database: Database, jobs: JobManagementService) -> None:
        self._database = database
        self._jobs = jobs
        self.dead_loops: list[str] = []

    @property
    def draining(self) -> bool:
        """True once no new work is taken."""
        return not self._jobs.accepting

    @property
    def must_end_at_once(self) -> bool:
        """True when nothing that this process writes can be trusted any more."""
        fault = self._database.ground.fault
        return fault is not None and fault.healing is Healing.NEVER

    @property
    def warnings(self) -> Sequence[str]:
        """What people should know although the process can serve."""
        return self._database.ground.warnings

    async def readiness(self) -> list[str]:
        """Why the process cannot serve now; empty when it can. Commits a probe, so that it tells the truth."""
        reasons = [f"The {name} loop has ended." for name in self.dead_loops]
        if self.draining:
            reasons.append("The service is shutting down.")
        if (fault := self._database.ground.fault) is not None:
            return [*reasons, fault.reason]
        probe = asyncio.ensure_future(self._database.writer.write(instances.beat, self._jobs.instance_id))
        try:
            await asyncio.wait_for(asyncio.shield(probe), _PROBE_S)
        except TimeoutError:
            probe.add_done_callback(lambda done: done.cancelled() or done.exception())
            reasons.append(f"The database took no write within {_PROBE_S:g} s.")
        except ServiceError as error:
            reasons.append(str(error))
        return reasons


@dataclasses.dataclass(slots=True, kw_only=True)
class Service:
    """A running service."""

    url: str
    jobs: JobManagementService
    plugins: PluginManagementService
    health: Health
    metrics: Metrics
    failed: asyncio.Event  # set when a loop has ended that must not

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Service]:
        """A service that listens and works for as long as the block runs.

        Leaving it takes no more jobs, lets the running ones finish for `drain_s`, gives the rest back, and stops.
        Raises `StartupError` with the one line that says why it cannot start.
        """
        async with contextlib.AsyncExitStack() as stack:
            database_url = settings.resolved_database_url
            _make_data_dir(settings)
            stack.enter_context(exclusive_lock(sqlite_path(database_url)))
            revision = await upgrade(database_url)
            database = await stack.enter_async_context(
                Database.open(
                    database_url, settings.data_dir / "blobs", inline_bytes=int(settings.inline_blob_kb * 1000)
                )
            )
            metrics, events = Metrics(), EventBus()
            database.writer.on_commit = metrics.batch_size.observe
            metrics.gauge("jobservice_writer_queue", "Writes waiting for a transaction", lambda: database.writer.depth)
            wal = database.writer.log
            metrics.gauge("jobservice_wal_bytes", "Size of the write-ahead log", lambda: wal.size_bytes)
            metrics.gauge("jobservice_wal_age_seconds", "Time since the log was empty", lambda: wal.age_s)

            sources = await asyncio.to_thread(installed_plugins)
            runner = ToolRunner(WorkerPool(settings), sources, settings)
            await runner.start()
            stack.push_async_callback(runner.close)
            plugins = PluginManagementService(runner, lambda: plugin_metrics.load(database.reader))
            await plugins.start()
            stack.push_async_callback(plugins.close)
            jobs = JobManagementService(database, plugins, events=events, metrics=metrics, lease_s=settings.lease_s)
            metrics.gauge("jobservice_jobs_running", "Jobs running now", lambda: sum(jobs.running.values()))
            await _register(database, jobs.instance_id)
            stack.push_async_callback(_deregister, database, jobs.instance_id)
            recovered = await jobs.recover()

            health = Health(database, jobs)
            failed = asyncio.Event()
            loops = {
                "writer": database.writer.watch,
                "dispatcher": Dispatcher(jobs, plugins, events, capacity=runner.capacity).run,
                "housekeeper": Housekeeper(jobs, events, lease_s=settings.lease_s).run,
                "lag": lambda: measure_loop_lag(metrics),
            }
            for name, loop in loops.items():
                await stack.enter_async_context(_supervised(name, loop, health, failed))
            url = await stack.enter_async_context(
                _listening(create_app(jobs, plugins, health, settings, metrics), settings)
            )
            stack.push_async_callback(jobs.drain, settings.drain_s)
            log.info("ready", url=url, revision=revision, plugins=sorted(sources), recovered_jobs=recovered)
            yield cls(url=url, jobs=jobs, plugins=plugins, health=health, metrics=metrics, failed=failed)


def run_service(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. A second signal ends the drain at once.

    Raises `StartupError` when the service cannot start.
    """
    if sys.platform != "linux":
        raise StartupError(f"jobservice runs on Linux; this is {sys.platform}.")
    logs.configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Service.open(settings) as service:
        # What is loaded now stays: without this each full collection walks all of it, some 10 % of a busy loop.
        gc.collect()
        gc.freeze()
        print(f"jobservice {__version__} listens on {service.url}", flush=True)
        print(f"data is in {settings.data_dir.absolute()}", flush=True)
        ended = [asyncio.ensure_future(event.wait()) for event in (stop, service.failed)]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for waiter in ended:
            waiter.cancel()
        if service.health.must_end_at_once:
            # Closing the database would copy what the disk may have dropped from the log into it.
            logs.flush()
            os._exit(1)
        log.info("stopping", running=sum(service.jobs.running.values()), patience_s=settings.drain_s)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.jobs.hurry)
        is_failed = service.failed.is_set()
    log.info("stopped")
    return 1 if is_failed else 0


async def migrate(settings: Settings) -> str:
    """Bring the database to this version's schema; its revision. Raises `StartupError`."""
    _make_data_dir(settings)
    with exclusive_lock(sqlite_path(settings.resolved_database_url)):
        return await upgrade(settings.resolved_database_url)


def _make_data_dir(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"{settings.data_dir.absolute()} cannot be made: {error.strerror}. Choose another JOBSERVICE_DATA_DIR."
        ) from error


async def _register(database: Database, instance_id: str) -> None:
    instance = Instance(
        id=instance_id, version=__version__, host=socket.gethostname(), pid=os.getpid(), started_at=timestamp()
    )
    await database.writer.write(instances.register, instance)


async def _deregister(database: Database, instance_id: str) -> None:
    try:
        await database.writer.write(instances.stop, instance_id)
    except ServiceUnavailableError as error:
        log.warning("stopped without a record of it", error=str(error))


@contextlib.asynccontextmanager
async def _supervised(
    name: str, loop: Callable[[], Coroutine[Any, Any, None]], health: Health, failed: asyncio.Event
) -> AsyncIterator[None]:
    """Run a loop that must not end by itself: if it does, the service is not ready any more, and stops."""

    def on_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("a loop has ended", loop=name, exc_info=task.exception())
            health.dead_loops.append(name)
            failed.set()

    task = asyncio.create_task(loop(), name=name)
    task.add_done_callback(on_end)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _listening(app: web.Application, settings: Settings) -> AsyncIterator[str]:
    runner = create_runner(app)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}. "
                "Choose another JOBSERVICE_PORT, or 0 for a free one."
            ) from error
        host, port = runner.addresses[0][:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed (extra `speed`): about 15 % less CPU a small request."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
