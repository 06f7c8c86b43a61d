from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.db import engine
from service.db.engine import create_migration_engine
from service.db.migrate import alembic_config, upgrade
from service.db.schema import metadata
from service.db.views import view_names
from service.errors import StartupError
from tests.conftest import DATABASES, driver_url, sql, sqlite_url

HEAD = ScriptDirectory.from_config(alembic_config()).get_current_head()


@pytest.fixture(params=DATABASES)
def empty_url(request, tmp_path) -> Iterator[str]:
    """A database in which nothing is."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "empty.db")
        return
    postgres = request.getfixturevalue("postgres")
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def config(empty_url, monkeypatch) -> Config:
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", empty_url)
    return alembic_config()


@pytest.fixture
def fresh(empty_url, migrated_file, request) -> str:
    """A database of the same kind that the service has made."""
    if empty_url.startswith("sqlite"):
        return sqlite_url(migrated_file)
    postgres = request.getfixturevalue("postgres")
    return str(postgres.url(postgres.template))


_COLUMNS = """
    SELECT table_name, column_name || ' ' || data_type || ' ' || is_nullable FROM information_schema.columns
    WHERE table_schema = 'public'"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
_CONSTRAINTS = (
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
)
_VIEWS = "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"


def schema(url: str) -> list[tuple[str, str]]:
    """Every object with its definition, as the database tells it."""
    if url.startswith("sqlite"):
        return sql(url, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
    return sorted(row for text in (_COLUMNS, _INDEXES, _CONSTRAINTS, _VIEWS) for row in sql(url, text))


def test_there_is_one_head(config):
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


def test_every_revision_goes_up_down_and_up_again(config, empty_url):
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        command.upgrade(config, script.revision)
        before = schema(empty_url)
        command.downgrade(config, script.down_revision or "base")
        command.upgrade(config, script.revision)
        assert schema(empty_url) == before


async def test_the_migrated_schema_is_the_models_schema(database_url):
    engine = create_migration_engine(database_url)
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    await engine.dispose()
    assert differences == []


def test_plain_alembic_and_the_service_make_the_same_database(config, empty_url, fresh):
    command.upgrade(config, "head")
    assert schema(empty_url) == schema(fresh)
    assert set(view_names()) <= {name for name, _ in schema(fresh)}


def test_a_newer_database_is_refused_naming_both_revisions(database_url):
    sql(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match=rf"9999.*{HEAD}"):
        asyncio.run(upgrade(database_url))


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "jobs.db"
    path.write_text("these are not the rows you are looking for" * 100)
    with pytest.raises(StartupError, match=r"jobs\.db"):
        await upgrade(sqlite_url(path))
    assert path.read_text().startswith("these are not")


def test_processes_that_migrate_at_once_agree(empty_url, fresh):
    code = f"import asyncio; from service.db.migrate import upgrade; print(asyncio.run(upgrade({empty_url!r})))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [HEAD] * 4
    assert schema(empty_url) == schema(fresh)


def test_upgrading_twice_changes_no_row(database_url):
    made = "INSERT INTO blobs (sha256, size_bytes, created_at) VALUES ('a', 1, '2026-01-01T00:00:00.000Z')"
    sql(database_url, made)
    before = schema(database_url)
    asyncio.run(upgrade(database_url))
    assert sql(database_url, "SELECT sha256, size_bytes, data FROM blobs") == [("a", 1, None)]
    assert schema(database_url) == before


def test_a_reader_of_the_views_does_not_hold_up_a_start(postgres_url):
    async def read_and_start() -> None:
        reader = await asyncpg.connect(driver_url(postgres_url))
        async with reader.transaction():
            await reader.fetch("SELECT * FROM report_jobs")
            await upgrade(postgres_url)
        await reader.close()

    asyncio.run(read_and_start())


async def test_a_migration_waits_for_another_one_longer_than_for_a_lock_on_tables(postgres_url, monkeypatch):
    monkeypatch.setattr(engine, "_MIGRATION_LOCK_TIMEOUT", "100ms")
    other = await asyncpg.connect(driver_url(postgres_url))
    await other.execute("COMMENT ON VIEW report_schema_version IS 'of an older version'")
    migration = other.transaction()
    await migration.start()
    await other.execute("SELECT pg_advisory_xact_lock(x'6A6F6273'::bigint)")
    waiting = asyncio.create_task(upgrade(postgres_url))
    await asyncio.wait([waiting], timeout=1)
    assert not waiting.done()
    await migration.rollback()
    assert await waiting == HEAD
    await other.execute("COMMENT ON VIEW report_schema_version IS 'of an older version'")
    async with other.transaction():
        await other.execute("SELECT * FROM report_jobs")
        with pytest.raises(StartupError, match="Another program holds a lock on its tables"):
            await upgrade(postgres_url)
    await other.close()


def test_changed_views_are_made_anew(postgres_url):
    sql(postgres_url, "COMMENT ON VIEW report_schema_version IS 'of an older version'")
    sql(postgres_url, "DROP VIEW report_attempts")
    asyncio.run(upgrade(postgres_url))
    assert sql(postgres_url, "SELECT * FROM report_attempts") == []


def test_a_server_that_takes_no_connection_now_is_said_in_its_own_words(postgres_url):
    role = f"refused_{str(sa.make_url(postgres_url).database)[-12:]}"  # roles are of the whole server
    sql(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'choose-one' CONNECTION LIMIT 0")
    try:
        url = sa.make_url(postgres_url).set(username=role, password="choose-one")
        with pytest.raises(StartupError, match="cannot be opened or migrated: too many connections"):
            asyncio.run(upgrade(url.render_as_string(hide_password=False)))
    finally:
        sql(postgres_url, f"DROP ROLE {role}")
