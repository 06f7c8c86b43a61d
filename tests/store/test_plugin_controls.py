"""What operators set for plugins decides about every claim, in the claim's own transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import job_claims, plugin_controls
from service.db.database import Database
from service.db.job_claims import Claim
from service.db.plugin_controls import Limits, Pause
from service.db.statements import Statement
from service.db.transaction import RefusedError
from service.models import JobStatus, Timestamp, later
from service.plugin_controls import PluginControl
from tests.conftest import sqlite_url
from tests.store.test_jobs import claim, end, insert
from tests.store.test_writer import new_job


async def pause(database, plugin="p", *, refuses_jobs=False, reason=None):
    await database.writer.write(plugin_controls.pause, Pause(plugin=plugin, refuses_jobs=refuses_jobs, reason=reason))


async def resume(database, plugin="p"):
    await database.writer.write(plugin_controls.resume, plugin)


async def limit(database, plugin="p", concurrency=None, rate_per_s=None, burst=None):
    item = Limits(plugin=plugin, concurrency=concurrency, rate_per_s=rate_per_s, burst=burst)
    await database.writer.write(plugin_controls.set_limits, item)


async def controls(database):
    return await plugin_controls.load(database.reader)


async def claimed(database, limit=10, **more):
    """The plugins of the jobs that a claim which knows of controls takes."""
    return [job.plugin for job in await claim(database, limit, controlled=True, **more)]


@pytest.fixture
def clock():
    """The time of the database in `timed`: it stands until it is moved."""

    class Clock:
        now = Timestamp("2030-01-01T00:00:00.000Z")

        def tick(self, seconds):
            self.now = later(self.now, seconds)

    return Clock()


@pytest.fixture
async def timed(clock, database_file, tmp_path):
    url = sqlite_url(database_file)
    async with Database.open(url, tmp_path / "blobs", inline_bytes=1_000, clock=lambda: clock.now) as database:
        yield database


async def test_jobs_of_a_paused_plugin_wait_and_hide_no_others(database):
    await insert(database, *(new_job("a", priority=9) for _ in range(30)), new_job("b"))
    await pause(database, "a")
    assert await claimed(database, 5) == ["b"]
    assert await claimed(database, 5, plugins=["a", "b"]) == []
    await resume(database, "a")
    assert await claimed(database, 5) == ["a"] * 5


@pytest.mark.parametrize("setting", [pause, lambda database: limit(database, concurrency=9)])
async def test_a_claim_that_has_not_heard_of_a_control_takes_nothing_of_that_plugin(database, setting):
    await insert(database, new_job(), new_job("other"))
    await setting(database)
    assert [job.plugin for job in await claim(database)] == ["other"]


async def test_no_more_jobs_run_at_once_than_the_limit_says(database):
    await insert(database, *(new_job() for _ in range(5)), new_job("other"))
    await limit(database, concurrency=2)
    first = await claim(database, controlled=True)
    assert sorted(job.plugin for job in first) == ["other", "p", "p"]
    assert await claimed(database) == []
    await end(database, next(job for job in first if job.plugin == "p"))
    assert await claimed(database) == ["p"]


async def test_the_tighter_of_a_limit_and_what_the_process_can_take_holds(database):
    await insert(database, *(new_job() for _ in range(5)))
    await limit(database, concurrency=3)
    assert await claimed(database, caps={"p": 1}) == ["p"]
    assert await claimed(database, caps={"p": 4}) == ["p", "p"]


async def test_several_owners_in_one_transaction_share_a_limit(database):
    await insert(database, *(new_job() for _ in range(9)))
    await limit(database, concurrency=3)
    turns = [Claim(owner=str(uuid7()), limit=2, lease_s=30, controlled=True) for _ in range(4)]
    taken = await asyncio.gather(*(database.writer.write(job_claims.claim, turn) for turn in turns))
    assert sorted(map(len, taken)) == [0, 0, 1, 2]


async def test_a_job_that_is_ordered_by_name_waits_for_nothing_but_counts(database):
    ordered, waiting = await insert(database, new_job(), new_job())
    await limit(database, concurrency=1)
    await pause(database)
    assert [job.id for job in await claim(database, job_id=ordered)] == [ordered]
    await resume(database)
    assert await claimed(database) == []
    assert [job.id for job in await claim(database, job_id=waiting)] == [waiting]


async def test_a_bucket_gives_its_burst_and_then_its_rate(timed, clock):
    await insert(timed, *(new_job() for _ in range(20)))
    await limit(timed, rate_per_s=2.0, burst=3)
    assert len(await claimed(timed)) == 3
    assert await claimed(timed) == []
    clock.tick(0.25)
    assert await claimed(timed) == []
    clock.tick(0.25)
    assert len(await claimed(timed)) == 1
    clock.tick(1.75)
    assert len(await claimed(timed)) == 3
    clock.tick(60)
    assert len(await claimed(timed)) == 3


async def test_a_clock_that_is_put_back_costs_no_tokens_and_gives_none(timed, clock):
    await insert(timed, *(new_job() for _ in range(9)))
    await limit(timed, rate_per_s=1.0, burst=2)
    assert len(await claimed(timed, 1)) == 1
    clock.tick(-3600)
    assert len(await claimed(timed)) == 1
    clock.tick(1)
    assert len(await claimed(timed)) == 1


async def test_a_new_rate_gives_no_new_tokens(timed, clock):
    await insert(timed, *(new_job() for _ in range(9)))
    await limit(timed, rate_per_s=1.0, burst=2)
    assert len(await claimed(timed)) == 2
    await limit(timed, rate_per_s=0.5, burst=5)
    assert await claimed(timed) == []
    clock.tick(2)
    assert len(await claimed(timed)) == 1


async def test_what_is_set_can_be_read_and_a_row_where_nothing_is_set_goes(database):
    assert await controls(database) == {}
    await limit(database, "a", concurrency=2, rate_per_s=0.5, burst=1)
    await pause(database, "a", refuses_jobs=True, reason="why")
    found = (await controls(database))["a"]
    assert found.paused_at is not None
    assert found == PluginControl(
        paused_at=found.paused_at, refuses_jobs=True, reason="why", concurrency=2, rate_per_s=0.5, burst=1
    )
    await resume(database, "a")
    assert (await controls(database))["a"] == PluginControl(concurrency=2, rate_per_s=0.5, burst=1)
    await pause(database, "a")
    await limit(database, "a")
    assert (await controls(database))["a"].paused_at is not None
    await resume(database, "a")
    assert await controls(database) == {}
    await resume(database, "a")
    await limit(database, "a", concurrency=1)
    await limit(database, "a")
    assert await controls(database) == {}


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("refuses_jobs", "false"),  # nothing is set
        ("refuses_jobs, concurrency", "true, 1"),  # refuses jobs, but is not paused
        ("refuses_jobs, concurrency", "false, 0"),
        ("refuses_jobs, concurrency, rate_per_s", "false, 1, 2"),  # a rate without a bucket
        ("refuses_jobs, rate_per_s, burst, tokens, tokens_at", "false, 1, 1, 2, '2030-01-01T00:00:00.000Z'"),
    ],
)
async def test_the_database_refuses_what_makes_no_sense(database, columns, values):
    async def write(tx, items):
        return [
            await tx.fetch(
                Statement(sa.text(f"INSERT INTO plugin_controls (plugin, {columns}) VALUES ('p', {values})"))
            )
        ]

    with pytest.raises(RefusedError):
        await database.writer.write(write, None)


@pytest.fixture
async def shared(postgres_url, tmp_path):
    """Two processes' views of one database."""
    opening = [Database.open(postgres_url, tmp_path / "blobs", inline_bytes=1_000) for _ in range(2)]
    async with opening[0] as one, opening[1] as other:
        yield one, other


@pytest.mark.parametrize("limits", [{"concurrency": 1}, {"rate_per_s": 0.001, "burst": 1}])
async def test_two_processes_never_take_the_last_place_both(shared, limits):
    one, other = shared
    await insert(one, *(new_job() for _ in range(4)), new_job("free"))
    await limit(one, **limits)
    has_claimed, may_commit = asyncio.Event(), asyncio.Event()

    async def claim_slowly(tx, items):
        outcomes = await job_claims.claim(tx, items)
        has_claimed.set()
        await may_commit.wait()
        return outcomes

    item = Claim(owner=str(uuid7()), limit=1, lease_s=30, plugins=["p"], controlled=True)
    slow = asyncio.create_task(one.writer.write(claim_slowly, item))
    await has_claimed.wait()
    try:
        assert await claimed(other) == ["free"]  # and does not wait for the one that has the place
    finally:
        may_commit.set()
    assert len(await slow) == 1
    assert await claimed(other) == []


@pytest.mark.parametrize("most", [1, 3])
async def test_processes_that_claim_at_once_never_exceed_a_limit(shared, most):
    jobs = await insert(shared[0], *(new_job() for _ in range(60)))
    await limit(shared[0], concurrency=most)
    running: set[str] = set()
    ended: list[str] = []

    async def work(database):
        owner = str(uuid7())
        while len(ended) < len(jobs):
            taken = await claim(database, 2, owner=owner, controlled=True)
            running.update(job.id for job in taken)
            assert len(running) <= most
            for job in taken:
                running.remove(job.id)
                assert await end(database, job, owner=owner) is JobStatus.SUCCESS
                ended.append(job.id)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for database in shared * 3:
            group.create_task(work(database))
    assert sorted(ended) == sorted(jobs)


def test_what_runs_of_a_limited_plugin_is_counted_without_its_jobs_that_have_ended(database_file):
    count = plugin_controls._COUNT_RUNNING.sqlite
    with contextlib.closing(sqlite3.connect(database_file)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {count.text}", count.bind(batch="[]"))]
    assert "SCAN jobs USING INDEX ix_jobs_leased" in plan, plan
