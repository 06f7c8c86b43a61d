"""What may be asked of a report, and where a page of it goes on."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, NotRequired

import orjson
from pydantic import Field, with_config
from typing_extensions import TypedDict

from service.api.inputs import TEXT, Moment, PluginName
from service.api.problems import Problem, bad_request
from service.api.text_forms import TextForm
from service.errors import FieldProblem
from service.models import Timestamp, canonical_uuid
from service.report_models import ColumnType, Report, ReportColumn, ReportQuery

#: Rows in one answer of JSON.
MAX_ROWS: Final = 500
DEFAULT_ROWS: Final = 100

_NAMES: Final = "[a-z0-9_]+"
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z", re.ASCII)
_MOST: Final = 2**63

FormatName = Annotated[
    Literal["json", "csv", "ndjson", "parquet"],
    Field(description="The form of the answer; stronger than `Accept`"),
]
_Since = Annotated[Moment, Field(description="Only from this time on")]
_Until = Annotated[Moment, Field(description="Only before this time")]
_Window = TypedDict("_Window", {"from": NotRequired[_Since], "until": NotRequired[_Until]})


@with_config(TEXT)
class ReportInput(TypedDict):
    """What every report takes."""

    format: NotRequired[FormatName]
    columns: NotRequired[
        Annotated[
            str,
            Field(max_length=2_000, description="Only these, in this order"),
            TextForm(f"{_NAMES}(,{_NAMES})*", "must be names of columns, with commas between them"),
        ]
    ]
    limit: NotRequired[
        Annotated[
            int,
            Field(
                ge=1,
                le=_MOST - 1,
                description=f"At most so many rows; JSON has {DEFAULT_ROWS} in an answer, at most {MAX_ROWS}",
            ),
        ]
    ]
    cursor: NotRequired[
        Annotated[
            str,
            Field(max_length=2_000, description="`next` of the answer before"),
            TextForm("[A-Za-z0-9_-]+", "must be the `next` of the answer before"),
        ]
    ]


@with_config(TEXT)
class PluginReportInput(ReportInput):
    """Of reports with a column `plugin`."""

    plugin: NotRequired[PluginName]


@with_config(TEXT)
class PeriodReportInput(PluginReportInput, _Window):
    """Of reports by hours and days."""


@with_config(TEXT)
class JobReportInput(PeriodReportInput):
    """Of reports of jobs and their executions."""

    by: NotRequired[
        Annotated[
            Literal["finished_at", "created_at"],
            Field(description="The time of the job that `from` and `until` are about"),
        ]
    ]


def input_of(report: Report) -> type:
    """What may be asked of `report`."""
    if report.is_of_jobs:
        return JobReportInput
    if report.times:
        return PeriodReportInput
    return PluginReportInput if report.column("plugin") else ReportInput


def report_query(report: Report, tenant: str, given: Any) -> ReportQuery:
    """The service's form of what was asked; raises a 400 problem for a column or cursor that is none of this report,
    and for a window that ends before it begins.

    Any of `from`, `until` and `by` asks for a window: by the first of the report's times, if not said otherwise.
    """
    is_window = any(name in given for name in ("from", "until", "by"))
    query = ReportQuery(
        report=report,
        columns=_columns(report, given.get("columns")),
        tenant=tenant,
        plugin=given.get("plugin"),
        by=given.get("by", report.times[0]) if is_window else None,
        since=_timestamp(given.get("from")),
        until=_timestamp(given.get("until")),
        limit=given.get("limit"),
    )
    if query.since is not None and query.until is not None and query.since > query.until:
        raise _bad("/from", "must not be later than until")
    return query if "cursor" not in given else _resumed(query, given["cursor"])


def cursor(query: ReportQuery, behind: Sequence[Any]) -> str:
    """Where `query` goes on: the end of its window, and the last key that was answered."""
    return base64.urlsafe_b64encode(orjson.dumps([query.until, *behind])).rstrip(b"=").decode()


def _resumed(query: ReportQuery, text: str) -> ReportQuery:
    try:
        until, *after = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, TypeError):
        raise _bad("/cursor", "is not one of this report") from None
    fits = len(after) == len(query.key) and all(map(_fits, query.key, after))
    if not after or not fits or (until is not None and not (query.by and _is_time(until))):
        raise _bad("/cursor", "is not one of this report")
    return dataclasses.replace(query, until=query.until or _timestamp(until), after=after)


def _fits(column: ReportColumn, value: Any) -> bool:
    match column.type:
        case ColumnType.INTEGER:
            return type(value) is int and -_MOST <= value < _MOST
        case ColumnType.ID:
            return type(value) is str and canonical_uuid(value) == value
        case ColumnType.TIME:
            return _is_time(value)
        case _:
            return type(value) is str and "\0" not in value


def _is_time(value: Any) -> bool:
    if type(value) is not str or not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _columns(report: Report, text: str | None) -> Sequence[ReportColumn]:
    if text is None:
        return report.columns
    found = {name: report.column(name) for name in text.split(",")}
    columns = [column for column in found.values() if column is not None]
    if len(columns) < len(found):
        unknown = next(name for name, column in found.items() if column is None)
        raise _bad("/columns", f"{unknown!r} is no column of this report")
    return columns


def _timestamp(checked: str | None) -> Timestamp | None:
    return None if checked is None else Timestamp(checked)


def _bad(pointer: str, message: str) -> Problem:
    return bad_request("A query parameter is not acceptable.", FieldProblem(pointer, message))
