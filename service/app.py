"""The one composition root: settings, lock, database, plugins, loops, HTTP; each in order, and back in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from aiohttp import web

from service import __version__, logs
from service.access import Rate
from service.api.access import Gate, is_loopback
from service.api.app import create_app
from service.api.connections import create_runner
from service.api.webhook_views import message
from service.bookkeeper import Bookkeeper
from service.control_management import PluginControlService
from service.db import instances, plugin_controls, plugin_metrics, queue_depth
from service.db.database import Database
from service.db.directories import make_directory
from service.db.engine import DatabaseKind, database_kind, database_place, sqlite_path
from service.db.instances import Instance
from service.db.lock import exclusive_lock
from service.db.migrate import upgrade
from service.db.snapshot import snapshot as copy_database
from service.dispatcher import Dispatcher
from service.errors import DatabaseInUseError, ServiceUnavailableError, StartupError
from service.events import EventBus
from service.first_process import run_below
from service.following import FollowingService
from service.health import Health
from service.housekeeper import Housekeeper
from service.job_actions import JobActions
from service.job_batches import JobBatches
from service.job_management import JobManagementService
from service.key_management import KeyManagementService
from service.metrics import Metrics, measure_loop_lag
from service.models import timestamp
from service.plugin_controls import PluginControls
from service.plugin_management import PluginManagementService
from service.plugins.discovery import installed_plugins
from service.plugins.manifest import PluginSource
from service.pruner import Pruner
from service.queue_limits import Limits, QueueLimits
from service.reports import ReportService
from service.rescuer import LeaseKeeper, Rescuer
from service.retention import RetentionService
from service.retries import RetryPolicy
from service.schedule_management import ScheduleManagementService
from service.scheduler import Scheduler
from service.settings import Settings
from service.throughput import Throughput
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner
from service.webhook_management import WebhookManagementService
from service.webhook_sender import WebhookSender
from service.webhooks import DeliveryPolicy, WebhookDeliverer

#: How long the last events may be folded when the service stops; the next start folds the rest.
_CLOSE_BOOKS_S: Final = 2.0
_SWITCH_S: Final = 0.001
#: So many more objects than before are looked through for cycles; a few dozen requests at once make 700, the default.
_YOUNG_OBJECTS: Final = 10_000
#: Connections that may wait to be accepted: of a burst none is turned away, to come back after a second.
_BACKLOG: Final = 1_024
#: Open files that are no connections: databases, workers, stored bytes.
_OTHER_FILES: Final = 512
_OTHER_PORT: Final = "Choose another JOBSERVICE_PORT, or 0 for a free one."
#: What to do where the service cannot listen; whatever else is in the way lies with the address.
_LISTENING_ADVICE: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: _OTHER_PORT,
    errno.EACCES: _OTHER_PORT,
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}

log = structlog.get_logger(__name__)

_Made = TypeVar("_Made")


class StoppedError(Exception):
    """The service was told to stop before it was ready."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Service:
    """A running service."""

    url: str | None  # None where it only works
    jobs: JobManagementService
    plugins: PluginManagementService
    following: FollowingService
    health: Health
    metrics: Metrics
    failed: asyncio.Event  # set when a loop has ended that must not

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        listen: bool = True,
        only_plugins: Collection[str] = (),
        stop: asyncio.Event | None = None,
    ) -> AsyncIterator[Service]:
        """A service that listens and works for as long as the block runs.

        With `listen` false it only works; with `only_plugins`, it takes jobs of those alone. While it waits for the
        migration of its database, by another process perhaps, it can be told to `stop`: `StoppedError` then.

        Leaving it takes no more jobs, lets the running ones finish for `drain_s`, gives the rest back, and stops.
        Raises `StartupError` with the one line that says why it cannot start.
        """
        async with contextlib.AsyncExitStack() as stack:
            database_url = settings.resolved_database_url
            _make_data_dir(settings)
            stack.enter_context(_alone(database_url))
            revision = await _unless(stop or asyncio.Event(), upgrade(database_url))
            database = await stack.enter_async_context(
                Database.open(
                    database_url, settings.data_dir / "blobs", inline_bytes=int(settings.inline_blob_kb * 1000)
                )
            )
            keys = KeyManagementService(database)
            await keys.refresh()
            if listen:
                await _refuse_exposure(settings, keys)
            metrics, events = Metrics(), EventBus()
            database.writer.on_commit = metrics.batch_size.observe
            metrics.gauge("jobservice_writer_queue", "Writes waiting for a transaction", lambda: database.writer.depth)
            metrics.counted(
                "jobservice_jobs_waiting",
                "Jobs in the database that wait",
                "state",
                lambda: queue_depth.count(database.reader),
            )
            for gauge in database.gauges:
                metrics.gauge(gauge.name, gauge.text, gauge.read)

            sources = _chosen(await asyncio.to_thread(installed_plugins), only_plugins)
            runner = ToolRunner(WorkerPool(settings), sources, settings)
            await runner.start()
            stack.push_async_callback(runner.close)
            plugins = PluginManagementService(
                runner,
                lambda: plugin_metrics.load(database.reader),
                lambda: plugin_controls.load(database.reader),
            )
            await plugins.start()
            stack.push_async_callback(plugins.close)
            queue_limits = QueueLimits(
                Limits(
                    total=settings.max_queued,
                    per_tenant=settings.max_queued_per_tenant,
                    per_plugin=settings.max_queued_per_plugin,
                ),
                lambda each: queue_depth.load(database.reader, each=each),
            )
            await queue_limits.refresh()
            controls = PluginControls(lambda: plugin_controls.load(database.reader), events)
            await controls.refresh()
            jobs = JobManagementService(
                database,
                plugins,
                events=events,
                metrics=metrics,
                lease_s=settings.lease_s,
                retries=RetryPolicy(base_s=settings.retry_base_s, cap_s=settings.retry_cap_s),
                queue_limits=queue_limits,
                webhook_rules=settings.webhook_rules,
                controls=controls,
            )
            schedules = ScheduleManagementService(database, plugins, jobs.intake, events=events, metrics=metrics)
            webhooks = WebhookManagementService(database, settings.webhook_rules)
            deliverer = WebhookDeliverer(
                webhooks,
                await stack.enter_async_context(
                    WebhookSender.open(settings.webhook_rules, timeout_s=settings.webhook_timeout_s)
                ),
                events,
                metrics,
                message,
                DeliveryPolicy(retries_s=settings.webhook_waits_s, lease_s=2 * settings.webhook_timeout_s),
            )
            metrics.gauge("jobservice_webhooks_under_way", "Messages being sent now", lambda: deliverer.under_way)
            metrics.gauge("jobservice_jobs_running", "Jobs running now", lambda: sum(jobs.running.values()))
            metrics.gauge("jobservice_workers", "Jobs that run at once here at most", lambda: runner.capacity)
            reports = ReportService(database)
            stack.push_async_callback(_close_books, reports)
            await _register(database, jobs.instance_id)
            stack.push_async_callback(_deregister, database, jobs.instance_id)
            # What runs elsewhere on a shared database is not ours to take back before its lease ends, and whether
            # another process has a plugin is not ours to say.
            is_alone = database_kind(database_url) is DatabaseKind.SQLITE
            recovered = await jobs.recover() if is_alone else 0
            plugin_wait_s = settings.plugin_wait_s if is_alone else None

            throughput = Throughput(lambda: plugin_metrics.count(database.reader))
            following = FollowingService(
                database,
                events,
                throughput=throughput,
                starts_in_turn=lambda plugin: plugin in sources and not controls.may_hold(plugin),
            )
            housekeeper = Housekeeper(jobs, plugins, plugin_wait_s=plugin_wait_s)
            health = Health(database, jobs, housekeeper)
            failed = asyncio.Event()
            dispatcher = Dispatcher(jobs, plugins, events, controls, capacity=runner.capacity)
            database.writer.has_time = lambda: dispatcher.is_ahead
            loops = {
                "dispatcher": dispatcher.run,
                "housekeeper": housekeeper.run,
                "scheduler": Scheduler(schedules, events).run,
                "lease keeper": LeaseKeeper(jobs, lease_s=settings.lease_s).run,
                "rescuer": Rescuer(jobs).run,
                "webhooks": deliverer.run,
                "writer": database.writer.ended,
                "worker watch": runner.ended,
                "bookkeeper": Bookkeeper(reports).run,
                "pruner": Pruner(RetentionService(database, settings.retention, metrics)).run,
                "wake-ups": lambda: database.relay(events),
                "API keys": keys.keep,
                "queue limits": queue_limits.keep,
                "throughput": throughput.keep,
                "event tail": following.keep_tail,
                "followed jobs": following.keep_watch,
                "plugin controls": controls.keep,
                "lag": lambda: measure_loop_lag(metrics),
            }
            for name, loop in loops.items():
                await stack.enter_async_context(_supervised(name, loop, health, failed))
            url = None
            if listen:
                app = create_app(
                    jobs=jobs,
                    actions=JobActions(database, jobs, events),
                    batches=JobBatches(database, events),
                    plugins=plugins,
                    webhooks=webhooks,
                    schedules=schedules,
                    controls=PluginControlService(database, plugins, controls, events),
                    reports=reports,
                    health=health,
                    settings=settings,
                    metrics=metrics,
                    gate=_gate(settings, keys),
                    following=following,
                )
                url = await stack.enter_async_context(_listening(app, settings, metrics))
                stack.push_async_callback(_record_use, keys)
            stack.push_async_callback(jobs.drain, settings.drain_s)
            stack.callback(following.close)
            log.info("ready", url=url, revision=revision, plugins=sorted(sources), recovered_jobs=recovered)
            yield cls(
                url=url,
                jobs=jobs,
                plugins=plugins,
                following=following,
                health=health,
                metrics=metrics,
                failed=failed,
            )


def run_service(settings: Settings, *, listen: bool = True, only_plugins: Collection[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. A second signal ends the drain at once.

    See `Service.open` for `listen` and `only_plugins`. Raises `StartupError` when the service cannot start.
    """
    if sys.platform != "linux":
        raise StartupError(f"jobservice runs on Linux; this is {sys.platform}.")
    if not listen and database_kind(settings.resolved_database_url) is DatabaseKind.SQLITE:
        raise StartupError(
            "`jobservice work` runs jobs of a shared PostgreSQL: set JOBSERVICE_DATABASE_URL to it. "
            "On the embedded database `jobservice serve` runs them itself."
        )
    if os.getpid() == 1:
        return run_below(lambda: _run_service(settings, listen, only_plugins))
    return _run_service(settings, listen, only_plugins)


def _run_service(settings: Settings, listen: bool, only_plugins: Collection[str]) -> int:
    logs.configure(settings.log_level, settings.log_format)
    # The database's thread asks for the interpreter after every statement: at the default of 5 ms a busy loop keeps it
    # waiting for most of a commit, and below 1 ms both lose more by changing (32 clients submit 5 % less at 5 ms, 10 %
    # less at 0.5 ms).
    sys.setswitchinterval(_SWITCH_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_serve(settings, listen, only_plugins))
        except StoppedError:
            log.info("stopped before it was ready")
            return 0


async def _serve(settings: Settings, listen: bool, only_plugins: Collection[str]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Service.open(settings, listen=listen, only_plugins=only_plugins, stop=stop) as service:
        # What is loaded now stays: without this each full collection walks all of it, some 10 % of a busy loop.
        gc.collect()
        gc.freeze()
        # Nothing here makes many cycles; a search for them at every batch took 6 % of a loop with jobs to run.
        gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
        does = f"listens on {service.url}" if listen else f"works as {service.jobs.instance_id}"
        # In one write: the log may go to the same place.
        print(f"jobservice {__version__} {does}\ndata is in {_place_of_data(settings)}\n", end="", flush=True)
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


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _Made]) -> _Made:
    """What `work` makes, unless it is told to `stop`: it is cancelled then, and `StoppedError` raised."""
    working, told = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    told.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if stop.is_set():
            raise StoppedError from None
        raise
    finally:
        told.cancel()


async def migrate(settings: Settings) -> str:
    """Bring the database to this version's schema; its revision. Raises `StartupError`."""
    _make_data_dir(settings)
    with _alone(settings.resolved_database_url):
        return await upgrade(settings.resolved_database_url)


async def snapshot(settings: Settings, target: Path) -> None:
    """Copy the database to `target` while a service may use it. Raises `StartupError`."""
    await asyncio.to_thread(copy_database, settings.resolved_database_url, target)


@contextlib.asynccontextmanager
async def open_keys(
    settings: Settings, *, must_exist: bool = False, on_made: Callable[[Path], object] | None = None
) -> AsyncIterator[KeyManagementService]:
    """The API keys in the database, for as long as the block runs, whether a service uses it or not.

    `on_made` is told of the file where it had to be made. Raises `StartupError` when the database cannot be opened, or
    is not there and `must_exist`.
    """
    database_url = settings.resolved_database_url
    path = sqlite_path(database_url).absolute() if database_kind(database_url) is DatabaseKind.SQLITE else None
    is_missing = path is not None and not path.exists()
    if must_exist and is_missing:
        raise StartupError(f"There is no database at {path}. `--data-dir` says where the service has its data.")
    _make_data_dir(settings)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_alone(database_url))
        except DatabaseInUseError:
            pass  # by a service, which has brought it to its schema; SQLite lets two write in turn
        else:
            await upgrade(database_url)
        if path is not None and is_missing and on_made is not None:
            on_made(path)
        async with Database.open(database_url, settings.data_dir / "blobs", inline_bytes=0) as database:
            yield KeyManagementService(database)


def _gate(settings: Settings, keys: KeyManagementService) -> Gate:
    is_open = settings.allow_anyone_who_reaches_this_port
    is_local = is_loopback(settings.host)
    rate = None
    if settings.rate_per_s is not None:
        rate = Rate(per_s=settings.rate_per_s, burst=settings.rate_burst or math.ceil(settings.rate_per_s))
    return Gate(keys, open_to_all=lambda: is_open or (is_local and not keys.are_in_use), rate=rate)


async def _refuse_exposure(settings: Settings, keys: KeyManagementService) -> None:
    if is_loopback(settings.host) or settings.allow_anyone_who_reaches_this_port:
        return
    now = timestamp()
    if not any(key.is_valid(now) for key in await keys.list_keys()):
        raise StartupError(
            f"Other machines may reach {settings.host}, and there is no valid API key: make one with "
            "`jobservice keys create NAME`, or listen on 127.0.0.1. "
            "(JOBSERVICE_ALLOW_ANYONE_WHO_REACHES_THIS_PORT=true serves everybody without a key.)"
        )


async def _record_use(keys: KeyManagementService) -> None:
    try:
        await keys.record_use()
    except ServiceUnavailableError as error:
        log.error("the last use of keys could not be recorded", error=str(error))


def _alone(database_url: str) -> contextlib.AbstractContextManager[None]:
    """Hold off every other process where one database takes one service."""
    if database_kind(database_url) is DatabaseKind.SQLITE:
        return exclusive_lock(sqlite_path(database_url))
    return contextlib.nullcontext()


def _chosen(installed: Mapping[str, PluginSource], names: Collection[str]) -> dict[str, PluginSource]:
    if unknown := sorted(set(names) - installed.keys()):
        raise StartupError(
            f"Plugin {unknown[0]!r} is not installed here. Installed are: {', '.join(sorted(installed)) or 'none'}."
        )
    return {name: source for name, source in installed.items() if not names or name in names}


def _make_data_dir(settings: Settings) -> None:
    try:
        make_directory(settings.data_dir)
    except OSError as error:
        raise StartupError(
            f"{settings.data_dir.absolute()} cannot be made: {error.strerror}. Choose another JOBSERVICE_DATA_DIR."
        ) from error


def _place_of_data(settings: Settings) -> str:
    directory = str(settings.data_dir.absolute())
    if settings.database_url is None:
        return directory
    return f"{directory}, the database is {database_place(settings.database_url)}"


async def _register(database: Database, instance_id: str) -> None:
    instance = Instance(
        id=instance_id, version=__version__, host=socket.gethostname(), pid=os.getpid(), started_at=timestamp()
    )
    await database.writer.write(instances.register, instance)


async def _deregister(database: Database, instance_id: str) -> None:
    try:
        await database.writer.write(instances.stop, instance_id)
    except ServiceUnavailableError as error:
        log.error("the end of this process could not be recorded", error=str(error))


async def _close_books(reports: ReportService) -> None:
    try:
        await reports.catch_up(_CLOSE_BOOKS_S)
    except ServiceUnavailableError as error:
        log.error("the reports miss what happened last, until the next start", error=str(error))


@contextlib.asynccontextmanager
async def _supervised(
    name: str, loop: Callable[[], Coroutine[Any, Any, None]], health: Health, failed: asyncio.Event
) -> AsyncIterator[None]:
    """Run a loop that must not end by itself: if it does, the service is not ready any more, and stops."""
    is_wanted = True

    def on_end(task: asyncio.Task[None]) -> None:
        if is_wanted:
            error = None if task.cancelled() else task.exception()
            log.critical("a loop has ended; the service stops", loop=name, exc_info=error)
            health.dead_loops.append(name)
            failed.set()

    task = asyncio.create_task(loop(), name=name)
    task.add_done_callback(on_end)
    try:
        yield
    finally:
        is_wanted = False
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _listening(app: web.Application, settings: Settings, metrics: Metrics) -> AsyncIterator[str]:
    runner = create_runner(app, max_connections=_max_connections(settings), metrics=metrics)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port, backlog=_BACKLOG).start()
        except (OSError, UnicodeError) as error:
            raise StartupError(
                f"Cannot listen on {settings.host}:{settings.port}: {_why_not_listening(error)}"
            ) from error
        host, port = runner.addresses[0][:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()


def _why_not_listening(error: OSError | UnicodeError) -> str:
    """What is in the way, and what to do."""
    # A name that can be none, and addresses that are all of other machines, come without a number.
    number = getattr(error, "errno", None) or errno.EADDRNOTAVAIL
    # The loop's own texts repeat the address.
    why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(number)
    return f"{why}. {_LISTENING_ADVICE.get(number, 'Give JOBSERVICE_HOST an address of this machine.')}"


def _max_connections(settings: Settings) -> int:
    """As many as the setting says and there are files for, after asking for as many files as one may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = hard - _OTHER_FILES if hard != resource.RLIM_INFINITY else settings.max_connections
    if files < settings.max_connections:
        log.warning("fewer connections than configured: the limit of open files is low", connections=files, files=hard)
    return max(1, min(files, settings.max_connections))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed (extra `speed`): about 15 % less CPU a small request."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
