"""Reports as values: which there are, their columns, and what of one is asked for."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.models import Timestamp
from service.report_columns import MEANINGS, OF_REPORTS

#: Of a job, by which a window of time may be meant.
FINISHED_AT: Final = "finished_at"
CREATED_AT: Final = "created_at"


class ColumnType(enum.StrEnum):
    """What the values of a column are."""

    ID = "id"  # a UUID as text
    TEXT = "text"
    TIME = "time"  # UTC, RFC 3339 with milliseconds
    INTEGER = "integer"
    NUMBER = "number"
    JSON = "json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportColumn:
    """A column; `unit` is empty where there is none."""

    name: str
    type: ColumnType
    unit: str
    meaning: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One of the report views. Its rows differ in `key`, and are read in its order.

    `times` are those by which a window of it may be asked for, the usual one first. Windows by a time of jobs are
    complete (see `service.reports`); other ones are of the rows whose own column says so.
    """

    name: str
    about: str
    columns: Sequence[ReportColumn]
    key: Sequence[str]
    times: Sequence[str] = ()

    @property
    def view(self) -> str:
        """Its name in SQL."""
        return f"report_{self.name}"

    @property
    def is_of_jobs(self) -> bool:
        """Whether its rows are jobs, or parts of them."""
        return FINISHED_AT in self.times

    def column(self, name: str) -> ReportColumn | None:
        """The column of that name, if it has one."""
        return next((column for column in self.columns if column.name == name), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportQuery:
    """What is wanted of a report: rows behind the key `after`, at most `limit` of them; None of anything is all.

    A window of time is from `since` on, before `until`, by one of the report's `times`.
    """

    report: Report
    columns: Sequence[ReportColumn]
    tenant: str
    plugin: str | None = None
    by: str | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None
    after: Sequence[Any] | None = None
    limit: int | None = None

    @property
    def key(self) -> Sequence[ReportColumn]:
        """What the rows are in the order of."""
        names = self.report.key
        if self.report.is_of_jobs and self.by == FINISHED_AT:
            return (_column(self.report.name, FINISHED_AT), *(_column(self.report.name, name) for name in names))
        return [_column(self.report.name, name) for name in names]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """Rows in the order of the columns that were asked for; `next` is the key behind which there are more."""

    rows: Sequence[Sequence[Any]]
    next: Sequence[Any] | None


_INTEGERS: Final = frozenset(
    {"priority", "attempt", "max_attempts", "fence", "worker_pid", "pid", "last_status_code", "up_to_ms"}
)


def _type(name: str, unit: str) -> ColumnType:
    if unit == "UTC":
        return ColumnType.TIME
    if unit == "JSON":
        return ColumnType.JSON
    if name in _INTEGERS or name.endswith(("_count", "_bytes")):
        return ColumnType.INTEGER
    if name.endswith("_s") or name == "success_rate":
        return ColumnType.NUMBER
    return ColumnType.ID if name.endswith("_id") else ColumnType.TEXT


def _column(report: str, name: str) -> ReportColumn:
    unit, meaning = OF_REPORTS.get((report, name)) or MEANINGS[name]
    is_number = (report, name) == ("schema_version", "version")
    return ReportColumn(
        name=name, type=ColumnType.INTEGER if is_number else _type(name, unit), unit=unit, meaning=meaning
    )


def _report(name: str, about: str, columns: str, key: str, times: str = "") -> Report:
    return Report(
        name=name,
        about=about,
        columns=[_column(name, column) for column in columns.split()],
        key=key.split(),
        times=times.split(),
    )


_COUNTS: Final = """
    success_rate attempt_count retry_count lost_count timed_count
    queue_mean_s queue_p50_s queue_p95_s queue_p99_s run_mean_s run_p50_s run_p95_s run_p99_s
    run_total_s cpu_total_s peak_memory_bytes"""
_OF_PERIOD: Final = (
    f"tenant plugin submitted_count started_count succeeded_count failed_count cancelled_count {_COUNTS}"
)

_ALL: Final = (
    _report(
        "jobs",
        "One row a job",
        """job_id tenant plugin plugin_version status priority attempt max_attempts created_at run_at started_at
        finished_at queue_s run_s total_s error_type error_message cancel_reason tags metadata parent_job_id batch_id
        schedule_id""",
        key="job_id",
        times=f"{FINISHED_AT} {CREATED_AT}",
    ),
    _report(
        "attempts",
        "One row an execution",
        """job_id tenant fence attempt plugin plugin_version instance_id worker_pid outcome started_at finished_at run_s
        plugin_s cpu_s peak_memory_bytes error_type error_message""",
        key="job_id fence",
        times=f"{FINISHED_AT} {CREATED_AT}",
    ),
    _report(
        "plugins",
        "Counts and times of each plugin since its first job",
        f"""tenant plugin submitted_count pending_count running_count succeeded_count failed_count cancelled_count
        deleted_count {_COUNTS} last_used_at""",
        key="tenant plugin",
    ),
    _report("hourly", "Each plugin by hours", f"hour {_OF_PERIOD}", key="hour tenant plugin", times="hour"),
    _report("daily", "Each plugin by days", f"day {_OF_PERIOD}", key="day tenant plugin", times="day"),
    _report(
        "failures",
        "FAILED jobs whose messages differ in numbers, ids and quoted names only",
        """tenant plugin plugin_version error_type message_fingerprint message_pattern job_count first_seen_at
        last_seen_at last_job_id""",
        key="tenant plugin plugin_version error_type message_fingerprint",
    ),
    _report(
        "backlog",
        "What waits now",
        """tenant plugin due_count scheduled_count running_count oldest_due_at oldest_age_s rate_in_per_s rate_out_per_s
        eta_s as_of""",
        key="tenant plugin",
    ),
    _report(
        "workers",
        "One row for each start of a service process",
        """instance_id version host pid started_at beat_at stopped_at state running_count attempt_count succeeded_count
        failed_count lost_count busy_total_s last_ended_at""",
        key="instance_id",
    ),
    _report(
        "webhooks",
        "One row a webhook, with its deliveries counted",
        """webhook_id tenant url state failing_since created_at pending_count delivered_count exhausted_count
        attempt_count last_status_code last_error last_delivered_at oldest_pending_at oldest_pending_age_s""",
        key="webhook_id",
    ),
    _report("storage", "What is kept", "kind item_count size_bytes", key="kind"),
    _report("buckets", "The buckets of the histogram", "up_to_ms value_s", key="up_to_ms"),
    _report("freshness", "How far the reports have come", "as_of rates_from rates_until", key=""),
    _report("schema_version", "The version of the contract", "version", key=""),
)

#: By name.
REPORTS: Final[Mapping[str, Report]] = {report.name: report for report in _ALL}
