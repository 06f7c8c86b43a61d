"""Memory of the service process after many jobs, as a multiple of that after few. Takes as long as the jobs do."""

from __future__ import annotations

from benchmarks.common import resident_bytes
from benchmarks.context import Context, ours
from benchmarks.databases import count_finished
from benchmarks.rates import live

MEMORY = "service memory after 1,000,000 jobs / after 10,000"
FEW = 10_000
MANY = 1_000_000
_SLICE_S = 10


def measure(context: Context) -> None:
    """Enter resident memory after each number of jobs, on SQLite; only in the full form."""
    if context.is_short:
        context.book.miss(MEMORY, "takes a million jobs: only in the full form")
        return
    megabytes = {}
    with ours(context, "sqlite") as service, context.lags.watch("a million jobs", service.server.url):
        for jobs in (FEW, MANY):
            while count_finished(service.rows) < jobs:
                live(service, 1 if jobs == FEW else _SLICE_S)
            megabytes[jobs] = resident_bytes(service.server.pid) / 1e6
            context.book.add(f"service memory after {jobs:,} jobs", [megabytes[jobs]], "MB")
    context.book.add_ratio(MEMORY, [megabytes[MANY]], [megabytes[FEW]])
