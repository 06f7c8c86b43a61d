"""A database of the first revision gets its rollups while the service works, exactly, whatever is killed when."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command

from benchmarks.filling import fill
from service.db import instances, job_claims, job_endings, job_inserts, rollups
from service.db.database import Database
from service.db.instances import Instance
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.migrate import alembic_config, upgrade
from service.db.rollup_events import OF_PAGE
from service.db.schema import jobs
from service.db.statements import Statement, batch, batch_table
from service.models import JobStatus, timestamp
from service.reports import ReportService
from tests.conftest import driver_url, sql
from tests.reports.history import OWNERS
from tests.reports.proof import check, fold_all
from tests.store.test_writer import new_job

JOBS = 1_500

#: Folds page by page, for ever, and tells of each.
FOLDING = """
import asyncio, sys
from pathlib import Path
from service.db.database import Database
from service.reports import ReportService

async def fold():
    async with Database.open(sys.argv[1], Path(sys.argv[2]), inline_bytes=1_000) as database:
        reports = ReportService(database)
        while True:
            print(await reports.fold(), flush=True)

asyncio.run(fold())
"""


@pytest.fixture
def old_url(database_url, monkeypatch) -> str:
    """A database of jobs from before there were rollups, upgraded to head."""
    asyncio.run(fill(database_url, JOBS, days=0.1))
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", database_url)
    command.downgrade(alembic_config(), "0001")
    asyncio.run(upgrade(database_url))
    assert sql(database_url, "SELECT position FROM rollup_state") == [(0,)]
    assert sql(database_url, "SELECT * FROM report_plugins") == []
    return database_url


def test_rollups_of_an_old_database_are_filled_whatever_is_killed_when(old_url, tmp_path):
    for pages in (1, 2):
        with subprocess.Popen(
            [sys.executable, "-c", FOLDING, old_url, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as folding:
            assert folding.stdout
            for _ in range(pages):
                assert folding.stdout.readline() == "True\n"
            os.kill(folding.pid, signal.SIGKILL)  # most likely within the next page
    asyncio.run(_finish(old_url, tmp_path))


async def _finish(url: str, directory) -> None:
    async with Database.open(url, directory, inline_bytes=1_000) as database:
        instance = Instance(id=OWNERS[0], version="1.0", host="host", pid=7, started_at=timestamp())
        await database.writer.write(instances.register, instance)
        reports = ReportService(database)
        pages, more = 0, True
        while more:
            # Others write between any two pages.
            more, _ = await asyncio.gather(reports.fold(), live(database))
            pages += 1
        assert pages > 3
        await fold_all(database)
        await check(database)


async def test_a_page_of_old_events_is_read_without_those_before_it(postgres_url):
    await upgrade(postgres_url)
    await fill(postgres_url, 6_000, days=1)  # all events have one number of their transaction, as after an upgrade
    page = OF_PAGE.failures.postgresql
    places = {"after_tx": 0, "after": 17_000, "until_tx": 0, "until": 17_010}
    connection = await asyncpg.connect(driver_url(postgres_url))
    try:
        plan = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {page.text}", *page.bind(**places))
    finally:
        await connection.close()
    (step,) = (each for each in steps(json.loads(plan[0][0])[0]["Plan"]) if each.get("Relation Name") == "job_events")
    assert step["Index Name"] == "ix_job_events_tx"
    assert step["Shared Hit Blocks"] + step["Shared Read Blocks"] < 10  # the index has some 70


def steps(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from steps(part)


async def live(database: Database) -> None:
    await database.writer.write(job_inserts.insert, new_job("another"))
    claim = Claim(owner=OWNERS[0], limit=1, lease_s=30)
    for job in await database.writer.write(job_claims.claim, claim):
        ending = Ending(job=job, owner=OWNERS[0], status=JobStatus.SUCCESS, result="{}")
        await database.writer.write(job_endings.end, ending)


_gone = batch_table("gone", jobs.c.id)
_DELETE = Statement(sa.delete(jobs).where(jobs.c.id.in_(sa.select(_gone.c.id))))
_REPORTS = {
    name: Statement(sa.text(f"SELECT {columns} FROM {name} ORDER BY 1, 2, 3"))
    for name, columns in {
        "report_plugins": "tenant, plugin, submitted_count, pending_count, succeeded_count, run_p50_s, run_total_s",
        "report_daily": "day, tenant, plugin, submitted_count, succeeded_count, run_p50_s, run_total_s",
        "report_failures": "tenant, plugin, job_count",
    }.items()
}


async def _delete(tx, items):
    await rollups.forget(tx, items)
    await tx.fetch(_DELETE, batch=batch((job_id,) for job_id in items))
    return items


async def _reports(database: Database) -> list[list]:
    return [await database.reader.fetch(statement) for statement in _REPORTS.values()]


@pytest.mark.parametrize("folded_before", [True, False])
async def test_deleted_jobs_stay_in_the_reports_and_leave_the_storage(database, database_url, folded_before):
    for _ in range(4):
        await live(database)
    await database.writer.write(job_inserts.insert, new_job("another"))
    if folded_before:
        await fold_all(database)
    ended = "SELECT id FROM jobs WHERE status = 'SUCCESS' ORDER BY id LIMIT 3"
    ids = [str(job_id) for (job_id,) in await asyncio.to_thread(sql, database_url, ended)]
    await asyncio.gather(*(database.writer.write(_delete, job_id) for job_id in ids))
    await fold_all(database)
    (((*_, submitted, pending, succeeded, p50, _),), ((*_, on_the_day, _, _, _),), failures) = await _reports(database)
    assert (submitted, pending, succeeded, on_the_day, failures) == (5, 1, 4, 5, [])
    assert p50 is not None
    storage = Statement(sa.text("SELECT item_count FROM report_storage WHERE kind = 'jobs'"))
    assert await database.reader.fetch(storage) == [(2,)]
    assert await asyncio.to_thread(sql, database_url, "SELECT deleted_count FROM report_plugins") == [(3,)]
