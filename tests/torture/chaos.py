"""Faults done to a deployment from outside, chosen by profile and seed; each is written down with its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.torture.deployment import Deployment, Member, SqliteDeployment
from tests.torture.history import History

#: How often each fault is chosen.
PROFILES: dict[str, dict[str, float]] = {
    "mixed": {
        "kill_service": 3, "terminate_service": 1, "pause_service": 3, "kill_worker": 4, "stop_worker": 1,
        "long_reader": 1, "write_lock": 1, "restart_database": 1,
    },
    "pause": {"pause_service": 1},
    "worker": {"kill_worker": 4, "stop_worker": 1},
    "replace": {"kill_service": 1},
    "disk": {"fill_disk": 2, "kill_service": 1, "kill_worker": 1},
    "pg": {"restart_database": 2, "kill_service": 1, "pause_service": 1},
    "none": {},
}  # fmt: skip

#: Faults that only one kind of database knows.
ONLY = {"long_reader": "sqlite", "write_lock": "sqlite", "fill_disk": "sqlite", "restart_database": "postgresql"}

#: What is left free for the rest of the world when the disk is filled: nothing that a transaction fits in.
_CHUNK = bytes(65_536)


class Chaos:
    """Does faults one after the other, a pause of `gap_s` on average between two; those that last overlap."""

    def __init__(
        self,
        deployment: Deployment,
        history: History,
        *,
        profile: str,
        seed: int,
        unit_s: float,
        gap_s: float,
        members: Callable[[Member], bool] = lambda member: True,
    ) -> None:
        self._deployment = deployment
        self._history = history
        self._rng = random.Random(f"{seed}/chaos")
        self._unit_s = unit_s
        self._gap_s = gap_s
        self._may = members
        chosen = {
            name: weight
            for name, weight in PROFILES[profile].items()
            if ONLY.get(name, deployment.database) == deployment.database
        }
        self._faults: list[Callable[[], Awaitable[None]]] = [getattr(self, name) for name in chosen]
        self._weights = list(chosen.values())
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Do faults until cancelled."""
        supervisor = asyncio.create_task(self.supervise())
        try:
            while True:
                await asyncio.sleep(self._rng.uniform(0.3, 1.7) * self._gap_s)
                if self._faults:
                    (fault,) = self._rng.choices(self._faults, self._weights)
                    task = asyncio.ensure_future(fault())
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            supervisor.cancel()

    async def supervise(self) -> None:
        """Start again what ended by itself, as any supervisor of processes would, for ever."""
        while True:
            self._restart_dead()
            await asyncio.sleep(0.05)

    async def heal(self) -> None:
        """End every fault; all members run when it returns."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._restart_dead()
        for member in self._deployment.members:
            if not member.is_up:
                member.start()

    def _restart_dead(self) -> None:
        for member in self._deployment.members:
            if member.is_wanted and not member.is_up and member.popen is not None:
                member.exits.append(member.popen.wait())
                self._history.note(f"{member.name} ended by itself with exit code {member.exits[-1]}")
                member.start()

    # --- faults ---

    async def kill_service(self) -> None:
        """SIGKILL of the process alone; its workers are left to find out."""
        with self._one_member() as member:
            if member is not None:
                self._history.fault("kill_service", f"{member.name} {member.pid}")
                member.kill()
                await self._restart(member)

    async def terminate_service(self) -> None:
        """SIGTERM; it must end by itself with exit code 0."""
        with self._one_member() as member:
            if member is None:
                return
            self._history.fault("terminate_service", f"{member.name} {member.pid}")
            member.is_wanted = False
            member.signal(signal.SIGTERM)
            assert member.popen is not None
            try:
                code = await asyncio.to_thread(member.popen.wait, 30)
            except subprocess.TimeoutExpired:
                self._history.surprises.append(("bad_exit", member.name, "SIGTERM did not end it within 30 s"))
                member.kill()
            else:
                # Before it has set its handlers the signal itself ends it.
                if code not in (0, -signal.SIGTERM):
                    self._history.surprises.append(("bad_exit", member.name, f"exit code {code} after SIGTERM"))
            await self._restart(member)

    async def pause_service(self) -> None:
        """SIGSTOP for about a lease, then SIGCONT."""
        with self._one_member() as member:
            if member is not None:
                seconds = self._rng.uniform(0.9, 1.6) * self._unit_s
                self._history.fault("pause_service", f"{member.name} {member.pid} for {seconds:.3f} s")
                member.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    member.signal(signal.SIGCONT)
                    self._history.note(f"continue {member.name}")

    async def kill_worker(self) -> None:
        await self._to_a_worker("kill_worker", signal.SIGKILL)

    async def stop_worker(self) -> None:
        """SIGSTOP for ever: only the time limit ends it."""
        await self._to_a_worker("stop_worker", signal.SIGSTOP)

    async def long_reader(self) -> None:
        """A reporting query that holds its snapshot."""
        assert isinstance(self._deployment, SqliteDeployment)
        seconds = self._rng.uniform(1, 4)
        self._history.fault("long_reader", f"for {seconds:.1f} s")
        with contextlib.suppress(sqlite3.Error):
            uri = f"file:{self._deployment.file}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM report_jobs").fetchone()
                await asyncio.sleep(seconds)

    async def write_lock(self) -> None:
        """Another program that holds the write lock of the file."""
        assert isinstance(self._deployment, SqliteDeployment)
        seconds = self._rng.uniform(0.5, 7)
        self._history.fault("write_lock", f"for {seconds:.1f} s")
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(self._deployment.file, isolation_level=None, timeout=0.2)) as writer,
        ):
            # A writer that checkpoints beside the service is not what is tried here.
            writer.execute("PRAGMA wal_autocheckpoint=0")
            writer.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(seconds)
            writer.execute("ROLLBACK")

    async def fill_disk(self) -> None:
        """The disk that holds the data has no byte left for some seconds."""
        filler = self._deployment.data_dir / "filler"
        seconds = self._rng.uniform(0.5, 3)
        self._history.fault("fill_disk", f"for {seconds:.1f} s")
        await asyncio.to_thread(_fill, filler)
        try:
            await asyncio.sleep(seconds)
        finally:
            filler.unlink(missing_ok=True)
            self._history.note("disk freed")

    async def restart_database(self) -> None:
        """The database server dies without a word and comes back."""
        self._history.fault("restart_database", "immediate stop, then start")
        await self._deployment.restart_database()
        self._history.note("database started")

    # --- parts ---

    async def _to_a_worker(self, kind: str, number: signal.Signals) -> None:
        pids = [pid for member in self._deployment.members if member.is_up for pid in member.workers()]
        if pids:
            pid = self._rng.choice(pids)
            self._history.fault(kind, str(pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextlib.contextmanager
    def _one_member(self):  # type: ignore[no-untyped-def]
        free = [
            member
            for member in self._deployment.members
            if member.is_up and member.name not in self._busy and self._may(member)
        ]
        member = self._rng.choice(free) if free else None
        if member is None:
            yield None
            return
        self._busy.add(member.name)
        try:
            yield member
        finally:
            self._busy.discard(member.name)

    async def _restart(self, member: Member) -> None:
        await asyncio.sleep(self._rng.choice((0.0, self._rng.uniform(0, 2 * self._unit_s))))
        member.start()
        self._history.note(f"start {member.name} {member.pid}")
        # Let it get up before it may be chosen again: a service that is never up does nothing wrong.
        await member.ready(timeout_s=15)
        await asyncio.sleep(self._rng.uniform(0, 2 * self._unit_s))


def _fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        size = len(_CHUNK)
        while size:
            try:
                file.write(_CHUNK[:size])
            except OSError:
                size //= 2
