"""Rates and full queues: what is too much is refused with the time to come back, and nothing else is."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access import Rate, Role
from service.api.access import _Bucket
from service.db import job_queries, queue_depth
from service.db.database import Database
from service.db.statements import Statement
from service.errors import QueueFullError
from service.queue_limits import Depth, Limits, QueueLimits
from tests.store.test_jobs import claim, insert
from tests.store.test_writer import new_job

from .conftest import FAR, Answer, Guarded, Start, eventually

GAPS = st.lists(st.floats(0, 10), max_size=200)


@given(per_s=st.floats(0.01, 1000), burst=st.integers(1, 50), gaps=GAPS)
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(per_s: float, burst: int, gaps: list[float]) -> None:
    now, given_out = 0.0, 0
    bucket = _Bucket(Rate(per_s=per_s, burst=burst), now)
    for gap in gaps:
        now += gap
        wait_s = bucket.take(now)
        given_out += wait_s == 0
        assert given_out <= burst + per_s * now + 1e-6
        if wait_s > 0:
            # Whoever waits as long as told gets one.
            now += wait_s + 1e-9
            assert bucket.take(now) == pytest.approx(0, abs=1e-6)
            given_out += 1


async def test_too_many_requests_are_told_when_to_come_back_and_cost_others_nothing(guarded: Guarded) -> None:
    slow = await guarded.key("acme", rate=Rate(per_s=0.001, burst=2))
    other = await guarded.key("acme")
    answers = [await guarded.request("GET", "/v1/plugins", slow) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["RateLimit"].split(";")[1] for answer in answers] == ["r=1", "r=0", "r=0"]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"key";q=2;w=2000'}
    assert 900 < int(answers[2].headers["Retry-After"]) <= 1000
    assert answers[2].json()["type"] == "/problems/rate-limited"
    unlimited = await guarded.request("GET", "/v1/plugins", other)
    assert unlimited.status == 200
    assert "RateLimit" not in unlimited.headers
    assert (await guarded.request("GET", "/livez", slow)).status == 200


async def test_the_rate_of_the_service_holds_for_whoever_has_none_of_their_own(start: Start) -> None:
    async with start(rate_per_s=0.001, rate_burst=1) as running:
        assert [(await running.request("GET", "/v1/jobs")).status for _ in range(2)] == [200, 429]
        own = await running.key("acme", rate=Rate(per_s=0.001, burst=3))
        assert [(await running.request("GET", "/v1/jobs", own)).status for _ in range(4)] == [200, 200, 200, 429]


async def test_a_full_queue_refuses_until_there_is_room(start: Start) -> None:
    async with start(max_queued=3) as running:
        key = await running.key("acme")
        made = []

        async def is_made() -> bool:
            answer = await running.submit(key, **FAR)
            made.extend([answer] if answer.status == 202 else [])
            return answer.status == 202

        for _ in range(3):
            await eventually(is_made)  # a job recorded during a count may count twice until the next
        refused = await running.submit(key, **FAR)
        assert refused.status == 429
        assert refused.json()["type"] == "/problems/queue-full"
        assert "3 may" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        await running.request("POST", f"/v1/jobs/{made[0].json()['id']}/cancel", key)

        async def is_taken() -> bool:
            return (await running.submit(key, **FAR)).status == 202

        await eventually(is_taken)


async def test_more_at_once_than_may_ever_wait_is_not_asked_to_come_again(start: Start) -> None:
    async with start(max_queued=5, max_queued_per_tenant=4, max_queued_per_plugin=3) as running:
        key = await running.key("acme")

        async def send(*plugins: str) -> Answer:
            return await running.request(
                "POST", "/v1/jobs/batch", key, json=[{"plugin": plugin, "payload": {}, **FAR} for plugin in plugins]
            )

        refused = [await send(*["echo"] * 3, *["sleep"] * 3), await send(*["echo"] * 3, *["sleep"] * 2),
                   await send(*["echo"] * 4)]  # fmt: skip
        assert [answer.status for answer in refused] == [429] * 3
        assert [answer.json()["detail"] for answer in refused] == [
            "These are 6 jobs in all, and 5 may wait: send fewer at once.",
            "These are 5 jobs of this tenant, and 4 may wait: send fewer at once.",
            "These are 4 jobs of plugin 'echo', and 3 may wait: send fewer at once.",
        ]
        assert not any("Retry-After" in answer.headers for answer in refused)
        await running.keys.set_quota("acme", 5)

        async def is_taken() -> bool:
            return (await send(*["echo"] * 3, *["sleep"] * 2)).status == 202

        await eventually(is_taken)
        full = await send("sleep")
        assert full.status == 429
        assert "Retry-After" in full.headers


async def test_a_tenant_and_a_plugin_have_limits_of_their_own(start: Start) -> None:
    async with start(max_queued_per_tenant=2, max_queued_per_plugin=3) as running:
        acme, globex = await running.key("acme"), await running.key("globex")
        assert [(await running.submit(acme, **FAR)).status for _ in range(3)] == [202, 202, 429]

        async def is_taken() -> bool:
            return (await running.submit(globex, **FAR)).status == 202

        await eventually(is_taken)  # a job recorded during a count may count twice until the next
        assert (await running.submit(globex, **FAR)).status == 429
        assert (await running.submit(globex, "sleep", {"seconds": 0}, **FAR)).status == 202


async def test_a_quota_of_a_tenant_counts_more_than_the_setting(start: Start) -> None:
    async with start(max_queued_per_tenant=1) as running:
        acme, globex = await running.key("acme"), await running.key("globex")
        await running.keys.set_quota("acme", 2)

        assert (await running.submit(acme, **FAR)).status == 202

        async def is_taken() -> bool:
            return (await running.submit(acme, **FAR)).status == 202

        await eventually(is_taken)
        assert (await running.submit(acme, **FAR)).status == 429
        assert [(await running.submit(globex, **FAR)).status for _ in range(2)] == [202, 429]


async def test_processes_on_one_database_see_each_others_jobs(start: Start, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        return  # one file takes one service
    async with start(max_queued=3) as first, start(max_queued=3) as second:
        key = await first.key("acme", Role.SUBMIT)

        async def is_taken() -> bool:
            return (await first.submit(key, **FAR)).status == 202

        for _ in range(3):
            await eventually(is_taken)  # a count under way may take the last one twice for a moment
        assert (await first.submit(key, **FAR)).status == 429

        async def is_full() -> bool:
            return (await second.submit(key, **FAR)).status == 429

        await eventually(is_full)


async def test_jobs_recorded_while_others_are_counted_are_not_forgotten() -> None:
    counts = 0

    async def count(each: bool) -> Depth:
        nonlocal counts
        counts += 1
        if counts > 1:
            return Depth(total=2)
        with limits.room_for("acme", "echo"):  # recorded behind the back of the count
            return Depth(total=1)

    limits = QueueLimits(Limits(total=3), count)
    with limits.room_for("acme", "echo"):
        pass
    with limits.room_for("acme", "echo"):  # the count may not have seen it
        await limits.refresh()
        with pytest.raises(QueueFullError, match="3 jobs in all wait"), limits.room_for("acme", "echo"):
            pass
    assert counts == 2  # nobody knows whether the first one has the job that came meanwhile


async def test_jobs_that_start_make_room_though_none_come(database: Database) -> None:
    counted, emptied = asyncio.Event(), asyncio.Event()

    async def count(each: bool) -> Depth:
        depth = await queue_depth.load(database.reader, each=each)
        (counted if depth.total else emptied).set()
        return depth

    limits = QueueLimits(Limits(total=2), count)
    keeping = asyncio.create_task(limits.keep())
    try:
        with limits.room_for("acme", "p", 2):
            await insert(database, new_job(), new_job())
        await counted.wait()
        emptied.clear()
        await claim(database)
        async with asyncio.timeout(10):
            await emptied.wait()  # nobody asks, and nobody says that they have started
        with limits.room_for("acme", "p", 2):
            pass
    finally:
        keeping.cancel()


async def test_a_job_that_was_not_recorded_takes_no_room() -> None:
    async def count(each: bool) -> Depth:
        return Depth()

    limits = QueueLimits(Limits(per_plugin=1), count)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.room_for("acme", "echo"):
            raise ZeroDivisionError
    with limits.room_for("acme", "echo"):
        pass


@pytest.mark.parametrize(
    ("statement", "indexes"),
    [
        (queue_depth._COUNT, {"ix_jobs_claimable", "ix_jobs_scheduled"}),
        (queue_depth._COUNT_EACH, {"ix_jobs_claimable", "ix_jobs_scheduled"}),
        (job_queries._list_statement(None, frozenset({"after"}), of_default=False), {"ix_jobs_tenant"}),
    ],
)
def test_neither_counting_nor_a_tenants_list_reads_the_jobs_of_others(
    migrated_file: Path, statement: Statement, indexes: set[str]
) -> None:
    compiled = statement.sqlite
    known = {"of_tenant": "a", "after": "z", "limit": 9}
    values = compiled.bind(**{name: known[name] for name in compiled.names if name in known})
    with sqlite3.connect(f"file:{migrated_file}?mode=ro", uri=True) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {compiled.text}", values)]
    connection.close()
    steps = [step for step in plan if " jobs" in step]
    assert {index for index in indexes for step in steps if f"INDEX {index}" in step} == indexes, plan
    assert all("INDEX" in step for step in steps), plan
