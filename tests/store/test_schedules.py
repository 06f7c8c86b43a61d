"""Firings at the store: one job a tick whoever asks, and the misfire rules to the letter, by a clock that is moved."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service import ticks
from service.db import job_inserts, schedule_firings, schedules
from service.db.database import Database
from service.db.schedule_firings import Firing
from service.db.schedules import NewSchedule, ScheduleKey
from service.db.statements import Statement
from service.db.transaction import RefusedError
from service.errors import ScheduleExistsError, ScheduleNotFoundError, TooManySchedulesError
from service.models import Timestamp, later, timestamp
from service.schedule_models import Misfire, ScheduleOptions, Timing
from tests.store.test_jobs import record
from tests.store.test_writer import new_job


class MovedTransaction:
    """A transaction at another time."""

    def __init__(self, tx, now):
        self._tx = tx
        self._now = now

    async def now(self):
        return self._now

    def __getattr__(self, name):
        return getattr(self._tx, name)


class Clock:
    """Runs operations at a time that stands until it is moved, on any database."""

    def __init__(self, database):
        self.database = database
        self.now = Timestamp("2030-01-01T00:00:00.500Z")

    def tick(self, seconds):
        self.now = later(self.now, seconds)

    async def write(self, operation, item):
        async def at_now(tx, items):
            return await operation(MovedTransaction(tx, self.now), items)

        return await self.database.writer.write(at_now, item)

    async def fire(self, schedule_id, most=ticks.MOST_MADE_UP):
        return await self.write(schedule_firings.fire, Firing(schedule_id=schedule_id, most=most))

    async def create(self, name="s", tenant="default", options=None, **timing):
        new = new_schedule(name, tenant, options, **timing)
        made = await self.write(schedules.insert, new)
        if isinstance(made, Exception):
            raise made
        return made


def new_schedule(name="s", tenant="default", options=None, **timing):
    return NewSchedule(
        id=str(uuid7()),
        tenant=tenant,
        name=name,
        plugin="p",
        timing=Timing(**timing),
        options=options or ScheduleOptions(),
        max_attempts=1,
        payload='{"n":1}',
        blobs=(),
    )


@pytest.fixture
def clock(database):
    return Clock(database)


async def get(database, schedule, tenant="default"):
    return await schedules.get(database.reader, ScheduleKey(id=schedule.id, tenant=tenant))


async def ticks_of(database, schedule):
    """The ticks that have made jobs."""
    statement = Statement(
        sa.text("SELECT scheduled_for FROM jobs WHERE schedule_id = :of AND scheduled_for IS NOT NULL ORDER BY 1")
    )
    return [tick for (tick,) in await database.reader.fetch(statement, of=schedule.id)]


async def test_a_tick_makes_one_job_that_is_the_schedules(database, clock):
    options = ScheduleOptions(
        priority=3, timeout_s=5.0, tags=("nightly",), metadata={"a": 1}, expires_after_s=60.0, max_attempts=1
    )
    schedule = await clock.create(every_s=10, options=options)
    assert (schedule.next_at, schedule.payload) == ("2030-01-01T00:00:10.500Z", {"n": 1})
    assert await clock.fire(schedule.id) is None
    clock.tick(10)
    fired = await clock.fire(schedule.id)
    ((tick, job_id),) = fired.jobs
    job = await record(database, job_id)
    assert (job.plugin, job.payload, job.priority, job.timeout_s) == ("p", {"n": 1}, 3, 5.0)
    assert (job.tags, job.metadata) == (["nightly"], {"a": 1})
    assert (job.created_at, job.run_at, job.expires_at) == (tick, tick, later(tick, 60))
    now = await get(database, schedule)
    assert (now.last_at, now.last_job_id, now.next_at) == (tick, job_id, later(tick, 10))
    assert await clock.fire(schedule.id) is None


async def test_two_that_ask_in_one_transaction_make_one_job(database, clock):
    schedule = await clock.create(every_s=1)
    clock.tick(1)
    outcomes = await asyncio.gather(*(clock.fire(schedule.id) for _ in range(8)))
    assert sum(outcome is not None for outcome in outcomes) == 1
    assert len(await ticks_of(database, schedule)) == 1


async def test_processes_that_fire_at_once_make_one_job_a_tick(postgres_url, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        clocks = [
            Clock(await stack.enter_async_context(Database.open(postgres_url, tmp_path / "b", inline_bytes=1_000)))
            for _ in range(2)
        ]
        made = [await clocks[0].create(f"s{n}", every_s=1) for n in range(5)]
        for _ in range(20):
            for clock in clocks:
                clock.tick(1)
            await asyncio.gather(*(clock.fire(schedule.id) for clock in clocks * 2 for schedule in made))
        for schedule in made:
            assert len(await ticks_of(clocks[0].database, schedule)) == 20


async def test_the_database_makes_a_second_job_of_a_tick_impossible(database):
    tick = timestamp()
    schedule_id = str(uuid7())
    for _ in range(2):
        job = dataclasses.replace(new_job(), schedule_id=schedule_id, scheduled_for=tick)
        outcome = asyncio.ensure_future(database.writer.write(job_inserts.insert, job))
        await asyncio.wait([outcome])
    with pytest.raises(RefusedError):
        outcome.result()


# --- misfires ---


async def test_once_makes_up_the_newest_missed_tick_alone(database, clock):
    schedule = await clock.create(every_s=10)
    clock.tick(57)
    fired = await clock.fire(schedule.id)
    assert [tick for tick, _ in fired.jobs] == ["2030-01-01T00:00:50.500Z"]
    assert (await get(database, schedule)).next_at == "2030-01-01T00:01:00.500Z"


async def test_skip_makes_up_what_is_no_older_than_the_grace(database, clock):
    schedule = await clock.create(every_s=4, misfire=Misfire.SKIP)
    clock.tick(31)
    fired = await clock.fire(schedule.id)
    # Ticks at 4, 8, ... 28 s; 31 s less the grace of 10 s.
    assert [tick for tick, _ in fired.jobs] == ["2030-01-01T00:00:24.500Z", "2030-01-01T00:00:28.500Z"]


async def test_skip_passes_by_what_is_older(database, clock):
    schedule = await clock.create(every_s=3600, misfire=Misfire.SKIP)
    clock.tick(3600 + ticks.SKIP_AFTER_S + 0.001)
    fired = await clock.fire(schedule.id)
    assert fired.jobs == []
    now = await get(database, schedule)
    assert (now.last_at, now.last_job_id, now.next_at) == (None, None, "2030-01-01T02:00:00.500Z")


async def test_all_makes_up_every_tick_up_to_the_cap(database, clock):
    schedule = await clock.create(every_s=10, misfire=Misfire.ALL)
    clock.tick(57)
    assert len((await clock.fire(schedule.id)).jobs) == 5
    clock.tick(10 * (ticks.MOST_MADE_UP + 50))
    fired = await clock.fire(schedule.id)
    assert len(fired.jobs) == ticks.MOST_MADE_UP
    made = await ticks_of(database, schedule)
    assert len(made) == 5 + ticks.MOST_MADE_UP
    assert made[-1] == "2030-01-01T00:25:50.500Z"
    now = await get(database, schedule)
    assert (now.last_at, now.next_at) == (made[-1], later(made[-1], 10))


async def test_what_a_firing_leaves_is_due_still(database, clock):
    schedule = await clock.create(every_s=10, misfire=Misfire.ALL)
    clock.tick(57)
    assert len((await clock.fire(schedule.id, most=2)).jobs) == 2
    now = await get(database, schedule)
    assert (now.last_at, now.next_at) == ((await ticks_of(database, schedule))[-1], later(schedule.next_at, 20))
    assert len((await clock.fire(schedule.id)).jobs) == 3
    assert await ticks_of(database, schedule) == [later(schedule.next_at, 10 * number) for number in range(5)]


async def test_a_schedule_that_has_ended_ticks_no_more(database, clock):
    schedule = await clock.create(every_s=10, misfire=Misfire.ALL, ends_at=later(clock.now, 25))
    clock.tick(1000)
    assert len((await clock.fire(schedule.id)).jobs) == 2
    assert (await get(database, schedule)).next_at is None
    assert await clock.fire(schedule.id) is None


# --- what people do ---


async def test_a_paused_schedule_does_not_tick_and_makes_nothing_up(database, clock):
    schedule = await clock.create(every_s=10, misfire=Misfire.ALL)
    key = ScheduleKey(id=schedule.id, tenant="default")
    assert (await clock.write(schedules.pause, key)).next_at is None
    clock.tick(57)
    assert await clock.fire(schedule.id) is None
    resumed = await clock.write(schedules.resume, key)
    assert (resumed.paused, resumed.next_at) == (False, "2030-01-01T00:01:00.500Z")
    clock.tick(3600)
    assert (await clock.write(schedules.resume, key)).next_at == "2030-01-01T00:01:00.500Z"


async def test_a_clock_that_is_put_back_does_not_bring_a_tick_back(database, clock):
    schedule = await clock.create(every_s=10)
    clock.tick(10)
    await clock.fire(schedule.id)
    clock.tick(-8)
    key = ScheduleKey(id=schedule.id, tenant="default")
    await clock.write(schedules.pause, key)
    assert (await clock.write(schedules.resume, key)).next_at == "2030-01-01T00:00:20.500Z"


async def test_what_is_replaced_ticks_by_its_new_timing(database, clock):
    schedule = await clock.create(every_s=10)
    clock.tick(57)
    other = dataclasses.replace(new_schedule("new name", cron="0 3 * * *"), id=schedule.id)
    replaced = await clock.write(schedules.replace, other)
    assert (replaced.name, replaced.next_at, replaced.created_at) == (
        "new name",
        "2030-01-01T03:00:00.000Z",
        schedule.created_at,
    )


async def test_a_job_can_be_had_beside_the_ticks(database, clock):
    schedule = await clock.create(every_s=10, options=ScheduleOptions(expires_after_s=5.0))
    job = await clock.write(schedule_firings.run_now, ScheduleKey(id=schedule.id, tenant="default"))
    assert (await record(database, job.id)).expires_at == later(clock.now, 5)
    assert await ticks_of(database, schedule) == []
    assert (await get(database, schedule)).next_at == schedule.next_at


async def test_names_are_a_tenants_own_and_unique(database, clock):
    schedule = await clock.create("s", every_s=1)
    other = await clock.create("t", every_s=1)
    await clock.create("s", "acme", every_s=1)
    with pytest.raises(ScheduleExistsError):
        await clock.create("s", every_s=1)
    renamed = dataclasses.replace(new_schedule("s", every_s=1), id=other.id)
    assert isinstance(await clock.write(schedules.replace, renamed), ScheduleExistsError)
    assert [one.id for one in await schedules.list_all(database.reader, "default")] == [schedule.id, other.id]


async def test_a_schedule_of_another_tenant_is_none(database, clock):
    schedule = await clock.create(every_s=1)
    foreign = ScheduleKey(id=schedule.id, tenant="acme")
    assert await get(database, schedule, "acme") is None
    assert await schedules.list_all(database.reader, "acme") == []
    for operation in (schedules.pause, schedules.resume, schedule_firings.run_now):
        assert await clock.write(operation, foreign) is None
    assert await clock.write(schedules.delete, foreign) is False
    stolen = dataclasses.replace(new_schedule(tenant="acme", every_s=9), id=schedule.id)
    assert isinstance(await clock.write(schedules.replace, stolen), ScheduleNotFoundError)
    assert await get(database, schedule) == schedule


async def test_a_tenant_has_a_limit_of_schedules(database, clock, monkeypatch):
    monkeypatch.setattr(schedules, "MOST_OF_TENANT", 2)
    for name in ("a", "b"):
        await clock.create(name, every_s=1)
    with pytest.raises(TooManySchedulesError):
        await clock.create("c", every_s=1)
    await clock.create("c", "acme", every_s=1)


async def test_a_look_goes_page_by_page_and_tells_how_long_to_wait(database, clock, monkeypatch):
    for n in range(5):
        await clock.create(f"s{n}", every_s=10)
    await clock.create("later", every_s=60)
    look = await clock.write(schedule_firings.look, None)
    assert (look.due, look.wait_s, look.behind) == ([], 10.0, None)
    clock.tick(12)
    look = await clock.write(schedule_firings.look, None)
    assert sorted(schedule.name for schedule in look.due) == ["s0", "s1", "s2", "s3", "s4"]
    assert look.wait_s == 48.0
    behind = (look.due[1].next_at, look.due[1].id)
    rest = await clock.write(schedule_firings.look, behind)
    assert [schedule.id for schedule in rest.due] == [schedule.id for schedule in look.due[2:]]


@pytest.mark.parametrize(
    "change",
    [
        "cron = '* * * * *'",  # both
        "every_s = NULL",  # neither
        "every_s = 0",
        "misfire = 'never'",
        "paused = true",  # and has a next tick
        "last_at = next_at, last_job_id = id",
        "last_job_id = id",
        "ends_at = '2000-01-01T00:00:00.000Z'",
        "name = ''",
    ],
)
async def test_the_database_refuses_what_makes_no_sense(database, clock, change):
    await clock.create(every_s=10)

    async def write(tx, items):
        return [await tx.fetch(Statement(sa.text(f"UPDATE schedules SET {change}")))]

    with pytest.raises(RefusedError):
        await database.writer.write(write, None)
