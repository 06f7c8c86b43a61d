"""The command `report`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from service.cli.failures import UsageError, kind_of
from service.cli.output import clean, json_text, moment, print_table, put, safe, say, table_of
from service.cli.parameters import Service
from service.cli.targets import check_file, whole, write_whole
from service.client import ApiError, Client, Report

_Form = Literal["table", "json", "csv", "ndjson", "parquet"]
_BY_SUFFIX: Final[Mapping[str, _Form]] = {
    ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet", ".json": "json",
}  # fmt: skip
_TABLE_ROWS: Final = 50
#: What may be asked of a report, by its option.
_OPTIONS: Final[Mapping[str, str]] = {
    "columns": "--columns",
    "plugin": "--plugin",
    "since": "--from",
    "until": "--until",
    "by": "--by",
    "limit": "--limit",
}
#: What matters most; some 100 characters wide.
_TABLE_COLUMNS: Final[Mapping[str, str]] = {
    "jobs": "job_id plugin status finished_at queue_s run_s error_type",
    "attempts": "job_id fence plugin outcome finished_at run_s error_type",
    "plugins": "plugin submitted_count pending_count running_count success_rate queue_p95_s run_p95_s last_used_at",
    "hourly": "hour plugin submitted_count succeeded_count failed_count queue_p95_s run_p95_s",
    "daily": "day plugin submitted_count succeeded_count failed_count queue_p95_s run_p95_s",
    "failures": "plugin error_type job_count last_seen_at message_pattern",
    "backlog": "plugin due_count scheduled_count running_count oldest_age_s eta_s",
    "workers": "host pid state started_at running_count attempt_count lost_count busy_total_s",
    "webhooks": "url state pending_count delivered_count exhausted_count last_status_code oldest_pending_age_s",
}

#: Columns that hold a time and do not end in `_at`.
_TIMES: Final = frozenset({"hour", "day", "as_of", "rates_from", "rates_until", "failing_since"})


async def report(
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    format: Annotated[_Form | None, Parameter(name=("--format", "-f"))] = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    columns: str | None = None,
    plugin: str | None = None,
    since: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    by: str | None = None,
    limit: PositiveInt | None = None,
    service: Service = Service(),
) -> None:
    """Print a report, or write it to a file; without NAME list the reports.

    Args:
        name: Which one.
        format: table, json, csv, ndjson or parquet; default: by the name of the file, else a table.
        output: Write it to this file, which appears when it is whole.
        columns: Only these, separated by commas.
        plugin: Only rows of this plugin.
        since: Only from this time on, as 2026-01-31T00:00:00Z.
        until: Only before this time; default: as late as nothing more can come before it.
        by: The time of jobs that is meant, finished_at or created_at.
        limit: At most so many rows; of a table 50 if not given.
    """
    wanted: dict[str, Any] = {"plugin": plugin, "since": since, "until": until, "by": by, "limit": limit}
    wanted["columns"] = columns.split(",") if columns else ()
    if name is None:
        if any((format, output, *wanted.values())):
            raise UsageError("Options are for one of the reports: name it, as `jobservice report jobs`.")
        async with service.client() as client:
            _show_list(service, await client.reports.list())
        return
    form = _form(format, output, as_json=service.json)
    await asyncio.to_thread(check_file, output)
    async with service.client() as client:
        try:
            if form in ("table", "json"):
                await _show_rows(client, name, form, output, wanted)
            else:
                await _save(client.reports.file(name, form, **wanted), output)
        except ApiError as error:
            if kind_of(error) == "unknown-route":
                raise UsageError(f"There is no report {name!r}. See: jobservice report") from error
            if error.status == 400:
                _refuse_foreign(await client.reports.list(), name, wanted)
            raise


def _refuse_foreign(reports: Sequence[Report], name: str, wanted: Mapping[str, Any]) -> None:
    """Raise `UsageError` where something is `wanted` that the report of this name does not take."""
    takes = next((_options_of(each) for each in reports if each.name == name), _OPTIONS)
    foreign = [option for what, option in _OPTIONS.items() if wanted[what] and what not in takes]
    if foreign:
        raise UsageError(f"The report {name} does not take {' or '.join(foreign)}, but {', '.join(takes.values())}.")


def _options_of(report: Report) -> Mapping[str, str]:
    applies = {
        "plugin": any(column.name == "plugin" for column in report.columns),
        "since": bool(report.times),
        "until": bool(report.times),
        "by": len(report.times) > 1,
    }
    return {what: option for what, option in _OPTIONS.items() if applies.get(what, True)}


def _form(form: _Form | None, output: Path | None, *, as_json: bool) -> _Form:
    if form is None and output is not None:
        form = _BY_SUFFIX.get(output.suffix.lower())
    if as_json:
        if form not in (None, "json"):
            raise UsageError(
                f"--json asks for JSON, and --format or the name of the file for {form}: leave one of them."
            )
        return "json"
    if form is None and output is not None:
        raise UsageError(f"{output} does not say what it is: give --format.")
    if form is None:
        return "table"
    if form == "table" and output is not None:
        raise UsageError("A table is for people: --output goes with another --format.")
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: write it to a file with --output.")
    return form


def _show_list(service: Service, reports: Sequence[Report]) -> None:
    if service.json:
        put([each.document for each in reports])
        return
    table = table_of("report", "columns", "by", "what")
    for each in reports:
        table.add_row(each.name, str(len(each.columns)), ", ".join(each.times), safe(each.about))
    print_table(table)


async def _show_rows(client: Client, name: str, form: _Form, output: Path | None, wanted: dict[str, Any]) -> None:
    most = wanted["limit"] or _TABLE_ROWS
    if form == "table":
        # One more tells whether there are more.
        wanted["limit"] = wanted["limit"] or _TABLE_ROWS + 1
        wanted["columns"] = wanted["columns"] or _TABLE_COLUMNS.get(name, "").split()
    rows = [row async for row in client.reports.rows(name, **wanted)]
    if form == "json":
        if output is None:
            put(_listed(map(json_text, rows)))
        else:
            text = _listed(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
            await asyncio.to_thread(write_whole, output, text.encode())
        return
    names = wanted["columns"] or list(rows[0] if rows else ())
    table = table_of(*names)
    for row in rows[:most]:
        table.add_row(*(safe(_cell(column, row[column])) for column in names))
    print_table(table)
    if len(rows) > most:
        sys.stdout.flush()
        say(f"These are the first {most} rows: --limit shows more, --format csv all of them.")


def _listed(rows: Iterable[str]) -> str:
    return "[" + ",\n".join(rows) + "]"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = value if isinstance(value, str) else json_text(value)
    return moment(text) if column.endswith("_at") or column in _TIMES else clean(text)


async def _save(pieces: AsyncIterator[bytes], output: Path | None) -> None:
    """Write `pieces` to stdout, or to a file that appears when it is whole."""
    if output is None:
        async for piece in pieces:
            await asyncio.to_thread(sys.stdout.buffer.write, piece)
        await asyncio.to_thread(sys.stdout.buffer.flush)
        return
    with whole(output) as file:
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)
