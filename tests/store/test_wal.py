"""A long reader never fails a write; the log it holds up is warned about, capped, and cut when it leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from service.db import job_inserts
from service.db.database import Database
from service.db.wal import WalLimits
from service.errors import ServiceUnavailableError
from tests.conftest import sqlite_url
from tests.store.test_writer import new_job

READER = (
    "import sqlite3, sys; c = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True, isolation_level=None); "
    "c.execute('BEGIN'); c.execute('SELECT count(*) FROM jobs').fetchall(); print('held', flush=True); "
    "sys.stdin.read(); c.execute('COMMIT'); c.close()"
)


def figure(database: Database, name: str) -> float:
    (value,) = (gauge.read() for gauge in database.gauges if gauge.name == name)
    return value


async def test_a_long_reader_is_warned_about_then_new_jobs_are_refused_and_it_heals(database_file, tmp_path):
    limits = WalLimits(cut=500_000, warn=1_000_000, refuse=3_000_000)
    async with Database.open(sqlite_url(database_file), tmp_path / "b", inline_bytes=1, wal_limits=limits) as database:

        async def write() -> None:
            job = new_job()
            job.payload = '{"text": "' + "x" * 20_000 + '"}'
            await database.writer.write(job_inserts.insert, job)

        reader = subprocess.Popen(  # noqa: ASYNC220 - it starts in a moment
            [sys.executable, "-c", READER, database_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout
        assert await asyncio.to_thread(reader.stdout.readline) == "held\n"
        while not database.ground.warnings:
            await write()
        assert "end its transaction" in database.ground.warnings[0]
        database.ground.check_intake()
        for _ in range(400):
            await write()
        with pytest.raises(ServiceUnavailableError, match="no new jobs"):
            database.ground.check_intake()
        held = figure(database, "jobservice_wal_bytes")
        assert held > limits.refuse
        assert database.ground.fault is None
        await asyncio.to_thread(reader.communicate, "")
        while database.ground.warnings:
            await write()
        database.ground.check_intake()
        assert figure(database, "jobservice_wal_bytes") < limits.cut < held


async def test_without_readers_the_log_stays_small(database, database_file):
    for _ in range(300):
        await asyncio.gather(*(database.writer.write(job_inserts.insert, new_job()) for _ in range(20)))
    assert figure(database, "jobservice_wal_bytes") < 30_000_000
    assert figure(database, "jobservice_wal_age_seconds") < 5
