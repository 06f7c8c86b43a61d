"""CPU time of an accepted job with two API processes on one PostgreSQL, as a multiple of that with one.

The processes listen on ports of their own and the clients are divided among them, as a shared port would do. The CPU
time of both is counted in both cases, what the idle one does for itself included.
"""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.common import Server, cpu_seconds
from benchmarks.context import Context, ours
from benchmarks.databases import DURABILITY
from benchmarks.figures import alternate
from benchmarks.rates import LATER, PATH, whole
from benchmarks.wrk import CONNECTIONS, Load, wrk_post


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Jobs accepted a second, and the CPU time of each in all API processes."""

    rate: float
    cpu_us: float
    is_void: bool


def submit(servers: list[Server], used: int, seconds: float) -> Accepted:
    """Submit to the first `used` servers at once."""
    before = sum(cpu_seconds(server.pid) for server in servers)
    with ThreadPoolExecutor(used) as threads:

        def load(server: Server) -> Load:
            return whole(wrk_post(server, PATH, LATER, seconds=seconds, connections=CONNECTIONS // used))

        loads = list(threads.map(load, servers[:used]))
    cpu_s = sum(cpu_seconds(server.pid) for server in servers) - before
    return Accepted(
        rate=sum(load.rate for load in loads),
        cpu_us=cpu_s / sum(load.requests for load in loads) * 1e6,
        is_void=any(load.is_void for load in loads),
    )


def measure(context: Context) -> None:
    """Enter the CPU times and their ratio."""
    if "postgresql" not in context.kinds:
        return
    assert context.postgres is not None
    url = context.postgres.new_database()
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(ours(context, "postgresql", database_url=url)) for _ in range(2)]
        servers = [service.server for service in services]
        submit(servers, 2, 1)
        samples = alternate(
            context.rounds,
            {
                str(used): context.lags.watched(
                    "two API processes",
                    partial(submit, servers, used, context.seconds),
                    *(server.url for server in servers[:used]),
                )
                for used in (1, 2)
            },
        )
    for used, name in ((1, "one API process"), (2, "two API processes")):
        taken = samples[str(used)]
        durability = DURABILITY["postgresql"]
        context.book.add(f"durable submit, {name}", [each.rate for each in taken], durability=durability)
        context.book.add(f"CPU of an accepted job, {name}", [each.cpu_us for each in taken], "us")
    context.book.add_ratio(
        "CPU of an accepted job, two API processes / one",
        [each.cpu_us for each in samples["2"]],
        [each.cpu_us for each in samples["1"]],
    )
