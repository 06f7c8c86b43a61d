"""What the report views must say, counted one by one from `jobs` and `job_attempts`, without any of their means."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from service.db.database import Database
from service.db.schema import job_attempts, jobs, webhook_deliveries, webhook_endpoints
from service.db.statements import Statement

WEBHOOK_TABLES = (webhook_endpoints, webhook_deliveries)

Row = Mapping[str, Any]
#: Rows of a view by their first columns.
View = dict[tuple[Any, ...], dict[str, Any]]

#: As the document says: each bound is a fifth above the one before, at least a millisecond, up to 31 days.
_BOUNDS = [0]
while _BOUNDS[-1] < 31 * 24 * 3_600_000:
    _BOUNDS.append(max(_BOUNDS[-1] + 1, _BOUNDS[-1] * 120 // 100))


async def tables(database: Database) -> tuple[list[Row], list[Row]]:
    """All jobs and attempts, in no order."""
    read = await table_rows(database, jobs, job_attempts)
    return read[0], read[1]


async def table_rows(database: Database, *wanted: sa.Table) -> list[list[Row]]:
    """All rows of each table, in no order."""
    read: list[list[Row]] = []
    for table in wanted:
        rows = await database.reader.fetch(Statement(sa.select(table)))
        read.append([dict(zip(table.columns.keys(), row, strict=True)) for row in rows])
    return read


async def rows_of(database: Database, view: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """A view's rows, in the order of all its columns."""
    rows = await database.reader.fetch(Statement(sa.text(f"SELECT {', '.join(columns)} FROM {view}")))
    return [dict(zip(columns, row, strict=True)) for row in sorted(rows, key=repr)]


def milliseconds(start: str, end: str) -> int:
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000)


def percentile(durations: Sequence[int], percent: int) -> float | None:
    """From the histogram: the middle of the bucket in which that part of all durations is reached."""
    if not durations:
        return None
    place = -(-len(durations) * percent // 100)  # the smallest that is not less than that part of all
    index = bisect.bisect_left(_BOUNDS, sorted(durations)[max(place, 1) - 1])
    high, low = _BOUNDS[index], _BOUNDS[index - 1] + 1 if index else 0
    return round(2 * low * high / (low + high) / 1000, 6) if high else 0.0


class _Row:
    def __init__(self) -> None:
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.queue: list[int] = []
        self.run: list[int] = []
        self.cpu_us = 0
        self.memory: list[int] = []
        self.used: list[str] = []

    def as_view(self) -> dict[str, Any]:
        counts = self.counts
        ended = counts["SUCCESS"] + counts["FAILED"]
        times: dict[str, Any] = {"timed_count": len(self.run)}
        for measure, values in (("queue", self.queue), ("run", self.run)):
            times[f"{measure}_mean_s"] = sum(values) / 1000 / len(values) if values else None
            times |= {f"{measure}_p{percent}_s": percentile(values, percent) for percent in (50, 95, 99)}
        return {
            "submitted_count": counts["submitted"],
            "succeeded_count": counts["SUCCESS"],
            "failed_count": counts["FAILED"],
            "cancelled_count": counts["CANCELLED"],
            "success_rate": counts["SUCCESS"] / ended if ended else None,
            "attempt_count": counts["attempts"],
            "retry_count": counts["retries"],
            "lost_count": counts["lost"],
            **times,
            "run_total_s": sum(self.run) / 1000,
            "cpu_total_s": self.cpu_us / 1_000_000,
            "peak_memory_bytes": max(self.memory, default=None),
        }


def ended_by_run(job: Row, attempts: Sequence[Row]) -> bool:
    """Whether the job's last execution ended it."""
    last = next((attempt for attempt in attempts if attempt["fence"] == job["fence"]), None)
    if last is None or job["finished_at"] is None or last["finished_at"] != job["finished_at"]:
        return False
    # Something else may have ended it in the same transaction.
    if job["status"] == "FAILED":
        return last["error_type"] == job["error_type"]
    was_asked_before = last["outcome"] != "RELEASED" and job["cancel_reason"] == "requested while running"
    return last["outcome"] == job["status"] or was_asked_before


def recount(all_jobs: Sequence[Row], all_attempts: Sequence[Row]) -> dict[str, View]:
    """The rows of each view over all jobs."""
    of_job: defaultdict[str, list[Row]] = defaultdict(list)
    for attempt in all_attempts:
        of_job[attempt["job_id"]].append(attempt)
    rows: defaultdict[tuple[str, ...], _Row] = defaultdict(_Row)
    failures: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)

    def places(job: Row, at: str) -> list[_Row]:
        who = (job["tenant"], job["plugin"])
        hour, day = f"{at[:13]}:00:00.000Z", f"{at[:10]}T00:00:00.000Z"
        return [rows["report_plugins", *who], rows["report_hourly", hour, *who], rows["report_daily", day, *who]]

    for job in all_jobs:
        attempts = of_job[job["id"]]
        ended = ended_by_run(job, attempts)
        for row in places(job, job["created_at"]):
            row.counts["submitted"] += 1
        rows["report_plugins", job["tenant"], job["plugin"]].counts[f"now {job['status']}"] += 1
        for attempt in attempts:
            is_last = attempt["fence"] == job["fence"]
            for row in places(job, attempt["started_at"]):
                row.counts["started"] += 1
            if attempt["outcome"] is None:
                continue
            for row in places(job, attempt["finished_at"]):
                row.counts["attempts"] += 1
                row.counts["lost"] += attempt["outcome"] == "LOST"
                row.counts["retries"] += attempt["outcome"] == "FAILED" and not (is_last and ended)
                row.cpu_us += int((attempt["cpu_s"] or 0) * 1_000_000 + 0.5)
                row.memory += [attempt["peak_memory_bytes"]] if attempt["peak_memory_bytes"] is not None else []
                row.used.append(attempt["finished_at"])
        if job["finished_at"] is None:
            continue
        for row in places(job, job["finished_at"]):
            row.counts[job["status"]] += 1
            if ended:
                row.queue.append(max(0, milliseconds(job["run_at"], job["started_at"])))
                row.run.append(milliseconds(job["started_at"], job["finished_at"]))
        if job["status"] == "FAILED":
            key = (job["tenant"], job["plugin"], job["plugin_version"], job["error_type"])
            pattern = re.sub(r"'[^']*'|\"[^\"]*\"|7f3a9c41d2|\d+(\.\d+)?", "#", job["error_message"])
            failures[(*key, pattern)].append(job)

    views: dict[str, View] = {"report_plugins": {}, "report_hourly": {}, "report_daily": {}, "report_failures": {}}
    for (view, *key), row in rows.items():
        views[view][tuple(key)] = row.as_view() | (
            {
                "pending_count": row.counts["now PENDING"],
                "running_count": row.counts["now RUNNING"],
                "deleted_count": 0,
                "last_used_at": max(row.used, default=None),
            }
            if view == "report_plugins"
            else {"started_count": row.counts["started"]}
        )
    for key, failed in failures.items():
        last = max(failed, key=lambda job: (job["finished_at"], job["id"]))
        views["report_failures"][key] = {
            "job_count": len(failed),
            "first_seen_at": min(job["finished_at"] for job in failed),
            "last_seen_at": last["finished_at"],
            "last_job_id": last["id"],
        }
    return views


def recount_workers(all_jobs: Sequence[Row], all_attempts: Sequence[Row]) -> View:
    """What `report_workers` counts of each instance that has executed anything."""
    views: View = {}
    for owner in {attempt["owner"] for attempt in all_attempts}:
        mine = [attempt for attempt in all_attempts if attempt["owner"] == owner]
        ended = [attempt for attempt in mine if attempt["outcome"] is not None]
        outcomes = [attempt["outcome"] for attempt in ended]
        views[owner,] = {
            "running_count": sum(job["owner"] == owner for job in all_jobs),
            "attempt_count": len(ended),
            "succeeded_count": outcomes.count("SUCCESS"),
            "failed_count": outcomes.count("FAILED"),
            "lost_count": outcomes.count("LOST"),
            "busy_total_s": sum(milliseconds(each["started_at"], each["finished_at"]) for each in ended) / 1000,
            "last_ended_at": max((attempt["finished_at"] for attempt in ended), default=None),
        }
    return views


def recount_backlog(all_jobs: Sequence[Row], as_of: str) -> View:
    """What `report_backlog` says of each tenant and plugin."""
    until = f"{as_of[:16]}:00.000Z"

    def is_in_window(at: str | None) -> bool:
        return at is not None and at < until and milliseconds(at, until) <= 300_000

    views: View = {}
    for tenant, plugin in {(job["tenant"], job["plugin"]) for job in all_jobs}:
        mine = [job for job in all_jobs if (job["tenant"], job["plugin"]) == (tenant, plugin)]
        due = [job for job in mine if job["status"] == "PENDING" and job["due"]]
        oldest = min((job["run_at"] for job in due), default=None)
        arrived = sum(is_in_window(job["created_at"]) for job in mine)
        ended = sum(is_in_window(job["finished_at"]) for job in mine)
        views[tenant, plugin] = {
            "due_count": len(due),
            "scheduled_count": sum(job["status"] == "PENDING" and not job["due"] for job in mine),
            "running_count": sum(job["status"] == "RUNNING" for job in mine),
            "oldest_due_at": oldest,
            "oldest_age_s": None if oldest is None else max(0, milliseconds(oldest, as_of)) / 1000,
            "rate_in_per_s": arrived / 300,
            "rate_out_per_s": ended / 300,
            "eta_s": len(due) * 300 / ended if ended else None,
            "as_of": as_of,
        }
    return views


def recount_webhooks(endpoints: Sequence[Row], deliveries: Sequence[Row], as_of: str) -> View:
    """What `report_webhooks` says of each webhook."""
    views: View = {}
    for endpoint in endpoints:
        mine = [each for each in deliveries if each["endpoint_id"] == endpoint["id"]]
        statuses = [each["status"] for each in mine]
        last = max((each for each in mine if each["attempt"]), key=lambda each: each["id"], default=None)
        oldest = min((each["created_at"] for each in mine if each["status"] == "PENDING"), default=None)
        views[endpoint["id"],] = {
            "tenant": endpoint["tenant"],
            "url": endpoint["url"],
            "state": "failing" if endpoint["failing_since"] else "working",
            "failing_since": endpoint["failing_since"],
            "created_at": endpoint["created_at"],
            "pending_count": statuses.count("PENDING"),
            "delivered_count": statuses.count("DELIVERED"),
            "exhausted_count": statuses.count("EXHAUSTED"),
            "attempt_count": sum(each["attempt"] for each in mine),
            "last_status_code": last and last["last_status_code"],
            "last_error": last and last["last_error"],
            "last_delivered_at": max(
                (each["finished_at"] for each in mine if each["status"] == "DELIVERED"), default=None
            ),
            "oldest_pending_at": oldest,
            "oldest_pending_age_s": None if oldest is None else max(0, milliseconds(oldest, as_of)) / 1000,
        }
    return views
