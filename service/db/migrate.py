"""Brings a database to this version's schema; the only way a schema comes into being."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import service
from service.db import preflight
from service.db.engine import create_writer_engine, sqlite_path
from service.errors import StartupError
from service.models import timestamp

#: How long a process waits for another one's migration.
_PATIENCE_MS: Final = 600_000

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

    One transaction: it happens whole or not at all, and a second process waits. Where there are jobs, a copy of the
    database as it was is left beside it. Raises `StartupError` when the database is damaged or gone, was made by a
    newer version, or a migration fails.
    """
    path = sqlite_path(database_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(preflight.inspect, path)
    engine = create_writer_engine(database_url, foreign_keys=False, busy_timeout_ms=_PATIENCE_MS)
    try:
        async with engine.begin() as connection:
            revision = await connection.run_sync(_upgrade, path, alembic_config(script_location))
        await asyncio.to_thread(preflight.remember, path)
        return revision
    except (sa.exc.DatabaseError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise StartupError(
            f"The database {sqlite_path(database_url)} cannot be opened or migrated: {cause}."
        ) from error
    finally:
        await engine.dispose()


def _upgrade(connection: sa.Connection, path: Path, config: Config) -> str:
    known = ScriptDirectory.from_config(config)
    head = known.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise StartupError(
            f"The database is at revision {current}, which this version (revision {head}) does not know: "
            "it was made by a newer version. Install that version, or use another database."
        )
    is_current = current == head
    if current is not None and not is_current:
        _back_up(connection, path, current)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    # It reads every row, so only where rows have moved.
    violations = () if is_current else connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if head is None or violations:
        raise StartupError(f"The migration to revision {head} left {len(violations)} broken references; undone.")
    return head


def _back_up(connection: sa.Connection, path: Path, revision: str) -> None:
    """Copy the database as it is while `connection` keeps everybody else from changing it; if it has jobs."""
    if not connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM jobs)").scalar():
        return
    moment = timestamp().translate({ord(char): None for char in "-:."})
    backup = path.with_name(f"{path.name}.{revision}-{moment}.backup")
    partial = backup.with_name(backup.name + ".partial")
    try:
        # A connection of its own: inside a transaction there is no VACUUM, and a reader sees what was there before it.
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
            reader.execute("VACUUM INTO ?", (str(partial),))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(backup)
    except (sqlite3.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        raise StartupError(
            f"{path} was not migrated: no copy of it could be made first ({error}). "
            f"Free {path.stat().st_size // 1_000_000 + 1} MB in {path.parent}."
        ) from error
    log.info("database copied before its migration", copy=str(backup), revision=revision)
