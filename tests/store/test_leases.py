"""Leases, rescue and retries at the store: who may write a job, and who may take it away."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import job_changes, job_claims, job_endings, job_inserts, job_leases, job_queries, plugin_metrics
from service.db.job_changes import CancelRequest, ProgressMade
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_leases import Renewal
from service.db.statements import Statement, batch
from service.errors import error_object
from service.models import JobStatus, Progress, later, timestamp
from tests.store.test_jobs import ME, OTHER, after, claim, end, events, insert, record
from tests.store.test_writer import new_job

LAPSED_S = -1.0


async def claim_lapsed(database, owner=OTHER, limit=10):
    """Jobs claimed by a runner whose lease has ended already."""
    item = Claim(owner=owner, limit=limit, lease_s=LAPSED_S)
    return await database.writer.write(job_claims.claim, item)


async def rescue(database):
    return await database.writer.write(job_leases.rescue, None)


async def renew(database, *held, owner=ME, lease_s=60):
    item = Renewal(owner=owner, lease_s=lease_s, runs=[(job.id, job.fence) for job in held])
    return await database.writer.write(job_leases.renew, item)


async def fail(database, job, retry_in_s, owner=ME):
    error = error_object("ExecutionError", "no", plugin=job.plugin)
    item = Ending(job=job, owner=owner, status=JobStatus.PENDING, error=error, retry_in_s=retry_in_s)
    ended = await database.writer.write(job_endings.end, item)
    return ended and ended.status


async def ask_to_cancel(database, job_id):
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="why"))


def several(count):
    job = new_job()
    job.max_attempts = count
    return job


async def end_again(database, job, status, **more):
    """As whoever wrote an end does that does not know whether it was committed."""
    item = Ending(job=job, owner=ME, status=status, is_again=True, is_awaited=True, **more)
    return await database.writer.write(job_endings.end, item)


async def outcomes(database, job_id):
    return [attempt.outcome for attempt in await job_queries.list_attempts(database.reader, job_id)]


# --- rescue ---


async def test_a_job_whose_lease_has_ended_goes_back_with_its_attempt_and_keeps_its_fence(database):
    (job_id,) = await insert(database, new_job())
    await claim_lapsed(database)
    (run,) = await rescue(database)
    assert (run.id, run.fence, run.status) == (job_id, 1, "PENDING")
    job = await record(database, job_id)
    assert (job.status, job.attempt, job.fence) == ("PENDING", 0, 1)
    assert await outcomes(database, job_id) == ["LOST"]
    assert await events(database, job_id) == [(1, "submitted"), (2, "started"), (3, "lost")]
    (again,) = await claim(database)
    assert (again.fence, again.attempt) == (2, 1)


async def test_a_job_whose_lease_goes_on_is_left_alone(database):
    (job_id,) = await insert(database, new_job())
    await claim(database, owner=OTHER)
    assert await rescue(database) == []
    assert (await record(database, job_id)).status == "RUNNING"


async def test_an_own_job_whose_lease_has_ended_is_taken_back_too(database):
    await insert(database, new_job())
    await claim_lapsed(database, owner=ME)
    assert len(await rescue(database)) == 1


async def test_of_many_rescuers_one_takes_a_job_back(database):
    ids = await insert(database, *(new_job() for _ in range(20)))
    await claim_lapsed(database, limit=20)
    taken = await asyncio.gather(*(rescue(database) for _ in range(8)))
    assert sorted(run.id for runs in taken for run in runs) == sorted(ids)
    for job_id in ids:
        assert await outcomes(database, job_id) == ["LOST"]


async def test_a_lease_renewed_between_look_and_change_keeps_its_job(database):
    """The change must stand on its own: the look may be old by then."""
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database, owner=OTHER)
    _, change = job_leases._LAPSED

    async def change_after_an_old_look(tx, items):
        row = batch([(job.id, job.fence, "{}", "lost")])
        return [await tx.fetch(change, now=await tx.now(), batch=row)]

    assert await database.writer.write(change_after_an_old_look, None) == []
    assert (await record(database, job_id)).status == "RUNNING"


async def test_rescue_takes_the_longest_lost_first_and_a_page_at_a_time(database):
    count = job_leases.RESCUE_PAGE + 30
    await asyncio.gather(*(insert(database, new_job()) for _ in range(count)))
    early = await database.writer.write(job_claims.claim, Claim(owner=OTHER, limit=count - 20, lease_s=-60))
    await claim_lapsed(database, limit=20)
    first, second = await rescue(database), await rescue(database)
    assert (len(first), len(second)) == (job_leases.RESCUE_PAGE, 30)
    assert {run.id for run in first} <= {job.id for job in early}
    assert await rescue(database) == []


async def test_rescue_finds_lost_jobs_by_index_however_many_wait(database_file):
    connection = sqlite3.connect(database_file)
    look, _ = job_leases._LAPSED
    plan = [
        row[3]
        for row in connection.execute(f"EXPLAIN QUERY PLAN {look.sqlite.text}", look.sqlite.bind(now=timestamp()))
    ]
    connection.close()
    assert len(plan) == 1
    assert "ix_jobs_leased" in plan[0]


async def test_a_job_lost_too_often_fails_and_says_so(database):
    (job_id,) = await insert(database, new_job())
    for _ in range(job_inserts.MAX_LOST - 1):
        await claim_lapsed(database)
        assert [run.status for run in await rescue(database)] == ["PENDING"]
    await claim_lapsed(database)
    assert [run.status for run in await rescue(database)] == ["FAILED"]
    job = await record(database, job_id)
    assert (job.status, job.error["type"], job.error["details"], job.attempt) == (
        "FAILED",
        "WorkerLost",
        {"lost": 3},
        1,
    )
    assert await outcomes(database, job_id) == ["LOST"] * 3
    assert (await events(database, job_id))[-1][1] == "failed"
    assert await plugin_metrics.load(database.reader) == {}


async def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(database):
    (job_id,) = await insert(database, new_job())
    await claim_lapsed(database)
    await ask_to_cancel(database, job_id)
    assert [run.status for run in await rescue(database)] == ["CANCELLED"]
    assert await outcomes(database, job_id) == ["LOST"]
    assert (await events(database, job_id))[-1][1] == "cancelled"


async def test_what_the_lost_runner_brings_later_changes_nothing(database):
    (job_id,) = await insert(database, new_job())
    (stale,) = await claim_lapsed(database)
    await rescue(database)
    before = await record(database, job_id)
    assert await end(database, stale, owner=OTHER) is None
    assert await fail(database, stale, 1, owner=OTHER) is None
    assert await record(database, job_id) == before
    (job,) = await claim(database)
    assert await end(database, stale, owner=OTHER) is None
    assert await end(database, job) is JobStatus.SUCCESS


async def test_a_late_end_and_the_live_one_of_the_same_job_share_a_commit(database):
    (job_id,) = await insert(database, new_job())
    (stale,) = await claim_lapsed(database)
    await rescue(database)
    (live,) = await claim(database)
    sizes: list[int] = []
    database.writer.on_commit = sizes.append
    assert await asyncio.gather(end(database, stale, owner=OTHER), end(database, live)) == [None, JobStatus.SUCCESS]
    assert sizes == [2]
    assert await outcomes(database, job_id) == ["LOST", "SUCCESS"]
    assert (await events(database, job_id))[-1] == (5, "success")


# --- renewal ---


async def test_a_lease_that_has_ended_cannot_be_renewed(database):
    await insert(database, new_job())
    (job,) = await claim_lapsed(database, owner=ME)
    assert await renew(database, job) == {}
    assert len(await rescue(database)) == 1


async def test_a_run_its_owner_does_not_know_of_is_not_renewed(database):
    """A claim may be committed although its owner was told that it failed; somebody must take the job back."""
    await insert(database, new_job(), new_job())
    known, unknown = await database.writer.write(job_claims.claim, Claim(owner=ME, limit=2, lease_s=0.5))
    assert await renew(database, known) == {(known.id, 1): False}
    rescued = []
    while not rescued:
        rescued = await rescue(database)
    assert [run.id for run in rescued] == [unknown.id]


async def test_a_renewal_tells_what_somebody_asked_to_cancel(database):
    await insert(database, new_job(), new_job())
    first, second = await claim(database)
    await ask_to_cancel(database, second.id)
    assert await renew(database, first, second) == {(first.id, 1): False, (second.id, 1): True}


async def test_an_old_fence_or_a_foreign_owner_renews_nothing(database):
    await insert(database, new_job())
    (first,) = await claim(database)
    await end(database, first, JobStatus.PENDING)
    (second,) = await claim(database)
    assert await renew(database, first) == {}
    assert await renew(database, second, owner=OTHER) == {}
    assert await renew(database, second) == {(second.id, 2): False}


# --- retries ---


async def test_a_failed_attempt_waits_for_its_next_one_and_keeps_its_error(database):
    (job_id,) = await insert(database, several(3))
    (job,) = await claim(database)
    assert await fail(database, job, 0.1) is JobStatus.PENDING
    waiting = await record(database, job_id)
    assert (waiting.status, waiting.attempt, waiting.error, waiting.finished_at) == ("PENDING", 1, None, None)
    assert waiting.run_at > waiting.started_at
    (attempt,) = await job_queries.list_attempts(database.reader, job_id)
    assert (attempt.outcome, attempt.error_type, attempt.error_message) == ("FAILED", "ExecutionError", "no")
    statement = Statement(sa.text("SELECT type, data ->> 'run_at' FROM job_events WHERE job_id = :job ORDER BY n"))
    assert (await database.reader.fetch(statement, job=job_id))[-1] == ("retrying", waiting.run_at)
    assert (await plugin_metrics.load(database.reader))["p"].error_count == 1


async def test_a_waiting_retry_is_claimed_when_it_is_due_and_not_before(database):
    await insert(database, several(2))
    (job,) = await claim(database)
    await fail(database, job, 0.2)
    assert await claim(database) == []
    while not await database.writer.write(job_changes.promote, None):
        await asyncio.sleep(0.02)
    (again,) = await claim(database)
    assert (again.attempt, again.fence) == (2, 2)


async def test_a_retry_without_a_wait_is_due_at_once(database):
    await insert(database, several(2))
    (job,) = await claim(database)
    await fail(database, job, 0)
    assert len(await claim(database)) == 1


@pytest.mark.parametrize("order", [1, -1])
async def test_a_stale_word_on_progress_is_told_from_that_of_the_live_run(database, order):
    (job_id,) = await insert(database, several(2))
    (stale,) = await claim(database)
    await fail(database, stale, 0)
    (live,) = await claim(database)
    assert (live.id, stale.id) == (job_id, job_id)
    words = [
        ProgressMade(job=job, owner=ME, progress=Progress(fraction=fraction, message=""))
        for job, fraction in ((live, 0.75), (stale, 0.25))
    ]
    told = await asyncio.gather(*(database.writer.write(job_changes.make_progress, word) for word in words[::order]))
    assert told == [True, False][::order]
    assert (await record(database, job_id)).progress.fraction == 0.75


def test_a_time_beyond_the_calendar_is_its_end():
    assert later(timestamp(), float("inf")) == "9999-12-31T23:59:59.999Z"
    assert later(timestamp(), -1e300) == "0001-01-01T00:00:00.000Z"


async def test_a_retry_that_would_come_too_late_expires(database):
    job = new_job(expires_at=after(0.3))
    job.max_attempts = 2
    (job_id,) = await insert(database, job)
    (claimed,) = await claim(database)
    await fail(database, claimed, 60)
    while not await database.writer.write(job_changes.expire, None):
        await asyncio.sleep(0.02)
    failed = await record(database, job_id)
    assert (failed.status, failed.error["type"], failed.attempt) == ("FAILED", "Expired", 1)


@pytest.mark.parametrize("give_back", [lambda *run: fail(*run, 1), lambda *run: end(*run, JobStatus.PENDING)])
async def test_a_job_to_be_cancelled_gets_no_further_attempt(database, give_back):
    (job_id,) = await insert(database, several(2))
    (job,) = await claim(database)
    await ask_to_cancel(database, job_id)
    assert await give_back(database, job) is JobStatus.CANCELLED
    cancelled = await record(database, job_id)
    assert (cancelled.status, cancelled.attempt, cancelled.error) == ("CANCELLED", 1, None)
    assert (await events(database, job_id))[-1][1] == "cancelled"


async def test_a_scheduled_job_that_was_run_early_and_given_back_waits_for_its_time(database):
    (job_id,) = await insert(database, new_job(run_at=after(60)))
    (job,) = await claim(database, job_id=job_id)
    await end(database, job, JobStatus.PENDING)
    assert await claim(database) == []


# --- plugins ---


async def test_a_process_claims_only_for_plugins_it_has(database):
    await insert(database, new_job("a"), new_job("b"), new_job("c"))
    assert sorted(job.plugin for job in await claim(database, plugins={"a", "c", "z"})) == ["a", "c"]
    assert await claim(database, plugins=set()) == []
    assert [job.plugin for job in await claim(database)] == ["b"]


async def test_jobs_of_a_plugin_nobody_has_fail_after_their_wait_and_not_before(database):
    old, young, other = await insert(database, new_job("gone"), new_job("gone"), new_job("here"))
    found = await job_queries.find_abandoned(database.reader, ["here"], after(60))
    assert {job_id for job_id, _ in found} == {old, young}
    error = error_object("PluginError", "gone", plugin="gone")
    abandon = job_changes.Abandonment(wait_s=3600, errors={old: error})
    assert await database.writer.write(job_changes.abandon, abandon) == []
    abandon = job_changes.Abandonment(wait_s=-1, errors={old: error, str(uuid7()): error})
    assert await database.writer.write(job_changes.abandon, abandon) == [old]
    failed = await record(database, old)
    assert (failed.status, failed.error["type"], failed.attempt) == ("FAILED", "PluginError", 0)
    assert (await record(database, other)).status == "PENDING"


# --- ends of which nobody knows whether they were committed ---


async def test_an_end_that_was_written_before_is_told_again_and_changes_nothing(database):
    for job in (several(1), several(1), several(2), several(1)):
        await insert(database, job)
    well, badly, retried, stopped = await claim(database)
    await ask_to_cancel(database, stopped.id)
    error = error_object("ExecutionError", "no", plugin="p")
    writes = {
        well: {"status": JobStatus.SUCCESS, "result": "{}"},
        badly: {"status": JobStatus.FAILED, "error": error},
        retried: {"status": JobStatus.PENDING, "error": error, "retry_in_s": 0},
        stopped: {"status": JobStatus.PENDING},
    }
    became = [await end(database, job, **write) for job, write in writes.items()]
    assert became == ["SUCCESS", "FAILED", "PENDING", "CANCELLED"]
    before = [await record(database, job.id) for job in writes]
    told = [await end_again(database, job, **write) for job, write in writes.items()]
    assert [ended.status for ended in told] == became
    assert [ended.record for ended in told] == before == [await record(database, job.id) for job in writes]
    # Whatever has become of the job since.
    (claimed,) = await claim(database)
    await end(database, claimed)
    assert (await end_again(database, retried, **writes[retried])).status == "PENDING"


async def test_an_end_that_was_never_written_is_late_also_when_it_is_written_again(database):
    await insert(database, new_job())
    (job,) = await claim_lapsed(database, owner=ME)
    await rescue(database)
    assert await end_again(database, job, JobStatus.SUCCESS, result="{}") is None
    (other,) = await claim(database, owner=OTHER)
    await end(database, other, owner=OTHER)
    assert await end_again(database, job, JobStatus.SUCCESS, result="{}") is None
    assert await end_again(database, other, JobStatus.SUCCESS, result="{}") is None
