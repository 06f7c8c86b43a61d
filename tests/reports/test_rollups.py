"""After any history, each report says what counting from the jobs says, and two databases say the same."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.calls import CallReport
from service.db import job_changes, job_leases
from service.db.database import Database
from service.db.job_changes import CancelRequest
from service.db.migrate import alembic_config, upgrade
from service.db.statements import Statement
from service.errors import error_object
from service.models import JobStatus, Timestamp, later
from tests.conftest import sql, sqlite_url
from tests.reports.history import WEIGHTS, Step, random_steps
from tests.reports.proof import check, fold_all, lived, say_the_same
from tests.store.test_jobs import claim, end, insert
from tests.store.test_writer import new_job

KINDS = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=40, max_size=120)


async def test_reports_are_what_counting_says(database_url, tmp_path):
    async with lived(database_url, tmp_path, itertools.islice(random_steps(1), 250)) as database:
        await check(database)


def test_shrinking_histories_are_counted_right(migrated_file, tmp_path):
    @settings(
        max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(STEPS)
    def prove(steps: list[Step]) -> None:
        url = sqlite_url(Path(shutil.copy(migrated_file, tmp_path / "jobs.db")))

        async def live() -> None:
            async with lived(url, tmp_path, steps) as database:
                await check(database)

        asyncio.run(live())

    prove()


async def test_two_databases_at_one_clock_agree_row_for_row(database_file, postgres_url, tmp_path):
    steps = list(itertools.islice(random_steps(2), 150))
    async with lived(sqlite_url(database_file), tmp_path, steps) as one, lived(postgres_url, tmp_path, steps) as other:
        assert await say_the_same(one, other) > 30


async def test_a_clock_that_was_put_back_makes_no_time_negative(database, database_url):
    await insert(database, new_job())
    (job,) = await claim(database)
    for table in ("jobs", "job_attempts"):
        await asyncio.to_thread(sql, database_url, f"UPDATE {table} SET started_at = '2100-01-01T00:00:00.000Z'")
    await end(database, job)
    await fold_all(database)
    ((run_s, busy_s, job_s, attempt_s, total_s),) = await database.reader.fetch(
        Statement(
            sa.text(
                "SELECT p.run_total_s, w.busy_ms, j.run_s, a.run_s, j.total_s FROM report_plugins AS p, "
                "rollup_workers AS w, report_jobs AS j, report_attempts AS a"
            )
        )
    )
    assert (run_s, busy_s, job_s, attempt_s) == (0, 0, 0, 0)
    assert total_s >= 0


async def test_a_job_that_is_cancelled_just_after_an_attempt_has_not_ended_by_it(database):
    (job_id,) = await insert(database, new_job())
    (job,) = await claim(database)
    retrying = end(
        database, job, JobStatus.PENDING, retry_in_s=5, error=error_object("ExecutionError", "no", plugin=job.plugin)
    )
    cancel = database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="no more"))
    assert await asyncio.gather(retrying, cancel) == [JobStatus.PENDING, JobStatus.CANCELLED]  # in one transaction
    await fold_all(database)
    counts = "attempt_count, retry_count, cancelled_count, pending_count, running_count, timed_count"
    rows = await database.reader.fetch(Statement(sa.text(f"SELECT {counts} FROM report_plugins")))
    assert rows == [(1, 1, 1, 0, 0, 0)]


async def test_sums_of_single_minutes_are_kept_for_an_hour_and_others_for_ever(database_url, tmp_path):
    now = Timestamp("2030-01-31T10:00:30.000Z")
    async with Database.open(database_url, tmp_path / "blobs", inline_bytes=1_000, clock=lambda: now) as database:
        grains = Statement(sa.text("SELECT grain FROM rollups ORDER BY grain"))
        await insert(database, dataclasses.replace(new_job(), created_at=now))
        for minutes, minute in ((0, ["minute"]), (59, ["minute"]), (61, [])):
            now = later(Timestamp("2030-01-31T10:00:30.000Z"), minutes * 60)
            await fold_all(database)
            assert await database.reader.fetch(grains) == [(name,) for name in ("all", "day", "hour", *minute)]


async def _retry(database, job):
    error = error_object("ExecutionError", "no", plugin=job.plugin)
    await end(database, job, JobStatus.PENDING, retry_in_s=5, error=error)


async def _cancel(database, job):
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job.id, reason="no more"))


async def _expire(database, _job):
    await database.writer.write(job_changes.expire, None)


async def _rescue(database, _job):
    await database.writer.write(job_leases.rescue, None)


@pytest.mark.parametrize(
    ("steps", "timed"),
    [
        ((_retry, _cancel), 0), ((_cancel, _retry), 1), ((_retry, _expire), 0), ((_rescue, _cancel), 0),
        ((_cancel, _rescue), 1), ((_rescue, _expire), 0),
    ],
)  # fmt: skip
async def test_jobs_and_sums_agree_on_what_ended_a_job_in_one_transaction(database, database_url, steps, timed):
    await insert(database, new_job())
    (job,) = await claim(database)
    past = "'2020-01-01T00:00:00.000Z'"
    await asyncio.to_thread(sql, database_url, f"UPDATE jobs SET expires_at = {past}, lease_until = {past}")
    await asyncio.gather(*(step(database, job) for step in steps))
    await fold_all(database)
    counts = "SELECT count(queue_s), count(run_s), (SELECT timed_count FROM report_plugins) FROM report_jobs"
    assert await database.reader.fetch(Statement(sa.text(counts))) == [(timed, timed, timed)]


async def test_cpu_time_of_executions_shorter_than_a_millisecond_is_counted_too(database, database_url, monkeypatch):
    await insert(database, *(new_job() for _ in range(3)))
    for job in await claim(database):
        await end(database, job, report=CallReport(cpu_s=0.000_4))
    await fold_all(database)
    totals = Statement(sa.text("SELECT cpu_total_s FROM report_plugins UNION ALL SELECT cpu_total_s FROM report_daily"))
    assert await database.reader.fetch(totals) == [(0.0012,)] * 2
    # What was summed up before is kept, in whole milliseconds.
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", database_url)
    await asyncio.to_thread(command.downgrade, alembic_config(), "0009")
    await upgrade(database_url)
    assert await database.reader.fetch(totals) == [(0.001,)] * 2


#: Pairs of messages that differ in a number, an id or a quoted name only, and what is left of both.
ALIKE = [
    ("can't open file 'a.png' as 'b'", "can't open file 'c.png' as 'd'", "can't open file # as #"),
    ("'Tom's photo.jpg' isn't there", "'photo.jpg' isn't there", "# isn't there"),
    ("KeyError: 'it\\'s \"1\"'", "KeyError: 'C:\\'", "KeyError: #"),
    ("bad bytes b'\\x00' in ['a', 'b']", "bad bytes b'' in ['c', 'd']", "bad bytes b# in [#, #]"),
    ("<Page object at 0x7f3ea2b1c9d0> is shut", "<Page object at 0x7F00E1> is shut", "<Page object at #> is shut"),
    ("off by 2.5e-07 of 12", "off by 3 of 1e+16", "off by # of #"),
]


async def test_failures_are_alike_whose_messages_differ_in_numbers_ids_and_quoted_names_only(database):
    messages = [message for *pair, _ in ALIKE for message in pair]
    await insert(database, *(new_job() for _ in messages))
    for job, message in zip(await claim(database, limit=len(messages)), messages, strict=True):
        await end(database, job, JobStatus.FAILED, error=error_object("ExecutionError", message, plugin=job.plugin))
    await fold_all(database)
    rows = await database.reader.fetch(Statement(sa.text("SELECT message_pattern, job_count FROM report_failures")))
    assert sorted(rows) == sorted((pattern, 2) for *_, pattern in ALIKE)
