"""Reads of events: gap-free in one job, in one order over all, each page by an index."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3

import asyncpg
import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import event_reads, job_changes
from service.db.database import Database
from service.db.job_changes import CancelRequest
from service.db.statements import Statement
from service.models import FIRST_PLACE, EventFilter, EventType, JobStatus, Place
from tests.conftest import driver_url
from tests.store.test_jobs import claim, end, insert
from tests.store.test_writer import new_job

ALL = EventFilter(tenant="default")


async def settled(database):
    """What was committed can be seen: transactions elsewhere on the server may be open for a while."""
    statement = Statement(sa.text("SELECT coalesce(max(tx), 0) FROM job_events"))
    while (await event_reads.newest(database.reader)).tx < (await database.reader.fetch(statement))[0][0]:
        await asyncio.sleep(0.01)


async def everything(database, wanted=ALL, after=FIRST_PLACE, limit=100):
    """What a reader sees who takes one page after the other."""
    await settled(database)
    seen = []
    while True:
        page = await event_reads.of_all(database.reader, after, wanted, limit=limit)
        seen += page.events
        after = page.end
        if not page.is_full:
            return seen, after


def told(events):
    return [(event.job_id, event.n, event.type) for event in events]


async def test_the_events_of_a_job_come_behind_the_number_asked_for(database):
    await insert(database, new_job())
    (job,) = await claim(database)
    await end(database, job)

    news = await event_reads.of_job(database.reader, job.id, "default", after_n=0, limit=2)
    assert news.status is JobStatus.SUCCESS
    assert news.event_count == 3
    assert told(news.events) == [(job.id, 1, "submitted"), (job.id, 2, "started")]
    assert json.loads(news.events[1].data) == {"attempt": 1, "fence": 1}
    news = await event_reads.of_job(database.reader, job.id, "default", after_n=2, limit=2)
    assert told(news.events) == [(job.id, 3, "success")]
    news = await event_reads.of_job(database.reader, job.id, "default", after_n=3, limit=2)
    assert news.events == []
    assert await event_reads.of_job(database.reader, job.id, "other", after_n=0, limit=2) is None
    assert await event_reads.of_job(database.reader, str(uuid7()), "default", after_n=0, limit=2) is None


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_pages_of_any_size_tell_everything_once_in_one_order(database, limit):
    ids = await insert(database, *(new_job() for _ in range(3)))
    for job in await claim(database):
        await end(database, job)
    seen, last = await everything(database, limit=limit)
    assert [event.place for event in seen] == sorted({event.place for event in seen})
    assert sorted(told(seen)) == sorted(
        (job_id, n, kind) for job_id in ids for n, kind in enumerate(("submitted", "started", "success"), 1)
    )
    for job_id in ids:
        assert [event.n for event in seen if event.job_id == job_id] == [1, 2, 3]
    assert last == seen[-1].place
    assert (await everything(database, after=seen[4].place))[0] == seen[5:]


async def test_only_what_is_wanted_comes_and_the_place_goes_on_past_the_rest(database):
    other = new_job("b")
    foreign = new_job("a")
    foreign.tenant = "acme"
    mine, theirs, foreigns = await insert(database, new_job("a"), other, foreign)
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=theirs, reason="x"))
    end_of_all = (await everything(database))[1]

    async def wanted(**filters):
        events, place = await everything(database, EventFilter(**({"tenant": "default"} | filters)), limit=2)
        assert place == end_of_all
        return told(events)

    assert await wanted(plugin="a") == [(mine, 1, "submitted")]
    assert await wanted(types=frozenset({EventType.CANCELLED, EventType.LOST})) == [(theirs, 2, "cancelled")]
    assert await wanted(plugin="a", types=frozenset({EventType.CANCELLED})) == []
    assert await wanted(tenant="acme") == [(foreigns, 1, "submitted")]
    assert {event.tenant for event in (await everything(database, None))[0]} == {"default", "acme"}


async def test_behind_the_newest_place_is_only_what_is_still_to_come(database):
    assert (await everything(database, after=await event_reads.newest(database.reader)))[0] == []
    await insert(database, new_job())
    await settled(database)
    newest = await event_reads.newest(database.reader)
    (late,) = await insert(database, new_job())
    assert told((await everything(database, after=newest))[0]) == [(late, 1, "submitted")]


async def test_events_counted_for_many_jobs_at_once(database):
    ids = await insert(database, new_job(), new_job())
    await claim(database, limit=1)
    assert await event_reads.counts(database.reader, [*ids, str(uuid7())]) == {ids[0]: 2, ids[1]: 1}


async def test_what_commits_late_is_not_passed_by(postgres_url, tmp_path):
    """A transaction that took its number early and ends late holds up what comes behind it, and is then seen first."""
    async with (
        Database.open(postgres_url, tmp_path / "blobs", inline_bytes=1_000) as database,
        contextlib.AsyncExitStack() as stack,
    ):
        ids = await insert(database, new_job())
        await settled(database)
        place = await event_reads.newest(database.reader)
        slow = await asyncpg.connect(driver_url(postgres_url))
        stack.push_async_callback(slow.close)
        await slow.execute("BEGIN")
        await slow.execute("UPDATE jobs SET event_count = 2")
        await slow.execute(
            "INSERT INTO job_events (tx, job_id, n, type, at, data) "
            "VALUES (CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT), $1, 2, 'progress', now(), '{}')",
            ids[0],
        )
        ids += await insert(database, new_job())
        assert (await event_reads.of_all(database.reader, place, ALL, limit=9)).events == []
        await slow.execute("COMMIT")
        assert told((await everything(database, after=place))[0]) == [
            (ids[0], 2, "progress"),
            (ids[1], 1, "submitted"),
        ]


def test_sqlite_reads_events_by_their_indexes(database_file):
    statements = {
        "ix": (event_reads._OF_JOB, {"of_job": "j", "of_tenant": "t", "after_n": 3, "limit": 10}),
        "pk": (event_reads._page_statement(frozenset({"tenant"})), _PLACE | {"tenant": "t"}),
        "all": (event_reads._page_statement(frozenset()), _PLACE),
        "newest": (event_reads._NEWEST, _PLACE),
    }
    with contextlib.closing(sqlite3.connect(database_file)) as connection:
        plans = {
            name: [
                row[3]
                for row in connection.execute(
                    f"EXPLAIN QUERY PLAN {statement.sqlite.text}", statement.sqlite.bind(**values)
                )
            ]
            for name, (statement, values) in statements.items()
        }
    assert plans["ix"] == [
        "SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)",
        "SEARCH job_events USING INDEX sqlite_autoindex_job_events_1 (job_id=? AND n>?) LEFT-JOIN",
    ]
    for name in ("pk", "all"):
        assert "SEARCH job_events USING INTEGER PRIMARY KEY (rowid>?)" in plans[name]
        # Only the page, which is short, is put in order once more.
        assert plans[name].index("USE TEMP B-TREE FOR ORDER BY") == len(plans[name]) - 1
        assert not any("SCAN job" in step for step in plans[name])
    assert plans["newest"] == ["SEARCH job_events USING INTEGER PRIMARY KEY (rowid>?)"]


_PLACE = {"after_tx": 5, "after_position": 1_000, "limit": 10}


async def test_postgresql_reads_events_by_their_indexes(postgres_url):
    connection = await asyncpg.connect(driver_url(postgres_url))
    try:
        # Tables this empty are scanned, were it allowed.
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")

        async def plan(statement, **values):
            text = statement.postgresql.text
            for number, value in reversed(list(enumerate(statement.postgresql.bind(**values), 1))):
                text = text.replace(f"${number}", repr(value))
            return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {text}"))

        job_id = str(uuid7())
        one = await plan(event_reads._OF_JOB, of_job=job_id, of_tenant="t", after_n=3, limit=10)
        page = await plan(event_reads._page_statement(frozenset({"tenant"})), **_PLACE, tenant="t")
        newest = await plan(event_reads._NEWEST, **_PLACE)
    finally:
        await connection.close()
    assert "Index Scan using uq_job_events_job_id_n on job_events" in one
    assert "n > 3" in one.partition("Index Cond: ((job_id")[2]
    assert "Index Scan using ix_job_events_tx on job_events" in page
    condition = page.partition("on job_events")[2].partition("Index Cond: ")[2].partition("\n")[0]
    assert "ROW(tx, " in condition
    assert "pg_snapshot_xmin" in condition
    assert "Seq Scan" not in one + page + newest
    assert "Index Only Scan Backward using ix_job_events_tx on job_events" in newest


def test_a_place_is_spelled_and_ordered_by_transaction_then_position():
    assert str(Place(7, 12)) == "7-12"
    assert Place(7, 12) < Place(8, 1) < Place(8, 2)


async def test_a_place_is_reached_once_an_event_has_come_to_it_and_for_ever(database):
    assert await event_reads.is_reached(database.reader, FIRST_PLACE)
    await insert(database, new_job(), new_job())
    _, place = await everything(database)
    assert await event_reads.is_reached(database.reader, place)
    assert not await event_reads.is_reached(database.reader, Place(place.tx, place.position + 1))
    assert not await event_reads.is_reached(database.reader, Place(place.tx + 1_000_000, place.position))

    async def forget_all(tx, items):
        await tx.fetch(Statement(sa.text("DELETE FROM jobs")))
        return [None] * len(items)

    await database.writer.write(forget_all, None)
    assert await everything(database) == ([], FIRST_PLACE)
    assert await event_reads.is_reached(database.reader, place)
