"""Brings a database to this version's schema; the only way a schema comes into being."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import service
from service.db import preflight, restored, views
from service.db.engine import DatabaseKind, create_migration_engine, database_kind, database_place, sqlite_path
from service.db.snapshot import copy as copy_file
from service.db.sqlite_file import SqliteFile
from service.errors import StartupError
from service.models import timestamp

#: Copies a database that is at a revision, before it leaves it.
_Copy = Callable[[sa.Connection, str], None]

log = structlog.get_logger(__name__)


def alembic_config(script_location: Path | None = None) -> Config:
    """Alembic's settings: inside the package where it is installed, beside it in a source checkout.

    `script_location` names another chain of revisions than the service's own.
    """
    package = Path(service.__file__).parent
    root = package if (package / "migrations").is_dir() else package.parent
    config = Config(root / "alembic.ini")
    if script_location is not None:
        config.set_main_option("script_location", str(script_location))
    return config


async def upgrade(database_url: str, *, script_location: Path | None = None) -> str:
    """Upgrade the database, making it first if there is none; the revision it is at afterwards.

    One transaction: it happens whole or not at all, and a second process waits. Where there are jobs in an SQLite file,
    a copy of it as it was is left beside it; a dump of PostgreSQL is made fit for the server that has it now. Raises
    `StartupError` when the database is damaged or gone, was made by a newer version, or a migration fails.
    """
    guarded = _GUARDS[database_kind(database_url)]
    engine = create_migration_engine(database_url)
    try:
        async with guarded(database_url) as copy, engine.begin() as connection:
            return await connection.run_sync(_upgrade, alembic_config(script_location), copy)
    except (sa.exc.DBAPIError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise StartupError(_TROUBLES[database_kind(database_url)](database_url, cause)) from error
    finally:
        await engine.dispose()


def _file_trouble(database_url: str, cause: BaseException) -> str:
    path = sqlite_path(database_url).absolute()
    if fault := SqliteFile(path).diagnose(cause):
        return fault.reason
    told = f"The database {path} cannot be opened or migrated: {_line(cause)}."
    if isinstance(cause, OSError):
        return f"{told} Make it and its directory writable, or choose another JOBSERVICE_DATA_DIR."
    return told


def _server_trouble(database_url: str, cause: BaseException) -> str:
    """Names the server and what it says, and no part of the password."""
    told = f"The database {database_place(database_url)} cannot be opened or migrated: {_line(cause)}."
    if isinstance(cause, OSError):
        return f"{told} Start PostgreSQL there, or correct JOBSERVICE_DATABASE_URL."
    advice = _SERVER_ADVICE.get(str(getattr(cause, "sqlstate", None))[:2])
    return f"{told} {advice}" if advice else told


def _line(cause: BaseException) -> str:
    text = None
    if isinstance(cause, OSError):
        # The loop's own texts repeat the address; errors of a name server have numbers below 0.
        number = cause.errno or 0
        text = os.strerror(number) if number > 0 else cause.strerror
    return (text or str(cause).partition("\n")[0] or type(cause).__name__).rstrip(".")


#: By the class of an SQLSTATE.
_SERVER_ADVICE: Final[Mapping[str, str]] = {
    "28": "Correct user and password in JOBSERVICE_DATABASE_URL.",
    "3D": "Make it there, or correct JOBSERVICE_DATABASE_URL.",
    "55": "Another program holds a lock on its tables: end that program's transaction, and start again.",
}
#: What went wrong at the start, and what to do.
_TROUBLES: Final[Mapping[DatabaseKind, Callable[[str, BaseException], str]]] = {
    DatabaseKind.SQLITE: _file_trouble,
    DatabaseKind.POSTGRESQL: _server_trouble,
}


@contextlib.asynccontextmanager
async def _file_guarded(database_url: str) -> AsyncIterator[_Copy]:
    path = sqlite_path(database_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(preflight.inspect, path)
    await asyncio.to_thread(_make_private, path)
    yield lambda connection, revision: _back_up(connection, path, revision)
    await asyncio.to_thread(preflight.remember, path)


def _make_private(path: Path) -> None:
    """Make the file, where there is none, for its owner alone: payloads and secrets are in it, and in its log."""
    with contextlib.suppress(FileExistsError):
        # SQLite takes an empty file for a new database, and gives the log the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextlib.asynccontextmanager
async def _server_guarded(_database_url: str) -> AsyncIterator[_Copy]:
    yield lambda _connection, _revision: None  # whoever keeps a server keeps its backups


_GUARDS: Final[Mapping[DatabaseKind, Callable[[str], contextlib.AbstractAsyncContextManager[_Copy]]]] = {
    DatabaseKind.SQLITE: _file_guarded,
    DatabaseKind.POSTGRESQL: _server_guarded,
}


def _upgrade(connection: sa.Connection, config: Config, copy: _Copy) -> str:
    known = ScriptDirectory.from_config(config)
    head = known.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise StartupError(
            f"The database is at revision {current}, which this version (revision {head}) does not know: "
            "it was made by a newer version. Install that version, or use another database."
        )
    is_current = current == head
    if head is not None and is_current and views.are_current(connection):
        restored.number_anew(connection)
        return head
    if current is not None and not is_current:
        copy(connection, current)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    # It reads every row, so only where rows have moved; PostgreSQL keeps its keys checked while it migrates.
    is_unchecked = connection.dialect.name == "sqlite" and not is_current
    violations = connection.exec_driver_sql("PRAGMA foreign_key_check").all() if is_unchecked else ()
    if head is None or violations:
        raise StartupError(f"The migration to revision {head} left {len(violations)} broken references; undone.")
    restored.number_anew(connection)
    return head


def _back_up(connection: sa.Connection, path: Path, revision: str) -> None:
    """Copy the database as it is while `connection` keeps everybody else from changing it; if it has jobs."""
    if not connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM jobs)").scalar():
        return
    moment = timestamp().translate({ord(char): None for char in "-:."})
    backup = path.with_name(f"{path.name}.{revision}-{moment}.backup")
    try:
        copy_file(path, backup)
    except (sqlite3.Error, OSError) as error:
        raise StartupError(
            f"{path} was not migrated: no copy of it could be made first ({error}). "
            f"Free {path.stat().st_size // 1_000_000 + 1} MB in {path.parent}."
        ) from error
    log.info("database copied before its migration", copy=str(backup), revision=revision)
