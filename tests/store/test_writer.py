from __future__ import annotations

import asyncio
import sqlite3

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import job_inserts, job_queries, schema
from service.db.database import Database
from service.db.job_inserts import NewJob
from service.db.statements import Statement
from service.db.transaction import RefusedError, apart, early, late
from service.db.writer import FEW
from service.errors import ServiceUnavailableError
from service.models import JobOptions, JobQuery, timestamp

_COUNT = Statement(sa.select(sa.func.count()).select_from(schema.jobs))
_SLOW = Statement(sa.select(sa.literal_column("1")))


def new_job(plugin: str = "p", *, key: str | None = None, priority: int = 0, **options) -> NewJob:
    return NewJob(
        id=str(uuid7()),
        tenant="default",
        plugin=plugin,
        plugin_version=None,
        payload="{}",
        blobs=(),
        options=JobOptions(priority=priority, **options),
        max_attempts=1,
        created_at=timestamp(),
        idempotency_key=key,
        request_hash="hash" if key else None,
    )


async def all_ids(database: Database) -> set[str]:
    page = await job_queries.list_page(database.reader, JobQuery(limit=1_000), "default")
    return {record.id for record in page.items}


async def test_what_write_returns_is_visible_to_every_reader(database):
    inserted = await database.writer.write(job_inserts.insert, new_job())
    assert await all_ids(database) == {inserted.id}


async def test_writes_made_at_once_share_a_commit(database):
    sizes: list[int] = []
    database.writer.on_commit = sizes.append
    await asyncio.gather(*(database.writer.write(job_inserts.insert, new_job()) for _ in range(100)))
    assert sum(sizes) == 100
    assert len(sizes) < 10


async def test_an_operation_that_is_apart_shares_no_commit_with_others(database):
    sizes: list[int] = []
    database.writer.on_commit = sizes.append

    @apart
    async def look(tx, items):
        ((found,),) = await tx.fetch(_COUNT)
        return [found] * len(items)

    found = await asyncio.gather(
        *(
            database.writer.write(*each)
            for each in ((look, None), (job_inserts.insert, new_job()), (look, None), (job_inserts.insert, new_job()))
        )
    )
    assert (sizes, found[0], found[2]) == ([2, 2], 2, 2)


async def test_some_are_applied_before_and_some_after_all_others_of_their_transaction(database):
    sizes: list[int] = []
    database.writer.on_commit = sizes.append

    async def count(tx, items):
        ((found,),) = await tx.fetch(_COUNT)
        return [found] * len(items)

    @late
    async def count_late(tx, items):
        return await count(tx, items)

    @early
    async def count_early(tx, items):
        return await count(tx, items)

    counts = await asyncio.gather(
        database.writer.write(count_late, None),
        database.writer.write(job_inserts.insert, new_job()),
        database.writer.write(count, None),
        database.writer.write(count_late, None),
        database.writer.write(count_early, None),
    )
    assert sizes == [5]
    assert [counts[0], *counts[2:]] == [1, 1, 1, 0]


async def test_an_item_the_database_refuses_costs_nobody_else(database):
    jobs = [new_job() for _ in range(20)]
    jobs[7] = new_job(priority=10_000)
    outcomes = await asyncio.gather(
        *(database.writer.write(job_inserts.insert, job) for job in jobs), return_exceptions=True
    )
    assert isinstance(outcomes[7], RefusedError)
    assert await all_ids(database) == {job.id for job in jobs} - {jobs[7].id}


async def test_a_cancelled_waiter_cancels_nothing_and_leaves_no_lock(database):
    jobs = [new_job() for _ in range(50)]
    waiters = [asyncio.create_task(database.writer.write(job_inserts.insert, job)) for job in jobs]
    await asyncio.sleep(0)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    last = await database.writer.write(job_inserts.insert, new_job())
    assert await all_ids(database) == {job.id for job in jobs} | {last.id}


async def test_a_database_locked_from_outside_is_unavailable_and_heals(database, database_file, monkeypatch):
    await database.writer.write(job_inserts.insert, new_job())

    async def hurry(tx, items):
        await tx.fetch(Statement(sa.text("PRAGMA busy_timeout = 100")))
        return [None] * len(items)

    await database.writer.write(hurry, None)
    outside = sqlite3.connect(database_file, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServiceUnavailableError, match="locked"):
        await database.writer.write(job_inserts.insert, new_job())
    outside.execute("ROLLBACK")
    outside.close()
    while database.ground.fault:
        await asyncio.sleep(0.02)
    await database.writer.write(job_inserts.insert, new_job())
    assert len(await all_ids(database)) == 2


async def test_a_long_reader_never_fails_a_write(database, database_file):
    outside = sqlite3.connect(f"file:{database_file}?mode=ro", uri=True, isolation_level=None)
    outside.execute("BEGIN")
    outside.execute("SELECT count(*) FROM report_jobs").fetchall()
    for _ in range(20):
        await database.writer.write(job_inserts.insert, new_job())
    assert outside.execute("SELECT count(*) FROM report_jobs").fetchone() == (0,)
    outside.close()
    assert len(await all_ids(database)) == 20


async def test_readers_cannot_write(database):
    with pytest.raises(ServiceUnavailableError, match=r"readonly|read-only"):
        await database.reader.fetch(Statement(sa.text("DELETE FROM jobs")))


async def test_a_closed_writer_refuses(database_url, tmp_path):
    async with Database.open(database_url, tmp_path, inline_bytes=10) as database:
        pass
    with pytest.raises(ServiceUnavailableError):
        await database.writer.write(job_inserts.insert, new_job())


async def test_commits_are_durable_and_only_the_writer_checkpoints(database, database_file):
    async def pragmas(tx, items):
        return [[(await tx.fetch(Statement(sa.text(f"PRAGMA {name}"))))[0][0] for name in items[0]]]

    assert await database.writer.write(pragmas, ("synchronous", "journal_mode", "foreign_keys")) == [2, "wal", 1]


async def test_a_small_transaction_waits_for_company_while_there_is_time(database, monkeypatch):
    monkeypatch.setattr("service.db.writer.COMMIT_DELAY_S", 600)
    sizes: list[int] = []
    database.writer.on_commit = sizes.append
    has_time = True
    database.writer.has_time = lambda: has_time

    def write():
        return asyncio.create_task(database.writer.write(job_inserts.insert, new_job()))

    async def turns():
        for _ in range(20):  # more turns of the event loop than it takes to begin a transaction
            await asyncio.sleep(0)

    few = [write()]
    await turns()
    few += [write() for _ in range(FEW - 2)]
    await turns()
    assert sizes == []
    async with asyncio.timeout(30):
        await asyncio.gather(write(), *few)  # as soon as they are enough
        assert sizes == [FEW]
        await asyncio.gather(*(write() for _ in range(FEW)))  # who are enough wait for nobody
        assert sizes == [FEW, FEW]
        alone = write()
        await turns()
        has_time = False
        await asyncio.gather(alone, write())  # as soon as somebody stands still for it
        await write()
        assert sizes == [FEW, FEW, 2, 1]
        has_time = True
        alone = write()
        await turns()
        await database.writer.close()
        await alone
    assert sizes == [FEW, FEW, 2, 1, 1]


async def test_a_small_transaction_does_not_wait_for_ever(database):
    database.writer.has_time = lambda: True
    async with asyncio.timeout(30):
        await database.writer.write(job_inserts.insert, new_job())
