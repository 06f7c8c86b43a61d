"""An old database is copied, then migrated whole or not at all; a damaged or vanished one is left alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from service.db.engine import create_writer_engine
from service.db.migrate import alembic_config, upgrade
from service.db.preflight import file_system, marker_of
from service.db.snapshot import copy
from service.errors import StartupError
from tests.conftest import sqlite_url
from tests.schema.test_migrations import schema

ROWS = 20_000
HEAD = ScriptDirectory.from_config(alembic_config()).get_current_head()
#: A next revision that rebuilds the widest table, so that there is time to be killed in.
NEXT = f"""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9001", "{HEAD}"

def upgrade():
    with op.batch_alter_table("jobs", recreate="always") as table:
        table.add_column(sa.Column("colour", sa.Text, nullable=False, server_default="red"))
"""
COLUMNS = "id, tenant, plugin, status, rank, priority, due, run_at, attempt, max_attempts, lost, max_lost, fence"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The service's revisions and one more."""
    source = Path(alembic_config().get_main_option("script_location") or "")
    copy = Path(shutil.copytree(source, tmp_path / "chain"))
    (copy / "versions/9001_next.py").write_text(NEXT)
    return copy


def fill(path: Path, rows: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(
        f"INSERT INTO jobs ({COLUMNS}, event_count, created_at, tags, metadata, artifacts, payload) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT printf('00000000-0000-7000-8000-%012d', i), 'default', 'echo', 'PENDING', 0, 0, 1, "
        "'2026-01-01T00:00:00.000Z', 0, 1, 0, 3, 0, 1, '2026-01-01T00:00:00.000Z', '[]', '{}', '[]', '{}' FROM n",
        (rows,),
    )
    connection.commit()
    connection.close()


def rows_of(path: Path) -> list[tuple]:
    connection = sqlite3.connect(path)
    rows = connection.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY id").fetchall()
    connection.close()
    return rows


def migrating(path: Path, chain: Path) -> subprocess.Popen[str]:
    code = (
        "import asyncio, pathlib; from service.db.migrate import upgrade; "
        f"print(asyncio.run(upgrade({sqlite_url(path)!r}, script_location=pathlib.Path({str(chain)!r}))))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def parts(path: Path) -> list[tuple[str, list[str]]]:
    """The schema, whatever order Alembic gave to the constraints of a table that it rebuilt."""
    return [(name, sorted(line.strip(" \t,") for line in text.splitlines())) for name, text in schema(sqlite_url(path))]


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.backup"))


def test_four_processes_migrate_at_once_and_one_is_killed_and_no_row_changes(database_file, chain, tmp_path):
    fresh = tmp_path / "fresh.db"
    asyncio.run(upgrade(sqlite_url(fresh), script_location=chain))
    fill(database_file, ROWS)
    before = rows_of(database_file)
    processes = [migrating(database_file, chain) for _ in range(4)]
    by_pid = {process.pid: process for process in processes}
    # Whoever writes the copy holds the lock and is in the middle of it.
    victim = None
    while victim is None:
        assert any(process.poll() is None for process in processes), "it was over before one could be killed"
        for pid in by_pid:
            try:
                names = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
            if any(name.endswith(".partial") for name in names):
                victim = pid
    os.kill(victim, signal.SIGKILL)
    answers = {pid: process.communicate(timeout=90)[0].strip().rpartition("\n")[2] for pid, process in by_pid.items()}
    assert [answer for pid, answer in answers.items() if pid != victim] == ["9001"] * 3
    assert parts(database_file) == parts(fresh)
    assert rows_of(database_file) == before
    (backup,) = backups(database_file)
    assert rows_of(backup) == before


def test_before_a_migration_jobs_are_copied_beside_the_database(database_file, chain):
    fill(database_file, 10)
    old = schema(sqlite_url(database_file))
    assert asyncio.run(upgrade(sqlite_url(database_file), script_location=chain)) == "9001"
    (backup,) = backups(database_file)
    assert HEAD in backup.name
    assert schema(sqlite_url(backup)) == old
    assert len(rows_of(backup)) == 10
    asyncio.run(upgrade(sqlite_url(database_file), script_location=chain))
    assert backups(database_file) == [backup]


def test_without_jobs_or_without_a_new_revision_nothing_is_copied(database_file, chain):
    asyncio.run(upgrade(sqlite_url(database_file), script_location=chain))
    fill(database_file, 1)
    asyncio.run(upgrade(sqlite_url(database_file), script_location=chain))
    assert backups(database_file) == []


def test_a_migration_that_fails_changes_nothing(database_file, chain):
    fill(database_file, 10)
    old = schema(sqlite_url(database_file))
    (chain / "versions/9001_next.py").write_text(NEXT + '    op.execute("INSERT INTO nowhere VALUES (1)")\n')
    with pytest.raises(StartupError, match="nowhere"):
        asyncio.run(upgrade(sqlite_url(database_file), script_location=chain))
    assert schema(sqlite_url(database_file)) == old


def test_an_older_version_refuses_a_newer_database_naming_both_revisions(database_file, chain):
    asyncio.run(upgrade(sqlite_url(database_file), script_location=chain))
    with pytest.raises(StartupError, match=rf"9001.*{HEAD}"):
        asyncio.run(upgrade(sqlite_url(database_file)))


@pytest.mark.parametrize("state", ["empty", "missing"])
def test_a_database_that_vanished_is_not_made_anew(tmp_path, state):
    path = tmp_path / "jobs.db"
    asyncio.run(upgrade(sqlite_url(path)))
    path.unlink()
    if state == "empty":
        path.touch()
    with pytest.raises(StartupError, match=rf"is {state}.*jobs\.db\.made"):
        asyncio.run(upgrade(sqlite_url(path)))
    assert not path.exists() or path.stat().st_size == 0
    marker_of(path).unlink()
    asyncio.run(upgrade(sqlite_url(path)))


def test_a_truncated_database_is_refused_and_left_alone(database_file):
    fill(database_file, 1_000)
    size = database_file.stat().st_size // 2
    os.truncate(database_file, size)
    with pytest.raises(StartupError, match="malformed"):
        asyncio.run(upgrade(sqlite_url(database_file)))
    assert database_file.stat().st_size == size


def test_after_an_unclean_stop_a_damaged_page_is_found_and_the_file_left_alone(database_file):
    fill(database_file, 1_000)
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('UPDATE jobs SET priority = 1'); "
        "c.commit(); c.execute('PRAGMA wal_checkpoint'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, database_file], check=False)
    with database_file.open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\x99" * 4096)
    damaged = database_file.read_bytes()
    wal = database_file.with_name(database_file.name + "-wal")
    os.truncate(wal, 32)  # a log without a commit: the pages of the file are what there is
    with pytest.raises(StartupError, match="damaged"):
        asyncio.run(upgrade(sqlite_url(database_file)))
    assert database_file.read_bytes() == damaged


def test_a_backup_beside_the_log_of_the_file_before_is_told_and_left_alone(database_file, tmp_path):
    fill(database_file, 1_000)
    backup = tmp_path / "backup.db"
    copy(database_file, backup)
    rows = rows_of(backup)
    # Read with the backup, this would leave rows without their entries in indexes, which a quick check does not see.
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('UPDATE jobs SET id = replace(id, 7000, 7001)'); c.commit(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, database_file], check=False)
    shutil.copy(backup, database_file)
    with pytest.raises(StartupError, match=r"move jobs\.db-wal away"):
        asyncio.run(upgrade(sqlite_url(database_file)))
    assert database_file.read_bytes() == backup.read_bytes()
    database_file.with_name("jobs.db-wal").unlink()
    asyncio.run(upgrade(sqlite_url(database_file)))
    assert rows_of(database_file) == rows


def test_a_network_file_system_is_told_from_a_local_one(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "20 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"21 20 0:50 / {tmp_path} rw,relatime shared:1 - nfs4 server:/export rw\n"
        f"22 21 0:51 / {tmp_path}/local rw - xfs /dev/vdb rw\n"
    )
    (tmp_path / "local").mkdir()
    assert file_system(tmp_path, mounts) == "nfs4"
    assert file_system(tmp_path / "local", mounts) == "xfs"
    assert file_system(Path("/"), mounts) == "ext4"


async def test_the_writer_engine_waits_as_long_as_it_is_told(database_file):
    engine = create_writer_engine(sqlite_url(database_file), busy_timeout_ms=1_234)
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar() == 1_234
    await engine.dispose()
