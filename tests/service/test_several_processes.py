"""Several processes on one PostgreSQL: some serve, some only work, and none takes what another runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import requests
import sqlalchemy as sa

from tests.conftest import driver_url, sql
from tests.service.conftest import Process, metric, until


@pytest.fixture
def work(tmp_path: Path, postgres_url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `jobservice work` with options; returns once it works."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> subprocess.Popen[str]:
            log = stack.enter_context((tmp_path / "work.log").open("ab"))
            command = [sys.executable, "-m", "service", "work", "--data-dir", str(tmp_path / "data")]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--database-url", postgres_url, *options],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout
            first, second = process.stdout.readline(), process.stdout.readline()
            assert " works as " in first, (tmp_path / "work.log").read_text()
            assert f"data is in {tmp_path / 'data'}, the database is {sa.make_url(postgres_url).database} at " in second
            return process

        yield start


def owners(url: str) -> dict[str, set[str]]:
    """Which processes ran jobs of each plugin."""
    found: dict[str, set[str]] = {}
    for plugin, owner in sql(url, "SELECT plugin, instance_id FROM report_attempts"):
        found.setdefault(plugin, set()).add(str(owner))
    return found


def test_two_serve_one_database_and_each_knows_the_jobs_of_the_other(serve, postgres_url):
    one, other = (serve("--database-url", postgres_url, "--workers", "1") for _ in range(2))
    jobs = [(one if n % 2 else other).submit("sleep", {"seconds": 0.2}) for n in range(12)]
    assert [other.job(job, wait=60)["status"] for job in jobs] == ["SUCCESS"] * 12
    assert len(owners(postgres_url)["sleep"]) == 2
    assert one.stop() == other.stop() == 0


def test_a_start_leaves_what_another_process_runs(serve, postgres_url):
    one = serve("--database-url", postgres_url)
    job = one.submit("sleep", {"seconds": 3})
    until(lambda: one.job(job)["status"] == "RUNNING")
    other = serve("--database-url", postgres_url)
    assert other.job(job, wait=60)["status"] == "SUCCESS"
    assert [attempt["outcome"] for attempt in other.attempts(job)] == ["SUCCESS"]


def pause_between_transactions(pid: int, url: str) -> None:
    """Stop a process, the only one on its database, at a moment at which it holds no lock that others wait for.

    They would wait until the server ends its transaction, a minute later.
    """

    def is_any(state: str) -> bool:
        sessions = "backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()"
        return bool(sql(url, f"SELECT 1 FROM pg_stat_activity WHERE {sessions} AND state LIKE '{state}%'"))

    while True:
        os.kill(pid, signal.SIGSTOP)
        # What the server was asked for before comes to its end, but where only half of the request was sent.
        with contextlib.suppress(AssertionError):
            until(lambda: not is_any("active"), 1)
            if not is_any("idle in transaction"):
                return
        os.kill(pid, signal.SIGCONT)
        until(lambda: not is_any("idle in transaction"))


def test_what_a_paused_process_writes_late_changes_nothing_and_is_counted(serve, postgres_url):
    paused = serve("--database-url", postgres_url, "--lease-s", "2")
    job = paused.submit("sleep", {"seconds": 3})
    until(lambda: paused.job(job)["status"] == "RUNNING")
    pause_between_transactions(paused.popen.pid, postgres_url)
    other = serve("--database-url", postgres_url, "--lease-s", "2")
    record = other.job(job, wait=60)
    attempts = other.attempts(job)
    # On a busy machine the other one may lose a lease this short too.
    outcomes = [attempt["outcome"] for attempt in attempts]
    assert (record["status"], outcomes[0], outcomes[-1], outcomes.count("SUCCESS")) == ("SUCCESS", "LOST", "SUCCESS", 1)
    os.kill(paused.popen.pid, signal.SIGCONT)
    until(lambda: metric(paused, "jobservice_stale_writes_total") >= 1)
    assert other.job(job) == record
    assert other.attempts(job) == attempts


SUBMIT = """
    INSERT INTO jobs (id, tenant, plugin, status, rank, priority, due, run_at, attempt, max_attempts, lost, max_lost,
                      fence, event_count, created_at, tags, metadata, artifacts, payload)
    SELECT gen_random_uuid(), 'default', plugin, 'PENDING', -priority, priority, true, now(), 0, 1, 0, 3, 0,
           0, now(), '[]', '{}', '[]', '{}'
    FROM (VALUES ('not_installed', 9), ('sleep', 9), ('echo', 0)) AS submitted (plugin, priority)"""


async def test_a_database_that_goes_between_claim_and_bytes_costs_no_attempt(serve, postgres_url):
    service = await asyncio.to_thread(serve, "--database-url", postgres_url, "--workers", "1")
    busy = await asyncio.to_thread(service.submit, "sleep", {"seconds": 2})
    job = await asyncio.to_thread(service.submit, "echo", {"data": {"$bytes": "aGVsbG8="}})
    url = sa.make_url(driver_url(postgres_url))
    admin = await asyncpg.connect(url.set(database="postgres").render_as_string(hide_password=False))
    holder = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE blobs IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(60):
                while await holder.fetchval("SELECT status FROM jobs WHERE id = $1", job) != "RUNNING":
                    await asyncio.sleep(0.05)
            await admin.execute(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> $2",
                url.database,
                holder.get_server_pid(),
            )
            await asyncio.to_thread(until, lambda: readiness(service) == 503)
    finally:
        await admin.execute(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')
        await holder.close()
        await admin.close()
    await asyncio.to_thread(until, lambda: readiness(service) == 200, 60)
    record = await asyncio.to_thread(service.job, job, wait=60)
    assert (record["status"], record["attempt"]) == ("SUCCESS", 1), record
    assert (await asyncio.to_thread(service.job, busy, wait=60))["status"] == "SUCCESS"


def readiness(service: Process) -> int:
    return requests.get(f"{service.url}/readyz", timeout=30).status_code


def test_one_that_only_works_runs_what_it_was_told_to_and_nothing_else(work, postgres_url):
    echoing = work("--plugin", "echo")
    sql(postgres_url, SUBMIT)
    states = "SELECT plugin, status FROM report_jobs ORDER BY plugin"
    until(lambda: ("echo", "SUCCESS") in sql(postgres_url, states))
    assert sql(postgres_url, states) == [("echo", "SUCCESS"), ("not_installed", "PENDING"), ("sleep", "PENDING")]
    working = work()
    until(lambda: ("sleep", "SUCCESS") in sql(postgres_url, states))
    assert sql(postgres_url, states) == [("echo", "SUCCESS"), ("not_installed", "PENDING"), ("sleep", "SUCCESS")]
    assert owners(postgres_url)["echo"] != owners(postgres_url)["sleep"]
    for process in (echoing, working):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


async def test_told_to_stop_while_another_process_migrates_it_does_not_wait_for_it(tmp_path, postgres_url):
    command = [sys.executable, "-m", "service", "work", "--data-dir", str(tmp_path), "--database-url", postgres_url]
    other = await asyncpg.connect(driver_url(postgres_url))
    await other.execute("COMMENT ON VIEW report_schema_version IS 'of an older version'")
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(x'6A6F6273'::bigint)")
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert process.stderr
        assert b"another process migrates the database" in await process.stderr.readline()
        process.terminate()
        _, told = await asyncio.wait_for(process.communicate(), 60)
    await other.close()
    assert process.returncode == 0
    assert b"stopped before it was ready" in told
    assert b"Traceback" not in told


def test_a_plugin_that_is_not_installed_cannot_be_chosen(tmp_path, postgres_url):
    command = [sys.executable, "-m", "service", "work", "--data-dir", str(tmp_path), "--database-url", postgres_url]
    done = subprocess.run([*command, "--plugin", "nonsense"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "'nonsense' is not installed here" in done.stderr
    assert "Traceback" not in done.stderr
