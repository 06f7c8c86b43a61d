"""Watches the memory and the output of all workers from one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

import structlog

from service.tool_runner import processes
from service.tool_runner.output import Output

#: A tick and its work stay within 100 ms.
EVERY_S: Final = 0.08

log = structlog.get_logger(__name__)


class Watched:
    """One worker as the sampler sees it, by the id of its keeper. Plain attributes: one thread writes each of them."""

    def __init__(self, pid: int, output: Output, on_excess: Callable[[int], None]) -> None:
        self.pid = pid
        self.output = output
        self.limit_bytes: int | None = None  # set by the owner
        self.resident_bytes = 0
        self.peak_bytes = 0  # reset by the owner
        self._on_excess = on_excess

    def look(self, members: list[int]) -> None:
        """Measure `members`, the processes of this worker."""
        resident = sum(map(processes.resident_bytes, members))
        limit = self.limit_bytes
        if limit is not None and resident > limit and len(members) > 1:
            resident = sum(map(processes.proportional_bytes, members))  # forked processes share most of their memory
        self.resident_bytes = resident
        self.peak_bytes = max(self.peak_bytes, resident)
        if limit is not None and resident > limit:
            self._on_excess(resident)
        self.output.empty_if_large()


class Sampler:
    """Looks at the processes below every keeper that is watched, at least every 100 ms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[int, Watched] = {}
        self._below: dict[int, int] = {}  # process → the watched keeper it is below or is, 0 for all others
        self._stop = threading.Event()
        self.ended: Future[None] = Future()  # resolved when the thread has ended, for whatever reason
        self._thread = threading.Thread(target=self._loop, name="worker-memory", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; blocks for a tick at most."""
        self._stop.set()
        self._thread.join()

    def watch(self, worker: Watched) -> None:
        """Look at this one too, from now on."""
        with self._lock:
            self._workers[worker.pid] = worker

    def forget(self, worker: Watched) -> None:
        """Look at it no more; when this returns its descriptors may be closed. Blocks for a tick's work at most."""
        with self._lock:
            self._workers.pop(worker.pid, None)

    def _loop(self) -> None:
        try:
            self._watch()
        finally:
            self.ended.set_result(None)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            with self._lock:
                if self._workers:
                    try:
                        self._tick()
                    except Exception:
                        log.exception("the memory of the workers could not be sampled")

    def _tick(self) -> None:
        known, self._below = self._below, {pid: pid for pid in self._workers}
        members: dict[int, list[int]] = {pid: [] for pid in self._workers}
        parents: dict[int, int] = {}  # of processes that were not there before
        for pid in processes.pids():
            # What was seen before keeps its place: orphans are adopted by the worker or its keeper.
            owner = self._below.get(pid)
            if owner is None:
                owner = known.get(pid)
            if owner is None or (owner and owner not in members):
                if fields := processes.stat(pid):
                    parents[pid] = int(fields[1])
                continue
            self._below[pid] = owner
            if owner and owner != pid:
                members[owner].append(pid)
        for pid, above in parents.items():
            # A parent may have the higher id. No more steps than there are: ids may be used again meanwhile.
            for _ in parents:
                if above in self._below or above not in parents:
                    break
                above = parents[above]
            owner = self._below[pid] = self._below.get(above, 0)
            if owner:
                members[owner].append(pid)
        for pid, worker in self._workers.items():
            worker.look(members[pid])
