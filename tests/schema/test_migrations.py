from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.db.engine import create_writer_engine
from service.db.migrate import alembic_config, upgrade
from service.db.schema import metadata
from service.db.views import view_names
from service.errors import StartupError
from tests.conftest import sqlite_url


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", sqlite_url(tmp_path / "jobs.db"))
    return alembic_config()


def schema(path: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    connection.close()
    return rows


def test_there_is_one_head(config):
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


def test_every_revision_goes_up_down_and_up_again(config, tmp_path):
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        command.upgrade(config, script.revision)
        before = schema(tmp_path / "jobs.db")
        command.downgrade(config, script.down_revision or "base")
        command.upgrade(config, script.revision)
        assert schema(tmp_path / "jobs.db") == before


async def test_the_migrated_schema_is_the_models_schema(database_file):
    engine = create_writer_engine(sqlite_url(database_file))
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    await engine.dispose()
    assert differences == []


def test_plain_alembic_and_the_service_make_the_same_database(config, tmp_path, migrated_file):
    command.upgrade(config, "head")
    assert schema(tmp_path / "jobs.db") == schema(migrated_file)
    assert set(view_names()) <= {name for name, _ in schema(migrated_file)}


async def test_a_newer_database_is_refused_naming_both_revisions(database_file):
    connection = sqlite3.connect(database_file, isolation_level=None)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StartupError, match=r"9999.*0001"):
        await upgrade(sqlite_url(database_file))


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "jobs.db"
    path.write_text("these are not the rows you are looking for" * 100)
    with pytest.raises(StartupError, match=r"jobs\.db"):
        await upgrade(sqlite_url(path))
    assert path.read_text().startswith("these are not")


def test_processes_that_migrate_at_once_agree(tmp_path, migrated_file):
    url = sqlite_url(tmp_path / "jobs.db")
    code = f"import asyncio; from service.db.migrate import upgrade; print(asyncio.run(upgrade({url!r})))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["0001"] * 4
    assert schema(tmp_path / "jobs.db") == schema(migrated_file)


def test_upgrading_twice_changes_no_row(database_file):
    connection = sqlite3.connect(database_file, isolation_level=None)
    connection.execute("INSERT INTO blobs VALUES ('a', 1, '2026-01-01T00:00:00.000Z', x'00')")
    asyncio.run(upgrade(sqlite_url(database_file)))
    assert connection.execute("SELECT * FROM blobs").fetchall() == [("a", 1, "2026-01-01T00:00:00.000Z", b"\0")]
    connection.close()
