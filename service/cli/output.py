"""What is asked for on stdout, everything else on stderr; text of others cannot steer the terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from service.models import JobStatus

#: Tables for a pipe are as wide as their content needs, not as a terminal that is not there.
_PIPE_WIDTH: Final = 250
_LINE_WIDTH: Final = 88
#: Between columns; and what a column has at least that may be folded.
_BETWEEN: Final = 2
_FOLDED_WIDTH: Final = 40
_STYLE_OF: Final[Mapping[str, str]] = {
    JobStatus.PENDING: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.SUCCESS: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
    "available": "green",
    "loading": "yellow",
    "unavailable": "red",
    "valid": "green",
    "expired": "yellow",
    "revoked": "red",
    "active": "green",
    "paused": "yellow",
}
#: Control characters of foreign text could steer the terminal; tab and newline cannot.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):(?:[^?]*|[^@]*)(?=@)|((?<=[?&]password=)[^&]*)", re.IGNORECASE)


class Terminal(Console):
    """A console that raises `BrokenPipeError` when nobody reads it any more, as everything does that is written to."""

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught when it calls this; by itself it would end the process with 1."""
        raise


def put(value: Any) -> None:
    """Text, or one JSON document, on stdout."""
    sys.stdout.write((value if isinstance(value, str) else json_text(value)) + "\n")


def json_text(value: Any) -> str:
    """JSON text that stdout can take, whatever its encoding."""
    return json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() != "utf-8")


def print_table(table: Table) -> None:
    """A table on stdout. On a terminal that is too narrow its lines go on in the next one: nothing is cut off."""
    terminal = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    terminal.width = max(terminal.width, _needed(table, terminal))
    with terminal.capture() as capture:
        terminal.print(table)
    # Cells are padded up to the widest one.
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _needed(table: Table, terminal: Console) -> int:
    """The width in which no column is cut, and what may be folded is not folded to shreds."""
    widths = [
        max(Measurement.get(terminal, terminal.options, cell).maximum for cell in (column.header, *column.cells))
        for column in table.columns
    ]
    least = (
        width if column.no_wrap else min(width, _FOLDED_WIDTH)
        for column, width in zip(table.columns, widths, strict=True)
    )
    return sum(least) + _BETWEEN * len(widths)


def say(text: str, *, style: str = "") -> None:
    """Text for the person at the terminal, on stderr."""
    Terminal(stderr=True, highlight=False, soft_wrap=True).print(safe(text), style=style)


def table_of(*columns: str) -> Table:
    """An empty table with a header."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _BETWEEN, 0, 0))
    for column in columns:
        # The last column is the one that may be long.
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    return table


def sheet(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Names and what they stand for, without the empty ones."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    for name, value in rows:
        if isinstance(value, Text) or value.strip():
            sheet.add_row(name, value if isinstance(value, Text) else safe(value.strip()))
    return sheet


def coloured(status: str) -> Text:
    """A status or state in its colour."""
    return Text(status, style=_STYLE_OF.get(status, ""))


def moment(at: str | None) -> str:
    """A timestamp to the second, for people."""
    return at[:19].replace("T", " ") if at else ""


def safe(text: str) -> Text:
    """Text of others that cannot steer the terminal, for tables."""
    return Text(clean(text))


def pretty(value: Any) -> str:
    """`laid_out`, and unable to steer the terminal."""
    return clean(laid_out(value))


def clean(text: str) -> str:
    """Text of others that cannot steer the terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def laid_out(value: Any, indent: str = "") -> str:
    """JSON text for people: what fits into a line is in one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= _LINE_WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        items = [inner + laid_out(item, inner) for item in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    members = [
        f"{inner}{json.dumps(name, ensure_ascii=False)}: {laid_out(item, inner)}" for name, item in value.items()
    ]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"


def redacted(url: str) -> str:
    """An address without its password."""
    return _PASSWORD.sub(lambda match: f"{match[1]}:***" if match[1] is not None else "***", url)
