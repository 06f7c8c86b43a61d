"""What every measurement of the suite is given: how long to measure, on what, and where to enter what it found."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import Server, job_service, serving
from benchmarks.databases import KINDS, PostgresServer, Rows, fresh_database, rows_of
from benchmarks.figures import Book
from benchmarks.lag import LagLog

#: A payload as `echo` takes it; due in the far future it makes a body of 200 bytes.
PAYLOAD = {"kind": "report", "count": 42, "tags": ["a", "b"], "text": "x" * 81}
FAR_FUTURE = "2999-01-01T00:00:00.000Z"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One run of the suite."""

    book: Book
    lags: LagLog
    postgres: PostgresServer | None
    rounds: int
    seconds: float  # of each run
    is_short: bool
    kinds: Sequence[str] = KINDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """A running `jobservice serve`, settings at their defaults, and its database seen from outside."""

    server: Server
    rows: Rows
    database_url: str


@contextlib.contextmanager
def ours(context: Context, kind: str, *, plugins: bool = False, database_url: str | None = None) -> Iterator[Ours]:
    """The service on a fresh database, or on the one at `database_url`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
        url = database_url or stack.enter_context(fresh_database(kind, Path(folder), context.postgres))
        server = stack.enter_context(job_service(Path(folder) / "data", "--database-url", url, plugins=plugins))
        yield Ours(server=server, rows=stack.enter_context(rows_of(url)), database_url=url)


@contextlib.contextmanager
def bare(module: str, *arguments: str) -> Iterator[Server]:
    """A server of these benchmarks that stands for what is possible at all."""
    with serving([sys.executable, "-m", module, *arguments]) as server:
        yield server
