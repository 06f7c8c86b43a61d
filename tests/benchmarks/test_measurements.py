"""Parts of the suite in runs of a second: real services, real databases, and figures under the names of the gates."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from benchmarks import rates, steady
from benchmarks.context import Context, ours
from benchmarks.databases import completion_rate, count_finished, rows_of, settle
from benchmarks.figures import Book
from benchmarks.filling import ENDED, QUEUED, fill, job_id, mark_folded
from benchmarks.gates import Result, judge
from benchmarks.growth import claim_ms
from benchmarks.lag import LagLog
from tests.conftest import sql


@pytest.fixture
def context() -> Context:
    return Context(book=Book(), lags=LagLog(), postgres=None, rounds=1, seconds=1, is_short=True, kinds=["sqlite"])


# Where CI is true, a missing program fails instead.
@pytest.mark.skipif(shutil.which("wrk") is None and os.environ.get("CI") != "true", reason="wrk is not installed")
@pytest.mark.timeout(300)
def test_rates_stand_under_the_names_of_their_gates(context: Context) -> None:
    rates.measure(context)
    measured = {v.gate.figure for v in judge(context.book, is_short=True) if v.result is not Result.MISSING}
    figures = ("durable submit", "live end-to-end", "GET of a finished job")
    assert measured >= {f"{figure} / echo, SQLite" for figure in figures}
    assert all(figure.median > 0 for figure in context.book.figures.values())
    assert set(context.lags.bounds_ms(0.999)) == {f"{name}, SQLite" for name in (*figures, "first list page")}


def test_a_backlog_made_by_sql_is_run_and_its_rate_told(context: Context, database_url: str) -> None:
    asyncio.run(fill(database_url, 200, days=0.01, rows=QUEUED))
    with rows_of(database_url) as rows, pytest.raises(TimeoutError):
        settle(rows, timeout_s=0.2)
    with ours(context, "any", database_url=database_url) as service, context.lags.watch("drain", service.server.url):
        settle(service.rows, timeout_s=100)
        assert count_finished(service.rows) == 200
        assert completion_rate(service.rows) > 1
        with pytest.raises(RuntimeError, match="only 0 jobs"):
            completion_rate(service.rows, since="2999-01-01T00:00:00.000Z")
        assert len(steady.run(service, 0.4)) == 20
    assert context.lags.bounds_ms(0.999)["drain"] > 0


def test_rows_made_in_pieces_are_those_made_at_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.filling.CHUNK", 70)
    asyncio.run(fill(database_url, 200, rows=ENDED))
    asyncio.run(mark_folded(database_url))
    counts = "SELECT count(*), (SELECT count(*) FROM job_attempts), (SELECT count(*) FROM job_events) FROM jobs"
    assert sql(database_url, counts) == [(200, 200, 600)]
    assert sql(database_url, f"SELECT status FROM jobs WHERE id = '{job_id(50)}'") == [("FAILED",)]
    assert asyncio.run(claim_ms(database_url, tmp_path)) > 0
    assert sql(database_url, "SELECT count(*) FROM jobs WHERE finished_at IS NULL") == [(0,)]
