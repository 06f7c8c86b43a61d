from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
import sqlite3
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.calls import CallReport
from service.db import job_changes, job_claims, job_endings, job_inserts, job_leases, job_queries, plugin_metrics
from service.db.job_changes import CancelRequest, ProgressMade
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.statements import Statement
from service.errors import error_object
from service.models import JobQuery, JobStatus, Progress, later, timestamp
from tests.conftest import sql
from tests.store.test_writer import new_job

ME, OTHER = str(uuid7()), str(uuid7())


def after(seconds: float):
    return timestamp(datetime.now(UTC) + timedelta(seconds=seconds))


async def insert(database, *jobs):
    return [(await database.writer.write(job_inserts.insert, job)).id for job in jobs]


async def claim(database, limit=10, owner=ME, **more):
    return await database.writer.write(job_claims.claim, Claim(owner=owner, limit=limit, lease_s=30, **more))


async def end(database, job, status=JobStatus.SUCCESS, owner=ME, **more):
    if status is JobStatus.SUCCESS:
        more.setdefault("result", "{}")
    if status is JobStatus.FAILED:
        more.setdefault("error", error_object("ExecutionError", "no", plugin=job.plugin))
    ended = await database.writer.write(job_endings.end, Ending(job=job, owner=owner, status=status, **more))
    return ended and ended.status


async def record(database, job_id):
    return await job_queries.get(database.reader, job_id, "default")


async def events(database, job_id):
    statement = Statement(sa.text("SELECT n, type FROM job_events WHERE job_id = :job ORDER BY n"))
    return await database.reader.fetch(statement, job=job_id)


async def test_a_key_makes_one_job_however_many_ask_at_once(database):
    asked = await asyncio.gather(*(database.writer.write(job_inserts.insert, new_job(key="k")) for _ in range(32)))
    assert len({inserted.id for inserted in asked}) == 1
    assert sum(not inserted.replayed for inserted in asked) == 1
    assert len((await job_queries.list_page(database.reader, JobQuery(), "default")).items) == 1


async def test_a_job_that_waited_long_enough_overtakes_a_higher_priority(database):
    now = timestamp()
    waited = {lead: new_job(run_at=None) for lead in (59, 61)}
    for lead, job in waited.items():
        job.created_at = later(now, -lead)
    urgent = new_job(priority=1)
    urgent.created_at = now
    (longer, between, shorter) = await insert(database, waited[61], urgent, waited[59])
    assert [job.id for job in await claim(database, limit=3)] == [longer, between, shorter]


async def test_claims_go_by_priority_then_age(database):
    low, old, young, high = await insert(database, new_job(priority=-1), new_job(), new_job(), new_job(priority=5))
    assert [job.id for job in await claim(database, 3)] == [high, old, young]
    assert [job.id for job in await claim(database, 3)] == [low]
    assert await claim(database, 3) == []


async def test_claims_keep_to_the_caps_of_plugins(database):
    await insert(database, *(new_job("a") for _ in range(5)), *(new_job("b") for _ in range(2)))
    claimed = await claim(database, 10, caps={"a": 2})
    assert sorted(job.plugin for job in claimed) == ["a", "a", "b", "b"]
    assert await claim(database, 10, caps={"a": 0}) == []


async def test_a_claim_for_some_plugins_leaves_the_others(database):
    await insert(database, new_job("a", priority=9), new_job("b"), new_job("c"))
    assert await claim(database, 10, plugins=[]) == []
    assert [job.plugin for job in await claim(database, 10, plugins=["b", "not here"])] == ["b"]
    assert {job.plugin for job in await claim(database, 10)} == {"a", "c"}


async def test_no_job_is_claimed_twice(database):
    ids = await insert(database, *(new_job() for _ in range(60)))
    batches = await asyncio.gather(*(claim(database, 7, owner=str(uuid7())) for _ in range(20)))
    claimed = [job.id for batch in batches for job in batch]
    assert sorted(claimed) == sorted(ids)


@pytest.mark.parametrize(
    ("claim", "more"),
    [
        (job_claims._CLAIM, {}),
        (job_claims._CLAIM_OF_PLUGINS, {"plugins": "[]"}),
        (job_claims._CLAIM_AHEAD, {"plugins": "[]", "short": "[]", "limit": 2}),
    ],
)
async def test_the_claim_uses_its_index_however_many_jobs_are_finished(database_file, claim, more):
    connection = sqlite3.connect(database_file)
    parameters = claim.sqlite.bind(caps="[]", most=5, owner=ME, lease_until=after(1), now=timestamp(), **more)
    plan = "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {claim.sqlite.text}", parameters))
    connection.close()
    assert "ix_jobs_claimable" in plan
    assert "SCAN jobs\n" not in plan
    assert "TEMP B-TREE FOR ORDER BY\n" not in plan.split("next_jobs")[0]


@pytest.mark.parametrize(
    ("queued", "taken"),
    [
        ("ssssss", 5),  # two by right, three that follow
        ("lsssss", 5),  # whatever the first are, they have workers
        ("sslsss", 2),  # nothing overtakes what has to wait
        ("ssslss", 3),
        ("llllll", 2),
        ("l", 1),
    ],
)
async def test_what_is_claimed_ahead_is_short_and_overtakes_nobody(database, queued, taken):
    plugins = {"s": "short", "l": "long"}
    ids = [*itertools.chain(*[await insert(database, new_job(plugin=plugins[letter])) for letter in queued])]
    ahead = Claim(owner=ME, limit=2, lease_s=30, plugins=["short", "long"], ahead=3, short=frozenset({"short"}))
    assert [job.id for job in await database.writer.write(job_claims.claim, ahead)] == ids[:taken]


async def test_a_job_goes_its_way_and_each_step_leaves_an_event(database):
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database)
    assert (job.fence, job.attempt) == (1, 1)
    assert await end(database, job, result='{"ok":true}')
    done = await record(database, job_id)
    assert (done.status, done.result, done.error) == ("SUCCESS", {"ok": True}, None)
    assert await events(database, job_id) == [(1, "submitted"), (2, "started"), (3, "success")]
    (attempt,) = await job_queries.list_attempts(database.reader, job_id)
    assert (attempt.fence, attempt.outcome) == (1, "SUCCESS")
    assert done.started_at <= done.finished_at


@pytest.mark.parametrize("status", [JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.PENDING])
async def test_a_finished_job_never_changes_again(database, status):
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database)
    await end(database, job)
    before = await record(database, job_id)
    assert not await end(database, job, status)
    assert not await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="late"))
    assert await claim(database, job_id=job_id) == []
    assert await record(database, job_id) == before


async def test_a_stale_fence_or_a_foreign_owner_changes_nothing(database):
    (job_id,) = await insert(database, new_job())
    (first,) = await claim(database)
    await end(database, first, JobStatus.PENDING)
    (second,) = await claim(database, owner=OTHER)
    assert second.fence == 2
    before = await record(database, job_id)
    assert not await end(database, first)
    assert not await end(database, second, owner=ME)
    assert not await end(database, first, owner=OTHER)
    assert await record(database, job_id) == before
    assert await end(database, second, owner=OTHER)


@pytest.mark.parametrize("status", [JobStatus.SUCCESS, JobStatus.FAILED])
async def test_executions_are_counted_beyond_32_bits(database, database_url, status):
    most = 2**31 - 1
    columns = "success_count, error_count, timed_count, total_run_s, last_used_at, consecutive_errors"
    values = f"'p', {most}, {most}, {most}, 0, '{timestamp()}', {most}"
    await asyncio.to_thread(sql, database_url, f"INSERT INTO plugin_metrics (plugin, {columns}) VALUES ({values})")
    await insert(database, new_job())
    (job,) = await claim(database)
    assert await end(database, job, status, report=CallReport(run_s=0.1)) is status
    metrics = (await plugin_metrics.load(database.reader))["p"]
    assert metrics.success_count + metrics.error_count == 2 * most + 1


async def test_lost_runs_use_no_attempt_but_have_a_cap(database):
    (job_id,) = await insert(database, new_job())
    for fence in (1, 2):
        (job,) = await claim(database, owner=OTHER)
        assert (job.fence, job.attempt) == (fence, 1)
        assert [run.id for run in await database.writer.write(job_leases.recover, ME)] == [job_id]
        assert (await record(database, job_id)).status == "PENDING"
    await claim(database, owner=OTHER)
    await database.writer.write(job_leases.recover, ME)
    lost = await record(database, job_id)
    assert (lost.status, lost.error["type"]) == ("FAILED", "WorkerLost")
    assert [attempt.outcome for attempt in await job_queries.list_attempts(database.reader, job_id)] == ["LOST"] * 3
    assert await plugin_metrics.load(database.reader) == {}


async def test_a_lost_run_that_was_being_cancelled_is_cancelled(database):
    (job_id,) = await insert(database, new_job())
    await claim(database, owner=OTHER)
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="why"))
    await database.writer.write(job_leases.recover, ME)
    assert (await record(database, job_id)).status == "CANCELLED"


async def test_recovery_leaves_what_this_process_runs(database):
    await insert(database, new_job())
    await claim(database)
    assert await database.writer.write(job_leases.recover, ME) == []


async def test_scheduled_jobs_wait_and_expired_ones_fail(database):
    later, never = await insert(database, new_job(run_at=after(0.2)), new_job(run_at=after(60), expires_at=after(-1)))
    assert await claim(database) == []
    assert await database.writer.write(job_changes.expire, None) == {never: "p"}
    failed = await record(database, never)
    assert (failed.status, failed.error["type"], failed.attempt) == ("FAILED", "Expired", 0)
    while not await database.writer.write(job_changes.promote, None):
        await asyncio.sleep(0.02)
    assert [job.id for job in await claim(database)] == [later]


async def test_of_jobs_that_are_due_at_once_a_page_is_promoted_the_longest_due_first(database, database_url):
    page = job_changes.PROMOTE_PAGE
    await database.writer.write(job_inserts.insert_batch, [new_job() for _ in range(page)])
    (longest,) = await insert(database, new_job())
    for change in (
        "due = false, run_at = '2020-01-02T00:00:00.000Z'",
        f"run_at = '2020-01-01T00:00:00.000Z' WHERE id = '{longest}'",
    ):
        await asyncio.to_thread(sql, database_url, f"UPDATE jobs SET {change}")
    assert await database.writer.write(job_changes.promote, None) == page
    assert len(await claim(database, limit=page + 1)) == page
    assert (await record(database, longest)).status == "RUNNING"
    assert [await database.writer.write(job_changes.promote, None) for _ in range(2)] == [1, 0]


async def test_leases_are_renewed_and_tell_what_is_still_held(database):
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database)
    renewal = job_leases.Renewal(owner=ME, lease_s=60, runs=[(job_id, 1)])
    assert await database.writer.write(job_leases.renew, renewal) == {(job_id, 1): False}
    await end(database, job)
    assert await database.writer.write(job_leases.renew, renewal) == {}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 6),
        ({"plugin": "a"}, 3),
        ({"status": JobStatus.PENDING}, 4),
        ({"status": JobStatus.FAILED}, 1),
        ({"plugin": "b", "status": JobStatus.SUCCESS}, 0),
        ({"tag": "red"}, 2),
        ({"error_type": "ExecutionError"}, 1),
        ({"created_after": "2000-01-01T00:00:00.000Z"}, 6),
        ({"created_before": "2000-01-01T00:00:00.000Z"}, 0),
    ],
)
async def test_lists_filter(database, filters, expected):
    await insert(database, *(new_job("a") for _ in range(3)), new_job("b"), *(new_job("b", tags=("red", "x")),) * 1)
    await insert(database, new_job("c", tags=("red",)))
    first, second = (await claim(database))[:2]
    await end(database, first)
    await end(database, second, JobStatus.FAILED)
    for job in await claim(database, owner=OTHER):
        await end(database, job, JobStatus.PENDING, owner=OTHER)
    await _release_the_rest(database)
    page = await job_queries.list_page(database.reader, JobQuery(**filters), "default")
    assert len(page.items) == expected
    assert all(item.payload is None and item.result is None for item in page.items)


async def _release_the_rest(database):
    await database.writer.write(job_leases.recover, OTHER)


async def test_pages_follow_each_other_without_gap_or_repeat(database):
    ids = await insert(database, *(new_job() for _ in range(25)))
    seen, after_id = [], None
    while True:
        page = await job_queries.list_page(database.reader, JobQuery(limit=10, after=after_id), "default")
        seen += [item.id for item in page.items]
        if page.next is None:
            break
        after_id = page.next
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "change",
    [
        "status = 'RUNNING'",
        "status = 'SUCCESS'",
        "status = 'FAILED', finished_at = created_at",
        "status = 'SUCCESS', finished_at = created_at",
        "status = 'CANCELLED', finished_at = created_at",
        "status = 'DONE'",
        "error = '{}'",
        "result = '{}'",
        "owner = id",
        "finished_at = created_at",
        "priority = 101",
        "attempt = 2",
        "progress_fraction = 1.5",
        "idempotency_key = 'k'",
    ],
)
async def test_the_database_refuses_states_that_make_no_sense(database, database_url, change):
    await insert(database, new_job())
    with pytest.raises((sqlite3.IntegrityError, asyncpg.CheckViolationError), match=r"(?i)check"):
        await asyncio.to_thread(sql, database_url, f"UPDATE jobs SET {change}")


async def test_the_report_views_tell_of_a_finished_job(database, database_url):
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database)
    await end(database, job, JobStatus.FAILED)
    jobs = "SELECT job_id, status, error_type, queue_s, run_s, total_s FROM report_jobs"
    ((reported, status, error_type, queue_s, run_s, total_s),) = await asyncio.to_thread(sql, database_url, jobs)
    assert (str(reported), status, error_type) == (job_id, "FAILED", "ExecutionError")
    assert 0 <= queue_s < 5
    assert 0 <= run_s < 5
    assert total_s == pytest.approx(queue_s + run_s, abs=0.002)
    attempts = "SELECT job_id, outcome, error_type FROM report_attempts"
    ((reported, *rest),) = await asyncio.to_thread(sql, database_url, attempts)
    assert (str(reported), *rest) == (job_id, "FAILED", "ExecutionError")


async def test_the_end_of_a_job_brings_its_record_to_who_waits_for_it(database):
    ids = await insert(database, *(new_job() for _ in range(3)))
    claimed = {job.id: job for job in await claim(database)}
    large = f'{{"text":"{secrets.token_hex(40_000)}"}}'
    wanted, unwanted, bulky = (claimed[job_id] for job_id in ids)
    lost = dataclasses.replace(wanted, fence=wanted.fence + 1)
    ends = [
        Ending(job=job, owner=ME, status=JobStatus.SUCCESS, result=result, is_awaited=is_awaited)
        for job, result, is_awaited in (
            (wanted, '{"n":1}', True), (unwanted, '{"n":2}', False), (bulky, large, True), (lost, '{"n":3}', True),
        )
    ]  # fmt: skip
    told = await asyncio.gather(*(database.writer.write(job_endings.end, ending) for ending in ends))
    assert [ended and ended.status for ended in told] == [JobStatus.SUCCESS] * 3 + [None]
    assert [ended and ended.record for ended in told] == [await record(database, wanted.id), None, None, None]
    # Where it is to be tried again, that is what who waits is told.
    again = (await insert(database, new_job()))[0]
    (job,) = await claim(database)
    error = error_object("ExecutionError", "no", plugin=job.plugin)
    ending = Ending(job=job, owner=ME, status=JobStatus.PENDING, retry_in_s=60, error=error, is_awaited=True)
    ended = await database.writer.write(job_endings.end, ending)
    assert ended.record == await record(database, again)
    assert ended.record.status == "PENDING"


async def test_what_is_told_of_a_job_is_written_before_its_end_whoever_else_ended_first(database):
    await insert(database, new_job(), new_job())
    first, second = await claim(database, 2)
    made = ProgressMade(job=second, owner=ME, progress=Progress(fraction=1.0, message="all"))
    sizes: list[int] = []
    database.writer.on_commit = sizes.append
    _, is_held, _ = await asyncio.gather(
        end(database, first),
        database.writer.write(job_changes.make_progress, made),
        end(database, second),
    )
    assert sizes == [3]
    assert is_held
    assert (await record(database, second.id)).progress.fraction == 1.0
