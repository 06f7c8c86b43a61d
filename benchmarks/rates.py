"""Requests a second beside the bare echo: submission, live end-to-end, GET of a finished job, the first list page.

*Live end-to-end*: for some seconds 32 clients post no-op jobs in a closed loop, each its next job when the last one was
accepted; workers run them meanwhile. The rate is of all jobs accepted over the time from the first POST until nothing
is due or runs any more, as committed and seen by another connection: what was left over when the load ended is paid
for. Where that takes very long, it is of what has succeeded until then. Each run has a service and a database of its
own. A client that waited for its job (`Prefer: wait`) would measure the way back too, and would keep no more than 32
jobs under way, which no peer is held to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import steady
from benchmarks.common import Server
from benchmarks.context import FAR_FUTURE, PAYLOAD, Context, Ours, bare, ours
from benchmarks.databases import DURABILITY, NAMES, count_finished, fresh_database, settle
from benchmarks.figures import Sample, alternate, rates
from benchmarks.filling import ENDED, prepare
from benchmarks.wrk import Load, wrk_get, wrk_post

PATH = "/v1/jobs"
ECHO = "benchmarks.echo"
LIVE = "live end-to-end"
#: How long what was left over is waited for, as a multiple of the run.
PATIENCE, SHORT_PATIENCE = 15, 3
#: How many finished jobs are asked for in turn.
ASKED_FOR = 1_000

LATER = json.dumps({"plugin": "echo", "payload": PAYLOAD, "run_at": FAR_FUTURE}, separators=(",", ":")).encode()
NOW = json.dumps({"plugin": "echo", "payload": PAYLOAD}, separators=(",", ":")).encode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Jobs a second from POST to the committed result."""

    rate: float
    load: Load

    @property
    def is_void(self) -> bool:
        """The generator was the limit."""
        return self.load.is_void


def whole(load: Load) -> Load:
    """A run in which nothing was refused. Raises `RuntimeError` otherwise."""
    if load.refused:
        raise RuntimeError(f"{load.refused} of {load.requests} requests were refused")
    return load


def echo(server: Server, seconds: float) -> Load:
    """The bare echo."""
    return whole(wrk_post(server, PATH, LATER, seconds=seconds))


def submit(service: Ours, seconds: float) -> Load:
    """Jobs that are due in the far future, so that only submission is measured."""
    return whole(wrk_post(service.server, PATH, LATER, seconds=seconds))


def live(service: Ours, seconds: float, *, patience_s: float = 600) -> Live:
    """Jobs due at once, until the last result is committed, or until patience ends."""
    before, began = count_finished(service.rows), time.monotonic()
    load = whole(wrk_post(service.server, PATH, NOW, seconds=seconds))
    try:
        ended = settle(service.rows, timeout_s=patience_s)
    except TimeoutError:
        ended = time.monotonic()
        return Live(rate=(count_finished(service.rows) - before) / (ended - began), load=load)
    finished = count_finished(service.rows) - before
    if finished < load.requests:
        raise RuntimeError(f"{load.requests} jobs were accepted, and {finished} succeeded")
    return Live(rate=finished / (ended - began), load=load)


def fresh_live(context: Context, kind: str) -> Live:
    """`live` on a service of its own, whose workers are warm."""
    with ours(context, kind) as service:
        steady.run(service, 1)
        patience_s = context.seconds * (SHORT_PATIENCE if context.is_short else PATIENCE)
        with context.lags.watch(f"{LIVE}, {NAMES[kind]}", service.server.url):
            return live(service, context.seconds, patience_s=patience_s)


def get(service: Ours, seconds: float) -> Load:
    """Finished jobs, one after the other."""
    found = service.rows.fetch(
        f"SELECT id FROM jobs WHERE status = 'SUCCESS' AND tenant = 'default' ORDER BY id DESC LIMIT {ASKED_FOR}"
    )
    return whole(wrk_get(service.server, [f"{PATH}/{job_id}" for (job_id,) in found], seconds=seconds))


def first_page(service: Ours, seconds: float) -> Load:
    """The first page of the list, as long as it comes unasked."""
    return whole(wrk_get(service.server, [PATH], seconds=seconds))


@contextlib.contextmanager
def warm(context: Context, kind: str) -> Iterator[tuple[Server, Ours]]:
    """The bare echo and the service, on a database with jobs that have ended, both after their first second of load."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_database(kind, Path(folder), context.postgres))
        asyncio.run(prepare(url, 2 * ASKED_FOR, ENDED))
        plain = stack.enter_context(bare(ECHO))
        service = stack.enter_context(ours(context, kind, database_url=url))
        echo(plain, 1)
        submit(service, 1)
        yield plain, service


def measure(context: Context) -> None:
    """Enter all rates, beside those of the echo in the same rounds, for each database."""
    for kind in context.kinds:
        with warm(context, kind) as (plain, service):
            runs: dict[str, Callable[[], Sample]] = {
                "bare echo": partial(echo, plain, context.seconds),
                LIVE: partial(fresh_live, context, kind),
            }
            for name, run in (
                ("durable submit", submit),
                ("GET of a finished job", get),
                ("first list page", first_page),
            ):
                one = partial(run, service, context.seconds)
                runs[name] = context.lags.watched(f"{name}, {NAMES[kind]}", one, service.server.url)
            samples = alternate(context.rounds, runs)
            _check_stored(service)
        limit = rates(samples.pop("bare echo"))
        context.book.add(f"bare echo, beside {NAMES[kind]}", limit, durability="none: answers from memory")
        for name, taken in samples.items():
            durability = DURABILITY[kind] if "GET" not in name and "list" not in name else "reads only"
            context.book.add(f"{name}, {NAMES[kind]}", rates(taken), durability=durability)
            context.book.add_ratio(f"{name} / echo, {NAMES[kind]}", rates(taken), limit)


def _check_stored(service: Ours) -> None:
    with urllib.request.urlopen(f"{service.server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    accepted = sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("jobservice_jobs_submitted_total")
    )
    stored = service.rows.fetch("SELECT count(*) FROM jobs")[0][0]
    if stored < accepted:
        raise RuntimeError(f"{accepted:.0f} jobs were accepted, and {stored} rows found afterwards")
