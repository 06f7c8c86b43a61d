"""What only a server does: it goes away, it is shared, and it wakes others up."""

from __future__ import annotations

import asyncio
import contextlib
import re

import asyncpg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

from service.db import job_inserts, job_removals, job_retries, wake_ups
from service.db.database import Database
from service.db.engine import DatabaseKind, database_kind
from service.db.job_removals import Removal
from service.db.job_retries import Retry
from service.db.migrate import upgrade
from service.db.postgresql import PostgresqlBackend
from service.db.statements import Statement
from service.errors import ServiceUnavailableError, StartupError
from service.events import EventBus
from service.models import JobStatus, timestamp
from tests.conftest import driver_url
from tests.store.test_jobs import claim, end, insert, record
from tests.store.test_writer import all_ids, new_job

#: How many in this database wait for a lock. Who is there is read once in a transaction, its locks each time.
_WAITING = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted"
    " AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
)


@pytest.fixture
async def admin(postgres_url):
    """A connection of somebody else."""
    connection = await asyncpg.connect(driver_url(postgres_url))
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def opened(url, tmp_path):
    async with Database.open(url, tmp_path / "blobs", inline_bytes=1_000) as database:
        yield database


@pytest.fixture
async def shared(postgres_url, tmp_path):
    """Two processes' views of one database."""
    async with opened(postgres_url, tmp_path) as one, opened(postgres_url, tmp_path) as other:
        yield one, other


async def cut_all(admin):
    """End every connection but the administrator's."""
    await admin.fetch(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_writers_and_readers_come_back_after_their_connections_were_cut(shared, admin):
    database, _ = shared
    made = []
    for _ in range(3):
        made += await insert(database, new_job())
        assert await all_ids(database) == set(made)
        await cut_all(admin)


async def test_cuts_in_the_middle_lose_nothing_that_was_acknowledged(shared, admin):
    acknowledged, refused = set(), set()

    async def submit(database):
        for _ in range(30):
            is_acknowledged = False
            while not is_acknowledged:
                job = new_job()
                try:
                    await database.writer.write(job_inserts.insert, job)
                    acknowledged.add(job.id)
                    is_acknowledged = True
                except ServiceUnavailableError:
                    refused.add(job.id)
                    await asyncio.sleep(0.01)  # a database known to be away refuses at once

    submitting = [asyncio.create_task(submit(database)) for database in shared for _ in range(4)]
    while not all(task.done() for task in submitting):
        before = len(acknowledged)
        await cut_all(admin)
        while len(acknowledged) == before and not all(task.done() for task in submitting):
            await asyncio.sleep(0)
    await asyncio.gather(*submitting)
    stored = await all_ids(shared[0])
    assert acknowledged <= stored <= acknowledged | refused
    assert len(acknowledged) == 240


async def statements_of(database, operation, item):
    """What the writer's connection was told to make a transaction of an operation."""
    told = []

    async def logged(tx, items):
        tx._connection.add_query_logger(lambda query: told.append(query.query))
        return await operation(tx, items)

    await database.writer.write(logged, item)
    return told


async def test_a_submission_is_one_statement_and_what_must_look_first_is_a_transaction(shared):
    tagged = new_job(tags=("a",))
    (statement,) = await statements_of(shared[0], job_inserts.insert, tagged)
    assert [statement.count(f"INSERT INTO {table} ") for table in ("jobs", "job_events", "job_tags")] == [1, 1, 1]
    keyed = await statements_of(shared[1], job_inserts.insert, new_job(key="k"))
    assert (keyed[0], keyed[-1]) == ("BEGIN", "COMMIT")
    assert len(await all_ids(shared[0])) == 2


@contextlib.asynccontextmanager
async def cut_while_it_waits(admin):
    """Nothing is inserted meanwhile; at the end, whoever waits for that is cut off."""
    async with admin.transaction():
        await admin.execute("LOCK TABLE jobs IN SHARE MODE")
        yield
        while not await admin.fetchval(_WAITING):
            await admin.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
        await cut_all(admin)


async def test_a_submission_whose_connection_is_lost_is_in_doubt(shared, admin):
    async with cut_while_it_waits(admin):
        inserting = asyncio.create_task(insert(shared[0], new_job()))
    with pytest.raises(ServiceUnavailableError, match="whether this was stored is not known"):
        await inserting
    assert await all_ids(shared[1]) == set()


async def test_a_transaction_whose_connection_is_lost_before_its_commit_is_begun_anew(shared, admin):
    async with cut_while_it_waits(admin):
        inserting = asyncio.create_task(insert(shared[0], new_job(key="k")))
    made = await inserting
    assert await all_ids(shared[1]) == set(made)


async def test_a_transaction_that_is_cancelled_as_it_begins_is_not_left_open(postgres_url, shared):
    job = new_job()
    async with PostgresqlBackend(postgres_url).writing() as connection:
        await connection.probe()
        beginning = asyncio.create_task(connection.transact(lambda tx: tx.now()))
        await asyncio.sleep(0)  # now it has sent `BEGIN`
        beginning.cancel()
        await asyncio.wait([beginning])
        assert beginning.cancelled()
        await connection.transact(lambda tx: job_inserts.insert(tx, [job]))
    assert await all_ids(shared[0]) == {job.id}


async def cancel_sleep(admin):
    """Cancel what sleeps in this database, as a server does with a statement that takes too long."""
    while not await admin.fetchval(
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND wait_event = 'PgSleep'"
    ):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("side", ["reader", "writer"])
async def test_a_statement_that_takes_too_long_is_given_up_and_nothing_else(shared, admin, side):
    database, _ = shared
    sleep = Statement(sa.text("SELECT 1 FROM pg_sleep(60)"))

    async def operation(tx, items):
        return await tx.fetch(sleep)

    asked = database.reader.fetch(sleep) if side == "reader" else database.writer.write(operation, None)
    sleeping = asyncio.create_task(asked)
    await cancel_sleep(admin)
    async with asyncio.timeout(10):  # it is not begun anew, to take as long again
        with pytest.raises(ServiceUnavailableError, match="canceling statement due to user request"):
            await sleeping
    made = await insert(database, new_job())  # nor is the database taken for away
    assert await all_ids(database) == set(made)


async def once_available(ask):
    """The answer, as soon as there is one."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except ServiceUnavailableError:
                await asyncio.sleep(0.02)


async def test_a_server_that_takes_no_connections_is_unavailable_and_heals(postgres_url, tmp_path, admin, postgres):
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    async with opened(postgres_url, tmp_path) as database:
        await insert(database, new_job())
        server = await asyncpg.connect(driver_url(postgres.url("postgres")))
        try:
            await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await cut_all(admin)
            with pytest.raises(ServiceUnavailableError, match="reached"):
                await insert(database, new_job())
            with pytest.raises(ServiceUnavailableError, match="reached"):
                await all_ids(database)
            await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        finally:
            await server.close()
        await once_available(lambda: insert(database, new_job()))
        assert len(await once_available(lambda: all_ids(database))) == 2


async def test_a_server_that_takes_no_writes_is_unavailable_and_heals(postgres_url, tmp_path, admin, postgres):
    """A session stays read-only that began so, as one to a standby does when its name leads to the new server."""
    name = sa.make_url(postgres_url).database
    async with opened(postgres_url, tmp_path) as database:
        await insert(database, new_job())
        server = await asyncpg.connect(driver_url(postgres.url("postgres")))
        try:
            await server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            await cut_all(admin)
            with pytest.raises(ServiceUnavailableError, match="read-only"):
                await insert(database, new_job())
            assert len(await all_ids(database)) == 1
            await server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        finally:
            await server.close()
        async with asyncio.timeout(20):
            await once_available(lambda: insert(database, new_job()))


async def test_processes_that_claim_at_once_share_the_jobs(shared):
    ids = await insert(shared[0], *(new_job() for _ in range(200)))
    turns = (claim(shared[n % 2], 7, owner=str(uuid7())) for n in range(40))
    claimed = [job.id for jobs in await asyncio.gather(*turns) for job in jobs]
    claimed += [job.id for job in await claim(shared[0], 200)]
    assert sorted(claimed) == sorted(ids)


async def test_a_row_that_another_process_is_claiming_is_passed_over(shared, admin):
    first, second = await insert(shared[0], new_job(priority=1), new_job())
    async with admin.transaction():
        await admin.fetch("SELECT 1 FROM jobs WHERE id = $1 FOR UPDATE", first)
        assert [job.id for job in await claim(shared[1], 1)] == [second]
    assert [job.id for job in await claim(shared[1], 1)] == [first]


async def test_a_key_makes_one_job_however_many_processes_ask(shared):
    asked = await asyncio.gather(*(shared[n % 2].writer.write(job_inserts.insert, new_job(key="k")) for n in range(64)))
    assert len({inserted.id for inserted in asked}) == 1
    assert sum(not inserted.replayed for inserted in asked) == 1


async def test_processes_that_end_jobs_of_the_same_plugins_never_block_each_other(shared):
    await insert(shared[0], *(new_job(plugin) for plugin in ("a", "b", "c") * 20))
    halves = [await claim(database, 30) for database in shared]
    ended = await asyncio.gather(
        *(end(database, job) for database, half in zip(shared, halves, strict=True) for job in half)
    )
    assert ended == [JobStatus.SUCCESS] * 60


async def delete(database, job_id):
    return await database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=[job_id]))


async def test_processes_that_delete_beside_what_else_they_write_never_block_each_other(shared, admin):
    one, other = shared
    doomed = await insert(one, new_job(), new_job())
    for job in await claim(one):
        await end(one, job)
    await insert(one, new_job(), new_job())
    first, second = await claim(one)

    async def waiting():
        return await admin.fetchval(_WAITING)

    with capture_logs() as logs:
        async with admin.transaction():
            await admin.fetch("SELECT 1 FROM jobs WHERE id = $1 FOR UPDATE", doomed[0])
            # What was asked for at once would share a transaction, in this order.
            ones = asyncio.gather(end(one, first), delete(one, doomed[0]))
            while not await waiting():
                await asyncio.sleep(0.01)
            others = asyncio.gather(delete(other, doomed[1]), end(other, second))
            while await waiting() < 2 and not others.done():
                await asyncio.sleep(0.01)
        assert await ones == [JobStatus.SUCCESS, {doomed[0]}]
        assert await others == [{doomed[1]}, JobStatus.SUCCESS]
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == []


async def test_a_retry_beside_a_deletion_of_its_parent_is_whole(shared, admin):
    one, _ = shared
    (parent_id,) = await insert(one, new_job(tags=("a", "b")))
    (job,) = await claim(one)
    await end(one, job)
    deleting = []

    class Beside:
        """A transaction beside which somebody else deletes the parent as soon as the new job is there."""

        def __init__(self, tx):
            self._tx, self.now = tx, tx.now

        async def fetch(self, statement, **values):
            rows = await self._tx.fetch(statement, **values)
            if statement is job_retries._RETRY:
                deletion = asyncio.create_task(admin.execute("DELETE FROM jobs WHERE id = $1", parent_id))
                while not deletion.done() and await self._tx.fetch(Statement(sa.text(_WAITING))) == [(0,)]:
                    await asyncio.sleep(0.01)
                deleting.append(deletion)
            return rows

        def __getattr__(self, name):
            return getattr(self._tx, name)

    async def retry_beside(tx, items):
        return await job_retries.retry(Beside(tx), items)

    again = Retry(id=str(uuid7()), parent_id=parent_id, tenant="default", created_at=timestamp())
    made = await one.writer.write(retry_beside, again)
    await deleting[0]
    assert (made.id, made.replayed) == (again.id, False)
    assert sorted(tag for (tag,) in await admin.fetch("SELECT tag FROM job_tags")) == ["a", "b"]
    assert await all_ids(one) == {again.id}


async def test_a_retry_beside_a_deletion_of_what_its_key_had_made_makes_it_anew(shared, admin):
    one, _ = shared
    (parent_id,) = await insert(one, new_job())
    (job,) = await claim(one)
    await end(one, job)

    class Beside:
        """A transaction beside which the job is deleted that was in the way, before it is read."""

        def __init__(self, tx):
            self._tx, self.now, self.insert = tx, tx.now, tx.insert

        async def fetch(self, statement, **values):
            rows = await self._tx.fetch(statement, **values)
            if statement is job_retries._RETRY:
                await admin.execute("DELETE FROM jobs WHERE idempotency_key = 'k'")
            return rows

    async def retry_beside(tx, items):
        return await job_retries.retry(Beside(tx), items)

    def again():
        key = {"idempotency_key": "k", "request_hash": "hash"}
        return Retry(id=str(uuid7()), parent_id=parent_id, tenant="default", created_at=timestamp(), **key)

    await one.writer.write(job_retries.retry, again())
    second = again()
    made = await one.writer.write(retry_beside, second)
    assert made is not None
    assert (made.id, made.replayed) == (second.id, False)
    assert await all_ids(one) == {parent_id, second.id}


async def test_times_and_ids_read_as_they_were_written(shared):
    job = new_job(run_at="2031-02-03T04:05:06.070Z", expires_at="2031-02-03T04:05:07.000Z")
    await insert(shared[0], job)
    stored = await record(shared[1], job.id)
    assert (stored.id, stored.created_at, stored.run_at, stored.expires_at) == (
        job.id,
        job.created_at,
        "2031-02-03T04:05:06.070Z",
        "2031-02-03T04:05:07.000Z",
    )
    assert stored.status is JobStatus.PENDING


async def test_other_processes_are_woken_and_so_they_are_after_a_cut(shared, admin):
    here, there = EventBus(), EventBus()
    relays = [asyncio.create_task(database.relay(bus)) for database, bus in zip(shared, (here, there), strict=True)]
    job_id = str(uuid7())
    try:
        for _ in range(2):
            with there.watch(job_id) as changed:
                async with asyncio.timeout(30):
                    while not (changed.is_set() and there.work.is_set()):
                        here.job_changed(job_id)
                        here.work_arrived()
                        await asyncio.sleep(0.01)
            await cut_all(admin)
            there.work.clear()
    finally:
        for relay in relays:
            relay.cancel()
        await asyncio.wait(relays)


async def test_that_there_are_no_wake_ups_is_told_once_an_outage(postgres_url, tmp_path, admin, postgres, monkeypatch):
    monkeypatch.setattr(wake_ups, "_PAUSE_S", 0.02)
    name = sa.make_url(postgres_url).database
    server = await asyncpg.connect(driver_url(postgres.url("postgres")))

    async def line_is_logged(words):
        async with asyncio.timeout(20):
            while not any(words in line["event"] for line in lines):
                await asyncio.sleep(0.02)

    try:
        async with opened(postgres_url, tmp_path) as database:
            with capture_logs() as lines:
                relay = asyncio.create_task(database.relay(EventBus()))
                for _ in range(2):
                    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                    await cut_all(admin)
                    await line_is_logged("no wake-ups")
                    await asyncio.sleep(0.5)  # many tries
                    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                    await line_is_logged("wake-ups from other processes again")
                    assert [line["log_level"] for line in lines if "wake-ups" in line["event"]] == ["warning", "info"]
                    lines.clear()
                relay.cancel()
                await asyncio.wait([relay])
    finally:
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await server.close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///x.db", DatabaseKind.SQLITE),
        ("sqlite+aiosqlite:///x.db", DatabaseKind.SQLITE),
        ("postgresql://host/db", DatabaseKind.POSTGRESQL),
        ("postgresql+asyncpg://host/db", DatabaseKind.POSTGRESQL),
    ],
)
def test_a_url_says_which_database(url, kind):
    assert database_kind(url) is kind


async def test_a_url_may_say_sslmode_as_it_does_elsewhere(postgres_url, tmp_path):
    url = sa.make_url(postgres_url).update_query_dict({"sslmode": "prefer"}).render_as_string(hide_password=False)
    await upgrade(url)
    async with opened(url, tmp_path) as database:
        assert await all_ids(database) == set()


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("user:s3cret@host:port/db", "from 1 to 65535"),
        ("user:s3cret@host:70000/db", "from 1 to 65535"),
        ("user:s3cret@/db?host=one:1&host=other", "for each host"),
        ("user:s3cret@host/db?port=s3", "from 1 to 65535"),
        ("user:s@3cret@host/db", "as %40"),
        ("user:s@3:cret@host/db", "as %40"),
        ("user:s@3/cret@host/db", "as %40"),
        ("user:s3cret@host/db?colour=s3cret", "parameter 'colour'"),
        ("user:s3cret@127.0.0.1:9/db?sslmode=s3cret", "sslmode.* must be one of"),
    ],
)
async def test_what_is_wrong_in_a_url_is_said_without_the_password(rest, told):
    with pytest.raises(StartupError, match=told) as refused:
        await upgrade(f"postgresql+asyncpg://{rest}")
    assert not re.search("s3|cret|user:", str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "postgresql+psycopg2://user:s3cret@host/db", "mysql://user:x@s3cret@host/db", "no url"]
)
def test_other_databases_are_refused_in_one_line_without_the_password(url):
    with pytest.raises(StartupError, match=r"postgresql\+asyncpg|%40") as refused:
        database_kind(url)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)
