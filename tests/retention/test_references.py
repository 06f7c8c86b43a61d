"""Bytes live for as long as anybody names them, and not longer, whoever comes and goes at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import time

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command
from uuid_utils.compat import uuid7

from service.db import job_inserts, job_removals, job_retries, pruning, schedule_firings, schedules
from service.db.blob_files import BlobFiles
from service.db.blob_references import mentions_bytes
from service.db.database import Database
from service.db.job_removals import Overdue, Removal
from service.db.job_retries import Retry
from service.db.migrate import alembic_config, upgrade
from service.db.pruning import OverdueParts
from service.db.schedules import ScheduleKey
from service.db.statements import Statement
from service.documents import Documents
from service.errors import BytesGoneError
from service.models import Artifact, BlobRef, JobPart, timestamp
from tests.conftest import driver_url, sql
from tests.store.test_jobs import claim, end
from tests.store.test_schedules import new_schedule
from tests.store.test_writer import new_job

SMALL, LARGE = b"s" * 100, b"l" * 5_000


async def job_with(database, *values, key=None, plugin="p"):
    """A new job whose payload holds `values`."""
    job = new_job(plugin, key=key)
    job.payload, _, job.blobs = await Documents(database.blobs).store({"values": list(values)})
    return job


async def made(database, *values, **more):
    job = await job_with(database, *values, **more)
    return (await database.writer.write(job_inserts.insert, job)).id


async def ended(database, *values, result=None, artifact=None):
    """The id of a job that has ended, with bytes in its payload, its result, and a file."""
    job_id = await made(database, *values)
    documents = Documents(database.blobs)
    text, _, blobs = await documents.store({} if result is None else {"result": result})
    files = [] if artifact is None else [Artifact(name="a", data=artifact, media_type="text/plain")]
    artifacts, more = await documents.store_artifacts(files)
    (job,) = await claim(database)
    assert job.id == job_id
    assert await end(database, job, result=text, artifacts=artifacts, blobs=[*blobs, *more])
    return job_id


async def delete(database, *job_ids):
    return await database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=job_ids))


async def release(database, job_id, part):
    return await database.writer.write(pruning.release, OverdueParts(parts=[(job_id, part)], kept_s=-60))


def ref(value):
    return BlobRef(sha256=hashlib.sha256(value).hexdigest(), size=len(value))


async def kept(database):
    """The hashes of the bytes that the database knows, and of the files that are to go."""
    rows = await database.reader.fetch(Statement(sa.text("SELECT sha256 FROM blobs")))
    files = await database.reader.fetch(Statement(sa.text("SELECT sha256 FROM blob_removals")))
    return {sha256 for (sha256,) in rows}, {sha256 for (sha256,) in files}


def hashes(*values):
    return {ref(value).sha256 for value in values}


async def test_deleting_a_job_takes_its_bytes_along_except_those_that_others_name(database):
    first = await ended(database, SMALL, LARGE, result=b"r" * 2_000, artifact=b"a" * 50)
    await made(database, LARGE)
    assert await kept(database) == (hashes(SMALL, LARGE, b"r" * 2_000, b"a" * 50), set())
    assert await delete(database, first) == {first}
    assert await kept(database) == (hashes(LARGE), hashes(b"r" * 2_000))


async def test_the_last_of_two_jobs_takes_the_bytes_along_even_when_both_go_at_once(database):
    both = [await ended(database, LARGE), await ended(database, LARGE)]
    await delete(database, *both)
    assert await kept(database) == (set(), hashes(LARGE))


async def test_a_schedule_keeps_its_bytes_whatever_becomes_of_its_jobs(database):
    new = new_schedule(cron="* * * * *", timezone="UTC", misfire="skip", starts_at=None, ends_at=None, every_s=None)
    payload, _, blobs = await Documents(database.blobs).store({"image": LARGE})
    schedule = await database.writer.write(schedules.insert, dataclasses.replace(new, payload=payload, blobs=blobs))
    key = ScheduleKey(id=schedule.id, tenant="default")
    job = await database.writer.write(schedule_firings.run_now, key)
    (run,) = await claim(database)
    assert await end(database, run)
    assert await database.blobs.read_of_job(job.id, JobPart.PAYLOAD, ref(LARGE)) == LARGE
    await delete(database, job.id)
    assert await kept(database) == (hashes(LARGE), set())
    second = await database.writer.write(schedule_firings.run_now, key)
    assert await database.writer.write(schedules.delete, key)
    assert await database.blobs.read_of_job(second.id, JobPart.PAYLOAD, ref(LARGE)) == LARGE
    (run,) = await claim(database)
    await end(database, run)
    await delete(database, second.id)
    assert await kept(database) == (set(), hashes(LARGE))


async def test_a_schedule_that_is_replaced_lets_go_of_what_it_named(database):
    timing = {"cron": "* * * * *", "timezone": "UTC", "misfire": "skip", "starts_at": None, "ends_at": None}
    first = new_schedule(every_s=None, **timing)
    documents = Documents(database.blobs)
    payload, _, blobs = await documents.store({"a": SMALL, "b": LARGE})
    await database.writer.write(schedules.insert, dataclasses.replace(first, payload=payload, blobs=blobs))
    payload, _, blobs = await documents.store({"b": LARGE})
    await database.writer.write(schedules.replace, dataclasses.replace(first, payload=payload, blobs=blobs))
    assert await kept(database) == (hashes(LARGE), set())


async def test_requests_that_make_nothing_leave_nothing(database):
    """A key that was used, an outcome that comes too late: their bytes are nobody's."""
    await made(database, SMALL, key="k")
    await made(database, b"other", key="k")
    (job,) = await claim(database)
    assert await end(database, job)
    _, _, blobs = await Documents(database.blobs).store({"late": b"late"})
    assert not await end(database, job, blobs=blobs)
    assert await kept(database) == (hashes(SMALL), set())


async def test_a_retry_names_what_its_parent_names_and_is_refused_when_that_is_gone(database):
    parent = await ended(database, LARGE)

    async def retry():
        item = Retry(id=str(uuid7()), parent_id=parent, tenant="default", created_at=timestamp())
        return await database.writer.write(job_retries.retry, item)

    child = await retry()
    assert (await release(database, parent, JobPart.PAYLOAD))[0] == 1
    with pytest.raises(BytesGoneError, match=ref(LARGE).sha256):
        await database.blobs.read_of_job(parent, JobPart.PAYLOAD, ref(LARGE))  # although the child still has them
    assert await database.blobs.read_of_job(child.id, JobPart.PAYLOAD, ref(LARGE)) == LARGE
    assert await retry() is None


async def test_a_payload_that_only_speaks_of_references_is_tried_again(database):
    job_id = await ended(database)
    assert not mentions_bytes('{"text":"\\"$blob\\":"}')
    text = '{"text":"say \\"$blob\\": to me"}'
    job = new_job()
    job.payload = text
    await database.writer.write(job_inserts.insert, job)
    (run,) = await claim(database)
    await end(database, run)
    for parent in (job_id, job.id):
        item = Retry(id=str(uuid7()), parent_id=parent, tenant="default", created_at=timestamp())
        assert (await database.writer.write(job_retries.retry, item)).id == item.id


async def test_what_waits_or_runs_never_loses_bytes(database):
    waiting = await made(database, LARGE)
    assert (await release(database, waiting, JobPart.PAYLOAD))[0] == 0
    assert (await database.writer.write(job_removals.prune, Overdue(job_ids=[waiting], kept_s=-60))).job_ids == set()
    await claim(database)
    assert (await release(database, waiting, JobPart.PAYLOAD))[0] == 0
    assert await database.blobs.read_of_job(waiting, JobPart.PAYLOAD, ref(LARGE)) == LARGE


async def test_jobs_without_bytes_pay_no_statement(database, monkeypatch):
    said = []
    original = type(database.writer)._apply

    class Recording:
        def __init__(self, tx):
            self._tx = tx

        def __getattr__(self, name):
            method = getattr(self._tx, name)

            async def call(*given, **values):
                said.extend(statement.postgresql.text for statement in given[:1])
                return await method(*given, **values)

            return call

    async def apply(writer, connection, writes):
        for write in writes:
            operation = write.operation

            async def recorded(tx, items, operation=operation):
                return await operation(Recording(tx), items)

            write.operation = recorded
        return await original(writer, connection, writes)

    monkeypatch.setattr(type(database.writer), "_apply", apply)
    await ended(database)
    assert said
    assert not [text for text in said if "blob" in text]
    await ended(database, SMALL)
    assert [text for text in said if "job_blobs" in text]


async def test_a_file_goes_only_when_nobody_has_put_or_touched_it_for_a_while(database):
    files = database.blobs.files
    (blob,) = await database.blobs.prepare([LARGE])
    path = files._path(blob.sha256)
    assert not files.remove(blob.sha256, grace_s=60)
    assert path.exists()
    os.utime(path, (time.time() - 100,) * 2)
    await database.blobs.prepare([LARGE])  # somebody else finds it there
    assert not files.remove(blob.sha256, grace_s=60)
    os.utime(path, (time.time() - 100,) * 2)
    assert files.remove(blob.sha256, grace_s=60)
    assert not path.exists()
    assert files.remove(blob.sha256, grace_s=60)


async def test_a_file_that_is_removed_and_put_at_the_same_time_is_there_in_the_end(database):
    """Old all the time, so that every removal takes it aside; whoever was told that it is stored must find it."""
    files = database.blobs.files
    sha256 = ref(LARGE).sha256
    path = files._path(sha256)
    removed = 0

    def put_and_read():
        for _ in range(150):
            files.put(sha256, LARGE)
            for _ in range(5):  # committed, claimed, read: while removals of before are under way
                assert files.read(sha256) == LARGE

    def remove():
        nonlocal removed
        while not done:
            with contextlib.suppress(FileNotFoundError):
                # Only what nobody is about to name grows old: here, what was put a second ago.
                removed += files.remove(sha256, grace_s=1.0)
            time.sleep(0.0005)

    done = False
    removers = [asyncio.create_task(asyncio.to_thread(remove)) for _ in range(2)]
    try:
        for _ in range(3):
            await asyncio.to_thread(put_and_read)
            before = removed
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (time.time() - 100,) * 2)
            async with asyncio.timeout(20):
                while removed == before:
                    await asyncio.sleep(0.001)
    finally:
        done = True
        await asyncio.gather(*removers)
    assert removed >= 3


def test_a_file_touched_between_two_looks_of_its_remover_is_put_back(tmp_path, monkeypatch):
    from service.db import blob_files

    files = blob_files.BlobFiles(tmp_path / "blobs")
    sha256 = ref(LARGE).sha256
    files.put(sha256, LARGE)
    path = files._path(sha256)
    os.utime(path, (time.time() - 100,) * 2)
    looks = []
    original = blob_files._is_younger

    def look(looked_at, age_s):
        is_younger = original(looked_at, age_s)
        if not looks:
            files.put(sha256, LARGE)  # right after the first look
        else:
            assert files.read(sha256) == LARGE  # although it is aside now
        looks.append(looked_at)
        return is_younger

    monkeypatch.setattr(blob_files, "_is_younger", look)
    assert not files.remove(sha256, grace_s=60)
    assert len(looks) == 2
    assert path.read_bytes() == LARGE


def test_what_a_killed_remover_left_takes_nothing_from_who_put_the_same_since(tmp_path):
    files = BlobFiles(tmp_path / "blobs")
    sha256 = ref(LARGE).sha256
    files.put(sha256, LARGE)
    path = files._path(sha256)
    os.utime(path, (time.time() - 100,) * 2)
    path.rename(path.with_name(f".{sha256}.aside"))
    files.put(sha256, LARGE)
    files.look(int(sha256[:2], 16), grace_s=-1)  # as if the other had been aside for long
    assert not files.remove(sha256, grace_s=60)
    assert files.read(sha256) == LARGE


async def test_what_killed_processes_left_is_found_and_tidied_up(database):
    files = database.blobs.files
    (lost,) = await database.blobs.prepare([LARGE])  # never committed
    await made(database, b"n" * 3_000)  # named
    old = (time.time() - 100,) * 2
    for path in files.directory.rglob("*"):
        if path.is_file():
            os.utime(path, old)
    half = files._path(lost.sha256).with_name(".half")
    half.write_bytes(b"x")
    os.utime(half, old)
    aside = files._path(lost.sha256).with_name(f".{lost.sha256}.aside")
    files._path(lost.sha256).rename(aside)
    found = [name for number in range(256) for name in files.look(number, grace_s=60)]
    assert found == [ref(b"n" * 3_000).sha256]
    assert not half.exists()
    assert aside.exists()  # for a minute
    found = [name for number in range(256) for name in files.look(number, grace_s=-1)]
    assert not aside.exists()
    assert not files.remove(lost.sha256, grace_s=60)  # it may be about to be named again
    os.utime(files._path(lost.sha256), old)
    found = [name for number in range(256) for name in files.look(number, grace_s=60)]
    assert set(found) == hashes(LARGE, b"n" * 3_000)
    assert await database.writer.write(pruning.take_on_files, found) == 1
    assert (await kept(database))[1] == hashes(LARGE)


async def test_two_processes_that_take_and_delete_the_same_bytes_lose_none(postgres_url, tmp_path):
    """One submits jobs with bytes that the other's deletions free at the same moment."""
    async with contextlib.AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(Database.open(postgres_url, tmp_path / "blobs", inline_bytes=10_000))
            for _ in range(2)
        ]

        freed = [0, 0]

        async def submit():
            ids = []
            while len(ids) < 120 or min(freed) <= 10:
                ids.append(await made(one, SMALL, LARGE, b"%d" % (len(ids) % 3)))
            return ids

        async def churn(which):
            while not submitting.done():
                job = await made(other, SMALL, LARGE, b"%d" % (freed[which] % 3))
                runs = [run for run in await claim(other, 1, job_id=job) if run.id == job]
                for run in runs:
                    await end(other, run)
                    freed[which] += len(await delete(other, job))

        submitting = asyncio.create_task(submit())
        await asyncio.gather(churn(0), churn(1))
        for job_id in await submitting:
            for value in (SMALL, LARGE):
                assert await one.blobs.read_of_job(job_id, JobPart.PAYLOAD, ref(value)) == value


async def test_bytes_that_go_between_their_storing_and_their_naming_are_stored_anew(postgres_url, tmp_path):
    """The deletion is held open by somebody else, so that the submission finds the row and then waits for its key."""
    async with Database.open(postgres_url, tmp_path / "blobs", inline_bytes=10_000) as database:
        first = await ended(database, LARGE)
        connection = await asyncpg.connect(driver_url(postgres_url))
        try:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("DELETE FROM job_blobs")
            await connection.execute("DELETE FROM blobs")
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            submission = asyncio.create_task(made(database, LARGE))
            async with asyncio.timeout(20):
                while not await connection.fetchval(waiting):
                    await asyncio.sleep(0.01)
            await transaction.commit()
        finally:
            await connection.close()
        second = await submission
        assert await database.blobs.read_of_job(second, JobPart.PAYLOAD, ref(LARGE)) == LARGE
        with pytest.raises(BytesGoneError):
            await database.blobs.read_of_job(first, JobPart.PAYLOAD, ref(LARGE))


def test_a_database_from_before_gets_its_references_and_loses_what_was_left_behind(database_url, tmp_path, monkeypatch):
    async def fill():
        async with Database.open(database_url, tmp_path / "blobs", inline_bytes=1_000) as database:
            first = await ended(database, SMALL, [LARGE, {"deep": b"deep"}], result=b"res", artifact=b"a" * 2_000)
            (blob,) = await database.blobs.prepare([b"left" * 1_000])

            async def leave(tx, items):
                await database.blobs.insert(tx, [blob])
                return [None] * len(items)

            await database.writer.write(leave, None)
            return first

    job_id = asyncio.run(fill())
    before = sorted(sql(database_url, "SELECT CAST(job_id AS TEXT), part, sha256 FROM job_blobs"))
    assert len(before) == 5
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", database_url)
    command.downgrade(alembic_config(), "0007")
    asyncio.run(upgrade(database_url))
    assert sorted(sql(database_url, "SELECT CAST(job_id AS TEXT), part, sha256 FROM job_blobs")) == before
    assert {row[0] for row in before} == {job_id}
    assert sql(database_url, "SELECT sha256 FROM blob_removals") == [(ref(b"left" * 1_000).sha256,)]
    assert len(sql(database_url, "SELECT sha256 FROM blobs")) == 5
