"""What is kept no longer goes, page by page, while everybody works; and what is kept stays."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sqlite3
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import instances, pruning
from service.db.database import Database
from service.db.engine import sqlite_path
from service.db.instances import Instance
from service.db.pruning import BEGINNING
from service.db.statements import Statement
from service.metrics import Metrics
from service.models import JobPart, JobStatus, later, timestamp
from service.pruner import Pruner
from service.retention import PAGE, RetentionService
from service.retention_rules import Keep, Retention, parse_by_plugin
from service.settings import Settings
from tests.api.conftest import serving
from tests.conftest import sql
from tests.reports.proof import fold_all
from tests.retention.test_references import LARGE, SMALL, delete, ended, hashes, kept, made, ref
from tests.store.test_jobs import claim, end, insert
from tests.store.test_writer import new_job

DAY_S = 86_400


def retention(database, keep, by_plugin=None, **more):
    return RetentionService(database, Retention(keep, by_plugin), Metrics(), **more)


@contextlib.asynccontextmanager
async def days_ago(url, tmp_path, days):
    """The database, whose clock goes so many days behind."""

    def clock():
        return timestamp(datetime.now(UTC) - timedelta(days=days))

    async with Database.open(url, tmp_path / "blobs", inline_bytes=1_000, clock=clock) as database:
        yield database


async def rows(database, text):
    return await database.reader.fetch(Statement(sa.text(text)))


async def job_ids(database):
    return {job_id for (job_id,) in await rows(database, "SELECT id FROM jobs")}


async def one(database, status=JobStatus.SUCCESS, plugin="p"):
    (job_id,) = await insert(database, new_job(plugin))
    (job,) = await claim(database)
    await end(database, job, status)
    return job_id


@pytest.mark.parametrize(
    ("part", "plugin", "status", "days"),
    [
        (None, "a", JobStatus.SUCCESS, 30),
        (None, "a", JobStatus.FAILED, 90),
        (JobPart.PAYLOAD, "a", JobStatus.SUCCESS, 7),
        (JobPart.PAYLOAD, "a", JobStatus.CANCELLED, 7),
        (JobPart.PAYLOAD, "a", JobStatus.FAILED, 90),
        (JobPart.RESULT, "a", JobStatus.SUCCESS, math.inf),
        (JobPart.PAYLOAD, "b", JobStatus.SUCCESS, 0.5),
        (JobPart.PAYLOAD, "b", JobStatus.FAILED, 0.5),
        (None, "b", JobStatus.SUCCESS, math.inf),
    ],
)
def test_how_long_what_is_kept(part, plugin, status, days):
    settings = Settings(
        _env_file=None, keep_jobs_days=30, keep_failed_days=90, keep_payload_bytes_days=7,
        keep_by_plugin='{"b": {"jobs_days": null, "payload_bytes_days": 0.5, "failed_days": 0}}',
    )  # fmt: skip
    assert settings.retention.kept_s(part, plugin, status) == days * DAY_S
    assert settings.retention.ages_s == [days * DAY_S for days in (0.5, 7, 30, 90)]


def test_by_default_everything_is_kept():
    assert Settings(_env_file=None).retention.ages_s == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", 'not JSON .line 1, column 2., such as {"ocr": {"payload_bytes_days": 1}}'),
        ("[1]", 'an object, plugins with their rules, such as {"ocr"'),
        ('{"b": 3}', "b: is an object of"),
        ('{"b": {"days": 3}}', "failed_days, jobs_days"),
        ('{"b": {"jobs_days": -1}}', "b/jobs_days: is a number"),
        ('{"b": {"jobs_days": true}}', "b/jobs_days: is a number"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_by_plugin(text, Keep())
    with pytest.raises(ValueError, match=says):
        Settings(_env_file=None, keep_by_plugin=text)


async def test_what_has_had_its_time_goes_and_nothing_else(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 10) as database:
        old, failed = await one(database), await one(database, JobStatus.FAILED)
        other = await one(database, plugin="other")
        waiting, running = await made(database, LARGE, plugin="w"), await made(database, LARGE, plugin="r")
        await claim(database, 1, job_id=running)
    async with days_ago(database_url, tmp_path, 0) as database:
        young = await ended_of(database, "p")
        service = retention(database, Keep(jobs_days=5, failed_days=20), {"other": Keep()})
        await service.prune()
        assert await job_ids(database) == {failed, other, waiting, running, young}
        assert old not in await job_ids(database)
        await retention(database, Keep(jobs_days=5, failed_days=8)).prune()
        assert await job_ids(database) == {waiting, running, young}
        await fold_all(database)
        counted = await rows(
            database,
            "SELECT plugin, submitted_count, succeeded_count, failed_count, deleted_count FROM report_plugins"
            " WHERE plugin IN ('p', 'other') ORDER BY plugin",
        )
        assert counted == [("other", 1, 1, 0, 1), ("p", 3, 2, 1, 2)]
        assert (await kept(database))[0] == hashes(LARGE)


async def test_a_process_whose_clock_is_ahead_passes_by_nothing(database_url, tmp_path):
    behind = timedelta(days=10)
    async with Database.open(
        database_url, tmp_path / "blobs", inline_bytes=1_000, clock=lambda: timestamp(datetime.now(UTC) - behind)
    ) as database:
        young = await one(database)
        service = retention(database, Keep(jobs_days=5))
        await service.prune()
        assert await job_ids(database) == {young}
        behind = timedelta(0)
        await service.prune()
        assert await job_ids(database) == set()


async def test_a_job_whose_end_is_committed_after_later_ones_is_not_passed_by(database_url, tmp_path):
    keep = Keep(jobs_days=10 - 30 / DAY_S)
    async with days_ago(database_url, tmp_path, 10) as database:
        await one(database)
    async with days_ago(database_url, tmp_path, 0) as database:
        service = retention(database, keep)
        await service.prune()
        assert await job_ids(database) == set()
        async with days_ago(database_url, tmp_path, 10 + 20 / DAY_S) as slower:
            await one(slower)
        await service.prune()
        assert await job_ids(database) == set()


async def ended_of(database, plugin):
    (job_id,) = await insert(database, new_job(plugin))
    (job,) = await claim(database, 1, plugins=[plugin])
    await end(database, job)
    return job_id


async def test_bytes_go_before_their_job_part_by_part(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 10) as database:
        job_id = await ended(database, LARGE, SMALL, result=b"r" * 2_000, artifact=b"a")
    async with days_ago(database_url, tmp_path, 0) as database:
        metrics = Metrics()
        rules = Retention(Keep(payload_bytes_days=5, result_bytes_days=20))
        await RetentionService(database, rules, metrics).prune()
        assert (await kept(database))[0] == hashes(b"r" * 2_000, b"a")
        assert "jobservice_freed_bytes_total 5100.0" in (await metrics.render()).decode()
        await retention(database, Keep(result_bytes_days=5)).prune()
        assert await kept(database) == (set(), hashes(LARGE, b"r" * 2_000))
        assert await job_ids(database) == {job_id}


async def test_pages_are_small_and_a_page_of_what_is_kept_stops_nobody(database_url, tmp_path):
    """More than a page of jobs that stay, and one behind them that goes; what was passed is not read again."""
    async with days_ago(database_url, tmp_path, 10) as database:
        await insert(database, *(new_job("stays") for _ in range(PAGE + 20)))
        for job in await claim(database, PAGE + 20):
            await end(database, job)
        last = await one(database)
    async with days_ago(database_url, tmp_path, 0) as database:
        service = retention(database, Keep(jobs_days=5), {"stays": Keep(jobs_days=50)})
        sizes = []
        original = pruning.find_ended

        async def find_ended(*arguments):
            page = await original(*arguments)
            sizes.append(len(page))
            return page

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pruning, "find_ended", find_ended)
            await service.prune()
            assert sizes == [PAGE, 21, 0]
            assert last not in await job_ids(database)
            await service.prune()
            assert sizes[3:] == [0, 0]
        assert len(await job_ids(database)) == PAGE + 20


async def test_files_go_after_their_rows_once_they_are_old_enough(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 0) as database:
        job_id = await ended(database, LARGE)
        path = database.blobs.files._path(ref(LARGE).sha256)
        await delete(database, job_id)
        await retention(database, Keep()).remove_files()
        assert path.exists()  # somebody may have found it there, and be about to name it
        assert (await rows(database, "SELECT due_at FROM blob_removals"))[0][0] > later(timestamp(), 3_500)
        os.utime(path, (time.time() - 7_200,) * 2)
        await asyncio.to_thread(sql, database_url, "UPDATE blob_removals SET due_at = '2026-01-01T00:00:00.000Z'")
        await retention(database, Keep()).remove_files()
        assert not path.exists()
        assert await kept(database) == (set(), set())


async def test_a_file_that_is_named_again_stays(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 0) as database:
        await delete(database, await ended(database, LARGE))
        again = await made(database, LARGE)
        os.utime(database.blobs.files._path(ref(LARGE).sha256), (time.time() - 7_200,) * 2)
        await retention(database, Keep()).remove_files()
        assert await kept(database) == (hashes(LARGE), set())
        assert await database.blobs.read_of_job(again, JobPart.PAYLOAD, ref(LARGE)) == LARGE


async def test_files_that_nobody_names_are_found(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 0) as database:
        (blob,) = await database.blobs.prepare([LARGE])
        path = database.blobs.files._path(blob.sha256)
        os.utime(path, (time.time() - 7_200,) * 2)
        service = retention(database, Keep())
        for _ in range(256):
            await service.look_for_files()
        await service.remove_files()
        assert not path.exists()


async def test_processes_that_stopped_long_ago_are_forgotten(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 10) as database:
        stopped, silent = str(uuid7()), str(uuid7())
        for instance_id in (stopped, silent):
            instance = Instance(
                id=instance_id, version="1", host="h", pid=1, started_at=timestamp(datetime.now(UTC) - timedelta(10))
            )
            await database.writer.write(instances.register, instance)
            await _works(database, instance_id)
        await database.writer.write(instances.stop, stopped)
    async with days_ago(database_url, tmp_path, 0) as database:
        alive = Instance(id=str(uuid7()), version="1", host="h", pid=1, started_at=timestamp())
        await database.writer.write(instances.register, alive)
        await _works(database, alive.id)
        await retention(database, Keep(payload_bytes_days=5)).prune()
        assert len(await rows(database, "SELECT id FROM instances")) == 3
        assert len(await rows(database, "SELECT owner FROM rollup_workers")) == 3
        await retention(database, Keep(jobs_days=5, failed_days=8)).prune()
        assert await rows(database, "SELECT id FROM instances") == [(alive.id,)]
        assert await rows(database, "SELECT owner FROM rollup_workers") == [(alive.id,)]


async def _works(database, owner):
    """Has the owner run a job, which is in the sums."""
    await insert(database, new_job())
    (job,) = await claim(database, owner=owner)
    await end(database, job, owner=owner)
    await fold_all(database)


async def test_a_process_that_works_is_not_forgotten_however_soon_jobs_go(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 0.01) as database:
        works = Instance(id=str(uuid7()), version="1", host="h", pid=1, started_at=timestamp())
        await database.writer.write(instances.register, works)
        await database.writer.write(instances.beat, works.id)  # as it was some minutes ago
    async with days_ago(database_url, tmp_path, 0) as database:
        await retention(database, Keep(jobs_days=0)).prune()
        assert await rows(database, "SELECT id FROM instances") == [(works.id,)]


async def test_a_long_reader_and_a_purge_leave_each_other_alone(database_file, database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 10) as database:
        old = await ended(database, LARGE, SMALL)
    async with days_ago(database_url, tmp_path, 0) as database:
        with contextlib.closing(sqlite3.connect(sqlite_path(database_url), isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT job_id FROM report_jobs").fetchall() == [(old,)]
            await asyncio.wait_for(retention(database, Keep(jobs_days=5)).prune(), 10)
            assert await job_ids(database) == set()
            assert reader.execute("SELECT id FROM jobs").fetchall() == [(old,)]
            assert len(reader.execute("SELECT * FROM blobs").fetchall()) == 2


async def test_a_purge_finds_ended_jobs_by_their_index(database_file):
    statement = pruning._ENDED.sqlite
    parameters = statement.bind(after_at=BEGINNING[0], after_id=BEGINNING[1], before=timestamp(), limit=10)
    with contextlib.closing(sqlite3.connect(database_file)) as connection:
        plan = "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", parameters))
    assert "ix_jobs_finished" in plan
    assert "TEMP B-TREE" not in plan


async def test_a_purge_all_the_time_takes_no_bytes_that_anybody_needs(database_url, tmp_path):
    """Jobs come with the same bytes again and again, end and are pruned at once: whoever claims one has its bytes."""
    async with days_ago(database_url, tmp_path, 0) as database:
        service = retention(database, Keep(jobs_days=0), {"bytes": Keep(payload_bytes_days=0)})
        done = asyncio.Event()

        async def purge():
            while not done.is_set():
                await service.prune()
                await asyncio.sleep(0.02)

        async def work(number):
            for turn in range(25):
                value = b"%d" % (turn % 2)
                job_id = await made(database, SMALL, LARGE, value, plugin="bytes" if number % 2 else "p")
                (job,) = await claim(database, 1, job_id=job_id)
                found = await database.blobs.read([ref(SMALL), ref(LARGE), ref(value)])
                assert found == {ref(one).sha256: one for one in (SMALL, LARGE, value)}
                assert await end(database, job)

        purging = asyncio.create_task(purge())
        await asyncio.gather(*(work(number) for number in range(8)))
        done.set()
        await purging
        await asyncio.sleep(0.01)  # a job that ended in this very millisecond is not due yet
        await service.prune()
        assert len(await job_ids(database)) == 100
        assert (await kept(database))[0] == set()


async def test_the_loop_prunes_until_it_is_cancelled(database_url, tmp_path):
    async with days_ago(database_url, tmp_path, 10) as database:
        await ended(database, LARGE)
    async with days_ago(database_url, tmp_path, 0) as database:
        pruner = asyncio.create_task(Pruner(retention(database, Keep(jobs_days=5))).run())
        async with asyncio.timeout(20):
            while await job_ids(database):
                await asyncio.sleep(0.02)
        pruner.cancel()
        await asyncio.wait([pruner])


def test_the_service_prunes_beside_its_work_and_none_of_its_jobs_misses_bytes(tmp_path):
    """Two hundred jobs whose bytes are the same, all to go at once, except those that fail."""
    large = "a" * 200_000
    with serving(tmp_path, keep_jobs_days=0, keep_failed_days=None, inline_blob_kb=1) as live:
        for _ in range(4):
            jobs = [{"plugin": "echo", "payload": {"file": {"$bytes": large}}} for _ in range(2)]
            answers = [live.post("/v1/jobs/batch", json=jobs) for _ in range(25)]
            assert {answer.status_code for answer in answers} <= {202}, answers[0].text
        deadline = time.monotonic() + 60
        while live.rows():
            assert time.monotonic() < deadline, live.get("/v1/jobs?limit=5").text
            time.sleep(0.05)
        assert 'jobservice_pruned_jobs_total{plugin="echo"} 200.0' in live.get("/metrics").text


def test_what_has_lost_its_bytes_is_not_tried_again_by_any_call(tmp_path):
    with serving(tmp_path, keep_payload_bytes_days=0, keep_result_bytes_days=0) as live:
        job = live.ended(live.submit("echo", {"file": {"$bytes": "aGVsbG8="}})["id"])
        plain = live.ended(live.submit("echo", {"text": "hello"})["id"])
        deadline = time.monotonic() + 30
        while (answer := live.get(f"/v1/jobs/{job['id']}/result?pointer=/file")).status_code != 410:
            assert (answer.status_code, time.monotonic() < deadline) == (200, True)
            time.sleep(0.05)
        assert live.get(f"/v1/jobs/{job['id']}/result").status_code == 410  # it is a file: sent raw
        assert live.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "application/json"}).status_code == 200
        both = [job["id"], plain["id"]]
        for dry_run, outcome in ((True, "would-retry"), (False, "retried")):
            done = live.post("/v1/jobs/actions/retry", json={"ids": both, "dry_run": dry_run}).json()
            assert [item["outcome"] for item in done["items"]] == ["bytes-gone", outcome]
        done = live.post("/v1/jobs/actions/retry", json={"filter": {"plugin": "echo"}, "dry_run": True}).json()
        assert job["id"] not in {item["id"] for item in done["items"]}
        assert live.request("DELETE", f"/v1/jobs/{job['id']}").status_code == 204
