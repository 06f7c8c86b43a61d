"""Leases as they hold between the service, its plugins and the clock."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time

import pytest

from service.db import job_inserts, job_queries, plugin_metrics
from service.db.database import Database
from service.errors import JobStateError
from service.job_management import JobManagementService
from service.plugin_management import PluginManagementService
from service.plugins.discovery import installed_plugins
from service.rescuer import LeaseKeeper
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner
from tests.conftest import sqlite_url
from tests.service.conftest import metric, until
from tests.store.test_writer import new_job

LAPSED = (
    "SELECT 1 FROM jobs WHERE status = 'RUNNING' AND lease_until < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 second')"
)


def test_a_service_that_slept_past_its_lease_runs_the_job_again_and_records_one_outcome(serve):
    service = serve("--lease-s", "1")
    job = service.submit("sleep", {"seconds": 4})
    until(lambda: service.job(job)["status"] == "RUNNING")
    os.kill(service.popen.pid, signal.SIGSTOP)
    until(lambda: service.sql(LAPSED))
    os.kill(service.popen.pid, signal.SIGCONT)
    record = service.job(job, wait=60)
    assert (record["status"], record["attempt"]) == ("SUCCESS", 1)
    *before, last = (attempt["outcome"] for attempt in service.attempts(job))
    assert last == "SUCCESS"
    assert before
    assert set(before) <= {"LOST", "RELEASED"}
    assert service.sql("SELECT fence FROM jobs") == [(len(before) + 1,)]
    assert metric(service, "jobservice_lost_leases_total") + metric(service, "jobservice_rescued_total") >= 1


def test_a_long_job_keeps_its_lease(serve):
    service = serve("--lease-s", "1")
    job = service.submit("sleep", {"seconds": 4})
    assert service.job(job, wait=60)["status"] == "SUCCESS"
    assert [attempt["outcome"] for attempt in service.attempts(job)] == ["SUCCESS"]


def test_a_database_that_takes_no_writes_costs_the_plugin_its_run_but_not_the_job(serve):
    """The process cannot know whether it still holds the job, so it stops the plugin before the lease is over."""
    service = serve("--lease-s", "2")
    job = service.submit("sleep", {"seconds": 20})
    until(lambda: service.job(job)["status"] == "RUNNING")
    outside = sqlite3.connect(service.data_dir / "jobs.db", isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    locked_at = time.monotonic()
    until(lambda: "could not be renewed in time" in service.log.read_text())
    assert time.monotonic() - locked_at < 2
    outside.execute("ROLLBACK")
    outside.close()
    until(lambda: service.sql("SELECT 1 FROM jobs WHERE fence = 2 AND status = 'RUNNING'"))
    assert service.sql("SELECT attempt, lost <= 1 FROM jobs") == [(1, 1)]


def test_jobs_of_a_plugin_that_is_gone_wait_for_it_and_then_fail(serve):
    service = serve("--drain-s", "0", plugins=["slowly"])
    job = service.submit("slowly", {"seconds": 60})
    until(lambda: service.job(job)["status"] == "RUNNING")
    assert service.stop() == 0
    service = serve()
    assert service.job(service.submit("echo", {}), wait=30)["status"] == "SUCCESS"
    assert service.job(job)["status"] == "PENDING"
    assert service.stop() == 0
    service = serve("--plugin-wait-s", "2")
    record = service.job(job, wait=30)
    # It had been due for longer; this process has missed the plugin only since it started.
    last_start = "SELECT max(started_at) FROM instances"
    waited = f"SELECT (julianday(finished_at) - julianday(({last_start}))) * 86400 FROM jobs WHERE status = 'FAILED'"
    assert service.sql(waited)[0][0] >= 2
    assert (record["status"], record["error"]["type"]) == ("FAILED", "PluginError")
    assert "slowly" in record["error"]["message"]


@pytest.fixture
async def two_services(database_file, tmp_path):
    """Two job managers on one database, each with worker processes of its own; neither renews unless told to."""
    settings = Settings(data_dir=tmp_path, workers=2)
    async with Database.open(sqlite_url(database_file), tmp_path / "blobs", inline_bytes=1_000) as database:
        runners, services = [], []
        for _ in range(2):
            runner = ToolRunner(WorkerPool(settings), installed_plugins(), settings)
            await runner.start()
            plugins = PluginManagementService(runner, lambda: plugin_metrics.load(database.reader))
            runners.append(runner)
            services.append(JobManagementService(database, plugins, lease_s=1))
        yield database, *services
        for service in services:
            await service.drain(0)
        for runner in runners:
            await runner.close()


async def test_jobs_whose_plugin_is_gone_fail_together_however_many_they_are(two_services):
    database, service, _ = two_services
    jobs = [new_job("gone") for _ in range(2 * job_queries.ABANDONED_PAGE + 1)]
    await database.writer.write(job_inserts.insert_batch, jobs)
    assert await service.fail_abandoned(["echo"], wait_s=-5) == len(jobs)
    assert await service.count_stranded(["echo"]) == {}
    assert await service.fail_abandoned(["echo"], wait_s=-5) == 0


async def test_what_another_process_has_finished_meanwhile_is_not_touched_by_the_one_that_wakes(two_services):
    database, sleeper, other = two_services
    job_id = await sleeper.create_job("sleep", {"seconds": 3})
    late = asyncio.create_task(sleeper.run_job(job_id))
    while not await other.rescue():
        await asyncio.sleep(0.05)
    assert (await other.cancel_job(job_id)).status == "CANCELLED"
    before = await other.get_record(job_id)
    with pytest.raises(JobStateError):
        await late
    assert await other.get_record(job_id) == before
    assert [attempt.outcome for attempt in await job_queries.list_attempts(database.reader, job_id)] == ["LOST"]
    assert sleeper._metrics.stale_writes._value.get() == 1


async def test_a_process_that_wakes_stops_what_it_lost_before_it_ends(two_services):
    _, sleeper, other = two_services
    job_id = await sleeper.create_job("sleep", {"seconds": 60})
    late = asyncio.create_task(sleeper.run_job(job_id))
    while not await other.rescue():
        await asyncio.sleep(0.05)
    keeper = asyncio.create_task(LeaseKeeper(sleeper, lease_s=1).run())
    while not sleeper._metrics.stale_writes._value.get():
        await asyncio.sleep(0.01)
    assert sleeper._metrics.lost_leases._value.get() == 1
    keeper.cancel()
    late.cancel()


async def test_a_cancellation_asked_of_another_process_stops_the_plugin(two_services):
    _, owner, other = two_services
    job_id = await owner.create_job("sleep", {"seconds": 60})
    running = asyncio.create_task(owner.run_job(job_id))
    keeper = asyncio.create_task(LeaseKeeper(owner, lease_s=1).run())
    while not owner.running:
        await asyncio.sleep(0.02)
    await other.cancel_job(job_id)
    assert (await other.wait_for(job_id, 20)).status == "CANCELLED"
    keeper.cancel()
    await asyncio.wait([running])
