"""Brings a database to this version's schema; the only way a schema comes into being."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import service
from service.db import views
from service.db.engine import DatabaseKind, create_migration_engine, database_kind, sqlite_path
from service.errors import StartupError


def alembic_config() -> Config:
    """Alembic's settings: inside the package where it is installed, beside it in a source checkout."""
    package = Path(service.__file__).parent
    root = package if (package / "migrations").is_dir() else package.parent
    return Config(root / "alembic.ini")


async def upgrade(database_url: str) -> str:
    """Upgrade the database, making it first if there is none; the revision it is at afterwards.

    One transaction: it happens whole or not at all, and a second process waits. Raises `StartupError` when the database
    was made by a newer version, or a migration fails.
    """
    if database_kind(database_url) is DatabaseKind.SQLITE:
        sqlite_path(database_url).parent.mkdir(parents=True, exist_ok=True)
    engine = create_migration_engine(database_url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(_upgrade)
    except (sa.exc.DatabaseError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise StartupError(
            f"The database {_name(database_url)} cannot be opened or migrated: {str(cause).splitlines()[0]}."
        ) from error
    finally:
        await engine.dispose()


def _name(database_url: str) -> str:
    return str(sa.make_url(database_url).set(drivername="sqlite").database)


def _upgrade(connection: sa.Connection) -> str:
    config = alembic_config()
    known = ScriptDirectory.from_config(config)
    head = known.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise StartupError(
            f"The database is at revision {current}, which this version (revision {head}) does not know: "
            "it was made by a newer version. Install that version, or use another database."
        )
    if head is not None and current == head and views.are_current(connection):
        return head
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    is_sqlite = connection.dialect.name == "sqlite"
    violations = connection.exec_driver_sql("PRAGMA foreign_key_check").all() if is_sqlite else ()
    if head is None or violations:
        raise StartupError(f"The migration to revision {head} left {len(violations)} broken references; undone.")
    return head
