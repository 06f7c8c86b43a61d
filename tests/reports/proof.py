"""Proofs over a history that was lived on a database whose clock stands still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from service.db import postgresql, rollups
from service.db.database import Database
from service.db.statements import Statement
from service.db.view_versions.v2 import COLUMNS
from service.db.views import view_names
from service.models import Timestamp
from tests.reports.history import PAGE, Clock, History, Step
from tests.reports.recount import (
    WEBHOOK_TABLES,
    View,
    ended_by_run,
    milliseconds,
    recount,
    recount_backlog,
    recount_webhooks,
    recount_workers,
    rows_of,
    table_rows,
    tables,
)

#: What the rows of a report differ in.
KEYS = {
    "report_plugins": ("tenant", "plugin"),
    "report_hourly": ("hour", "tenant", "plugin"),
    "report_daily": ("day", "tenant", "plugin"),
    "report_failures": ("tenant", "plugin", "plugin_version", "error_type", "message_pattern"),
    "report_backlog": ("tenant", "plugin"),
    "report_workers": ("instance_id",),
    "report_webhooks": ("webhook_id",),
}

_BEHIND = Statement(
    sa.text("SELECT 1 FROM job_events, rollup_state WHERE job_events.position > rollup_state.position LIMIT 1"),
    on_postgresql=sa.text(
        "SELECT 1 FROM job_events, rollup_state WHERE (job_events.tx, job_events.position)"
        " > (rollup_state.tx, rollup_state.position) LIMIT 1"
    ),
)


@contextlib.asynccontextmanager
async def lived(
    url: str, directory: Path, steps: Iterable[Step], *, transitions: int | None = None
) -> AsyncIterator[Database]:
    """A database after `steps` (of endless ones, after so many transitions), all of it folded."""
    clock = Clock()
    with mock.patch.object(postgresql, "_NOW"):
        clock.on_change = _tell_postgresql
        async with Database.open(url, directory / "blobs", inline_bytes=1_000, clock=lambda: clock.now) as database:
            history = History(database, clock)
            await history.begin()
            for step in steps:
                await history.do([step])
                if transitions is not None and history.transitions >= transitions:
                    break
            await fold_all(database)
            yield database


def _tell_postgresql(now: Timestamp) -> None:
    postgresql._NOW = f"SELECT CAST('{now}' AS timestamptz)"


async def fold_all(database: Database) -> None:
    """Fold until nothing is left. Events are not settled while a transaction before theirs is open, on any database.

    After a full page the reports tell of its last event, not of now: the last page must not be full.
    """
    async with asyncio.timeout(300):  # thousands of small pages in the long proof
        folded = PAGE
        while folded == PAGE or await database.reader.fetch(_BEHIND):
            folded = await database.writer.write(rollups.fold, PAGE)


async def check(database: Database) -> None:
    """Hold every report against counting."""
    jobs, attempts = await tables(database)
    for view, expected in recount(jobs, attempts).items():
        rows = await rows_of(database, view, COLUMNS[view])
        _compare(view, rows, expected)
    ((as_of,),) = await database.reader.fetch(Statement(sa.text("SELECT as_of FROM report_freshness")))
    backlog = await rows_of(database, "report_backlog", COLUMNS["report_backlog"])
    _compare("report_backlog", backlog, recount_backlog(jobs, as_of))
    webhooks = await rows_of(database, "report_webhooks", COLUMNS["report_webhooks"])
    _compare("report_webhooks", webhooks, recount_webhooks(*await table_rows(database, *WEBHOOK_TABLES), as_of))
    workers = await rows_of(database, "report_workers", COLUMNS["report_workers"])
    expected = recount_workers(jobs, attempts)
    _compare("report_workers", [row for row in workers if (row["instance_id"],) in expected], expected)
    storage = await database.reader.fetch(Statement(sa.text("SELECT item_count FROM report_storage WHERE kind='jobs'")))
    assert storage == [(len(jobs),)]
    by_id = {job["id"]: job for job in jobs}
    for row in await rows_of(database, "report_jobs", ["job_id", "status", "queue_s", "run_s", "total_s"]):
        _check_job(row, by_id[row["job_id"]], [each for each in attempts if each["job_id"] == row["job_id"]])


def _check_job(row: dict[str, Any], job: Any, attempts: list[Any]) -> None:
    is_ended = ended_by_run(job, attempts)
    has_waited = is_ended or job["status"] == "RUNNING"
    waited = max(0, milliseconds(job["run_at"], job["started_at"])) / 1000 if has_waited else None
    assert row == {
        "job_id": job["id"],
        "status": job["status"],
        "queue_s": waited,
        "run_s": milliseconds(job["started_at"], job["finished_at"]) / 1000 if is_ended else None,
        "total_s": job["finished_at"] and milliseconds(job["created_at"], job["finished_at"]) / 1000,
    }


def _compare(view: str, rows: list[dict[str, Any]], expected: View) -> None:
    keys = KEYS[view]
    found = {tuple(row[name] for name in keys): row for row in rows}
    assert len(found) == len(rows), f"{view}: two rows with one key"
    assert found.keys() == expected.keys(), view
    for key, values in expected.items():
        counted = {name: found[key][name] for name in values}
        assert counted == values, f"{view} {key}"


async def say_the_same(one: Database, other: Database) -> int:
    """Hold every view of two databases against each other; how many rows they have."""
    count = 0
    for view in view_names():
        columns = COLUMNS[view]
        # PostgreSQL keeps objects in an order of its own, and its files are larger.
        rows = [await rows_of(database, view, columns) for database in (one, other)]
        if view == "report_storage":
            rows = [[row for row in each if row["kind"] != "database"] for each in rows]
        assert rows[0] == rows[1], view
        count += len(rows[0])
    return count
