"""Runs the revisions for `jobservice migrate` and `alembic` alike: views away, migrate, views again."""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext

from service.db.engine import create_migration_engine
from service.db.schema import metadata
from service.db.views import create_views, drop_views
from service.settings import Settings

#: Any number that nobody else locks: processes that migrate one PostgreSQL at once take turns.
LOCK = 0x6A6F6273
#: How long one waits for its turn. What another program holds of the tables is waited for as the connection says.
TURN_TIMEOUT = "600s"

# Where nobody has set up a log, as for plain `alembic upgrade`, it says nothing.
log = logging.getLogger("service.migrations")


def take_turn(connection: sa.Connection) -> None:
    if connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))):
        return
    log.info("another process migrates the database; this one waits for it")
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{TURN_TIMEOUT}'"))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    connection.execute(sa.text("SET LOCAL lock_timeout TO DEFAULT"))


def migrate(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        take_turn(connection)
    grants = drop_views(connection)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    context.run_migrations()
    # Views are of the newest schema alone.
    if MigrationContext.configure(connection).get_current_revision() == context.get_head_revision():
        create_views(connection, grants)


async def migrate_from_command_line() -> None:
    engine = create_migration_engine(Settings().resolved_database_url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(migrate_from_command_line())
else:
    migrate(given)
