"""Reports as JSON, and their shapes for the description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from typing_extensions import TypedDict

from service.report_models import ColumnType, Report, ReportColumn


class ReportColumnView(TypedDict):
    """A column: `type` is id, text, time, integer, number or json; `unit` None where there is none."""

    name: str
    type: str
    unit: str | None
    meaning: str


class ReportLinksView(TypedDict):
    """Where its rows are, in each form."""

    json: str
    csv: str
    ndjson: str
    parquet: str


class ReportView(TypedDict):
    """A report: `view` is its name in SQL, `times` those by which a window of it may be asked for."""

    name: str
    view: str
    about: str
    columns: list[ReportColumnView]
    times: list[str]
    links: ReportLinksView


class ReportListView(TypedDict):
    """The reports that the caller may read."""

    items: list[ReportView]


def report_url(name: str) -> str:
    """Where a report is."""
    return f"/v1/reports/{name}"


def report_view(report: Report) -> ReportView:
    """What is told of a report."""
    url = report_url(report.name)
    return {
        "name": report.name,
        "view": report.view,
        "about": report.about,
        "columns": [_column_view(column) for column in report.columns],
        "times": list(report.times),
        "links": {
            "json": url,
            "csv": f"{url}?format=csv",
            "ndjson": f"{url}?format=ndjson",
            "parquet": f"{url}?format=parquet",
        },
    }


def _column_view(column: ReportColumn) -> ReportColumnView:
    return {"name": column.name, "type": column.type, "unit": column.unit or None, "meaning": column.meaning}


_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_SCHEMAS: Final[Mapping[ColumnType, Mapping[str, Any]]] = {
    ColumnType.ID: {"type": ["string", "null"], "format": "uuid"},
    ColumnType.TEXT: _TEXT_OR_NULL,
    ColumnType.TIME: {"type": ["string", "null"], "format": "date-time"},
    ColumnType.INTEGER: {"type": ["integer", "null"]},
    ColumnType.NUMBER: {"type": ["number", "null"]},
    ColumnType.JSON: {"type": ["object", "array", "null"]},
}


def page_schema(report: Report) -> Mapping[str, Any]:
    """JSON Schema of a page of rows."""
    row = {"type": "object", "additionalProperties": False, "properties": dict(_properties(report.columns))}
    members: dict[str, Any] = {
        "items": {"type": "array", "items": row},
        "next": {**_TEXT_OR_NULL, "description": "The `cursor` of the next page"},
        "as_of": {**_SCHEMAS[ColumnType.TIME], "description": "As of when the reports are"},
        "schema_version": {"type": "integer", "description": "Version of the reporting contract"},
    }
    if report.times:
        members["until"] = {**_SCHEMAS[ColumnType.TIME], "description": "Where the window ends, if one was asked for"}
    return {"type": "object", "required": [*members], "properties": members}


def _properties(columns: Iterable[ReportColumn]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for column in columns:
        about = f"{column.meaning} ({column.unit})" if column.unit else column.meaning
        yield column.name, {**_SCHEMAS[column.type], "description": about}
