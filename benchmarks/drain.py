"""How fast a backlog goes: a service started on a database of queued no-op jobs, each claimed from there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from pathlib import Path

from benchmarks.context import Context, bare, ours
from benchmarks.databases import DURABILITY, NAMES, completion_rate, count_finished, fresh_database, settle
from benchmarks.figures import Sample, alternate, rates
from benchmarks.filling import QUEUED, prepare
from benchmarks.rates import ECHO, echo

JOBS = 20_000
#: Of a slow drain the beginning is enough.
MAX_S = 60.0
SHORT_MAX_S = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Jobs that ended a second, between the second and the 98th percent."""

    rate: float
    is_void: bool = False


def drain(context: Context, kind: str) -> Drained:
    """Fill a database, start the service on it, wait until all has run, or for as long as a drain is watched."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_database(kind, Path(folder), context.postgres))
        asyncio.run(prepare(url, JOBS, QUEUED, days=0.01))
        service = stack.enter_context(ours(context, kind, database_url=url))
        with context.lags.watch(f"drain, {NAMES[kind]}", service.server.url), contextlib.suppress(TimeoutError):
            settle(service.rows, timeout_s=SHORT_MAX_S if context.is_short else MAX_S)
        count_finished(service.rows)  # that none ended otherwise
        return Drained(rate=completion_rate(service.rows))


def measure(context: Context) -> None:
    """Enter the rate of each database, beside the echo of the same rounds."""
    for kind in context.kinds:
        with bare(ECHO) as plain:
            echo(plain, 1)

            def limit() -> Sample:
                return echo(plain, context.seconds)  # run within this pass of the loop

            def drained() -> Sample:
                return drain(context, kind)  # noqa: B023  # run within this pass of the loop

            samples = alternate(context.rounds, {"echo": limit, "drain": drained})
        context.book.add(f"drain, {NAMES[kind]}", rates(samples["drain"]), durability=DURABILITY[kind])
        context.book.add_ratio(f"drain / echo, {NAMES[kind]}", rates(samples["drain"]), rates(samples["echo"]))
