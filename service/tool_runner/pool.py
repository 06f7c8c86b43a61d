"""The local executor: worker processes, kept warm by plugin, at most so many at work."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from service.calls import Call
from service.errors import StartupError
from service.plugins.manifest import PluginManifest, PluginSource
from service.settings import Settings
from service.tool_runner import folders
from service.tool_runner.executor import MB, Ceilings, Failure, Incident, Outcome, limits_of
from service.tool_runner.launch import Child, start_guard, start_worker
from service.tool_runner.sampler import Sampler
from service.tool_runner.shifts import Shift, Shifts
from service.tool_runner.worker_process import WorkerProcess, settle

#: For the import of a plugin about which nothing is known yet; the host's ceiling wins.
IMPORT_LIMIT_S: Final = 60.0
#: Threads that kill and bury; each waits for one worker at a time.
UNDERTAKERS: Final = 4

log = structlog.get_logger(__name__)

_CLOSED: Final = Failure(incident=Incident.HOST, message="The service is stopping.")


class WorkerPool:
    """An `Executor` on this machine. A worker serves one plugin for its life and runs one call at a time.

    A plugin that is declared short has some calls on their way to a worker that is at work; see `Shifts`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: Stands in the marker of every process that this pool started, directly or not.
        self.instance = uuid.uuid4().hex
        self._scratch = settings.data_dir.absolute() / "scratch"
        self._lock: int | None = None
        self._started = 0
        self._shifts = Shifts(settings.workers, self._keep)
        self._manifests: dict[str, PluginManifest] = {}
        self._idle: list[WorkerProcess] = []  # least recently used first
        self._workers: set[WorkerProcess] = set()
        self._launching: set[asyncio.Future[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._sampler = Sampler()
        # A worker ends when the thread that started its keeper ends, so one thread starts all of them.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="worker-spawner")
        self._undertakers = ThreadPoolExecutor(UNDERTAKERS, thread_name_prefix="worker-undertaker")
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def capacity(self) -> int:
        """How many calls run at once; more of them wait."""
        return self._settings.workers

    @property
    def worker_pids(self) -> frozenset[int]:
        """The worker processes there are now, busy, idle or ending."""
        return frozenset(worker.pid for worker in self._workers)

    async def start(self) -> None:
        """Make ready for calls; raises `StartupError` where that is impossible."""
        if sys.platform != "linux":
            raise StartupError("Plugins run in Linux processes; this system is not Linux.")
        try:
            await self._on_spawner(self._prepare)
        except OSError as error:
            raise StartupError(f"Plugins cannot be executed in {self._scratch}: {error}.") from error
        self._sampler.start()
        self._is_open = True

    async def close(self) -> None:
        """End everything that still runs; returns when no plugin code is left running."""
        was_open, self._is_open = self._is_open, False
        busy = self._workers.difference(self._idle)
        for worker in busy:
            worker.kill(_CLOSED)
        for worker in self._idle:
            self._retire(worker)
        self._idle.clear()
        await settle(self._until_gone())
        if was_open:
            await self._on_spawner(self._clean_up)
            await asyncio.to_thread(self._sampler.stop)
        self._spawner.shutdown(wait=False)
        self._undertakers.shutdown(wait=False)

    async def ended(self) -> None:
        """Return once the thread that watches the memory of workers has ended."""
        await asyncio.shield(asyncio.wrap_future(self._sampler.ended))

    async def describe(self, source: PluginSource, ceilings: Ceilings) -> PluginManifest | Failure:
        """Load the plugin in a worker, which stays warm for its first call."""
        for worker in self._idle:
            if worker.source == source and worker.manifest is not None:
                return worker.manifest
        spawned = await self._spawn(source, ceilings)
        if isinstance(spawned, Failure):
            return spawned
        self._keep(spawned)
        return self._manifests[source.name]

    async def submit(self, source: PluginSource, payload: Mapping[str, Any], call: Call, ceilings: Ceilings) -> Outcome:
        """Execute the plugin once, within `limits_of` it; see `Executor.submit`."""
        while True:
            shift = await self._shifts.take(source)
            try:
                worker = shift.worker or await self._man(shift, ceilings)
                if isinstance(worker, Failure):
                    return worker
                limits = limits_of(self._manifests[source.name], call, ceilings)
                outcome = await worker.execute(dict(payload), call, limits)
            finally:
                self._shifts.leave(shift)
            if outcome is not None:
                return outcome

    async def _man(self, shift: Shift, ceilings: Ceilings) -> WorkerProcess | Failure:
        """A worker for a new shift."""
        worker = self._warm(shift.source) or await self._spawn(shift.source, ceilings)
        if isinstance(worker, WorkerProcess):
            shift.worker = worker
            self._shifts.assign()
        return worker

    def _warm(self, source: PluginSource) -> WorkerProcess | None:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].source == source and self._idle[index].is_fit:
                return self._idle.pop(index)
        return None

    async def _spawn(self, source: PluginSource, ceilings: Ceilings) -> WorkerProcess | Failure:
        """A new worker with the plugin loaded."""
        if not self._is_open:
            return _CLOSED
        worker = await self._launch(source, ceilings)
        if isinstance(worker, Failure):
            return worker
        limit_s = min(self._import_limit(source), ceilings.timeout_s)
        try:
            loaded = await worker.load(limit_s)
        except BaseException:
            self._retire(worker)
            raise
        if isinstance(loaded, Failure):
            self._retire(worker)
            await settle(_gone(worker))
            return loaded
        known = self._manifests.get(source.name, loaded)
        if known.version != loaded.version:
            log.warning(
                "a plugin was changed; restart the service, which still checks its jobs as before",
                plugin=source.name,
                version=loaded.version,
                before=known.version,
            )
        self._manifests[source.name] = loaded
        self._shifts.limit(source.name, loaded.concurrency)
        return worker

    async def _launch(self, source: PluginSource, ceilings: Ceilings) -> WorkerProcess | Failure:
        """A new worker process; when this returns or raises, the pool knows it or there is none."""
        launching: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._launching.add(launching)
        try:
            self._started += 1
            name = f"w{self._started}"
            starting = asyncio.ensure_future(self._on_spawner(self._start_worker, name))
            try:
                await settle(_finish(starting))
            except asyncio.CancelledError:
                if starting.exception() is None:
                    self._retire(self._adopt(starting.result(), source, ceilings))
                raise
            except OSError as error:
                log.error("a worker process could not be started", error=str(error))
                return Failure(incident=Incident.HOST, message=f"A worker process could not be started: {error}.")
            worker = self._adopt(starting.result(), source, ceilings)
            if not self._is_open:
                worker.kill(_CLOSED)
            return worker
        finally:
            self._launching.discard(launching)
            launching.set_result(None)

    def _import_limit(self, source: PluginSource) -> float:
        known = self._manifests.get(source.name)
        return (known and (known.setup_timeout_s or known.timeout_s)) or IMPORT_LIMIT_S

    def _adopt(self, child: Child, source: PluginSource, ceilings: Ceilings) -> WorkerProcess:
        worker = WorkerProcess(child, source, ceilings, self._sampler, self._undertakers)
        self._workers.add(worker)
        worker.gone.add_done_callback(lambda _: self._forget(worker))
        return worker

    def _forget(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        with suppress(ValueError):
            self._idle.remove(worker)

    def _keep(self, worker: WorkerProcess) -> None:
        """Keep a worker warm if it is fit, and let the least recently used go where there are too many."""
        if not worker.is_fit or not self._is_open:
            self._retire(worker)
            return
        self._idle.append(worker)
        if len(self._idle) > self._settings.warm:
            self._retire(self._idle.pop(0))
        budget = self._settings.warm_memory_mb * MB
        while self._idle and sum(idle.watched.resident_bytes for idle in self._idle) > budget:
            self._retire(self._idle.pop(0))

    def _retire(self, worker: WorkerProcess) -> None:
        task = asyncio.get_running_loop().create_task(worker.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _until_gone(self) -> None:
        while waited := [*self._launching, *self._retiring, *(worker.gone for worker in self._workers)]:
            await asyncio.wait(waited)

    # --- in the spawner's thread ---

    async def _on_spawner(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._spawner, work, *arguments)

    def _prepare(self) -> None:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch.chmod(0o700)  # it may be there from before
        looking = os.open(self._scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One service at a time: until ours is locked, another one would take it for that of a dead service.
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(looking, fcntl.LOCK_EX)
            for left in self._scratch.iterdir():
                lock = _try_lock(left)
                if lock is not None:  # the service that worked there is dead
                    folders.remove(left)
                    os.close(lock)
            folder = self._scratch / self.instance
            folder.mkdir()
            self._lock = _try_lock(folder)
        finally:
            os.close(looking)
        self._guard = start_guard(self.instance)

    def _start_worker(self, name: str) -> Child:
        if self._guard is not None and self._guard.poll() is not None:
            log.warning("the guard of the workers had died; another one is started")
            self._guard.communicate()
            self._guard = start_guard(self.instance)
        return start_worker(f"{self.instance}/{name}/", self._scratch / self.instance / name)

    def _clean_up(self) -> None:
        if self._guard is not None:
            self._guard.communicate()
        folders.remove(self._scratch / self.instance)
        if self._lock is not None:
            os.close(self._lock)


async def _finish(starting: asyncio.Future[Child]) -> None:
    await starting


async def _gone(worker: WorkerProcess) -> None:
    await asyncio.wait([worker.gone])


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, None where somebody else holds it or it is no folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
