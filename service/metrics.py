"""What `/metrics` shows: the instruments of one service process."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service import __version__
from service.errors import ServiceError

#: Whoever asks how a service fares is not to wait for a database that does not answer.
_COUNT_S: Final = 2.0
_LAG_TIMER_S = 0.01
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)
_DELAY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600)
_RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

#: Else each counter and histogram brings a second series with the time of its making, which no reader asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not type it

Count = Callable[[], Awaitable[Mapping[str, float]]]

log = structlog.get_logger(__name__)


class Metrics:
    """The instruments, in a registry of their own so that several services fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("jobservice", "What runs here", registry=self.registry).info({"version": __version__})
        self.submitted = Counter("jobservice_jobs_submitted", "Jobs accepted", ["plugin"], registry=self.registry)
        self.replayed = Counter(
            "jobservice_jobs_replayed", "Submissions answered by an idempotency key", registry=self.registry
        )
        self.transitions = Counter(
            "jobservice_job_transitions", "Committed moves of jobs", ["to", "plugin"], registry=self.registry
        )
        self.stale_writes = Counter(
            "jobservice_stale_writes", "Late results refused because the fence had moved on", registry=self.registry
        )
        self.lost_leases = Counter(
            "jobservice_lost_leases", "Plugins stopped because their lease was lost or could not be renewed",
            registry=self.registry,
        )  # fmt: skip
        self.fired = Counter(
            "jobservice_schedule_jobs", "Jobs made by ticks of schedules", ["plugin"], registry=self.registry
        )
        self.tick_delay = Histogram(
            "jobservice_schedule_delay_seconds", "How long after its tick a job was made", buckets=_DELAY_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.rescued = Counter(
            "jobservice_rescued", "Jobs taken back from a runner that was lost", ["plugin"], registry=self.registry
        )
        self.pruned_jobs = Counter(
            "jobservice_pruned_jobs", "Jobs that were kept for as long as was set", ["plugin"], registry=self.registry
        )
        self.freed_bytes = Counter(
            "jobservice_freed_bytes", "Bytes that retention has deleted, and nobody named", registry=self.registry
        )
        self.removed_files = Counter(
            "jobservice_removed_files", "Files removed that no row named", registry=self.registry
        )
        self.webhook_attempts = Counter(
            "jobservice_webhook_attempts", "Attempts to deliver to webhooks: delivered, failed, exhausted or late",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.run_seconds = Histogram(
            "jobservice_run_seconds", "Execution time of plugins", ["plugin"], buckets=_RUN_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.slow_clients = Counter(
            "jobservice_slow_clients", "Connections closed because their client kept them waiting, by what for",
            ["at"], registry=self.registry,
        )  # fmt: skip
        self.requests = Counter(
            "jobservice_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.batch_size = Histogram(
            "jobservice_writer_batch_size", "Writes in one transaction", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
            registry=self.registry,
        )  # fmt: skip
        self.loop_lag = Histogram(
            "jobservice_event_loop_lag_seconds", "How late the event loop wakes a 10 ms timer", buckets=_LAG_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._counted: list[tuple[Gauge, Count]] = []
        # Finding the child of a label costs more than counting on it.
        self._transitions_of = functools.cache(self.transitions.labels)
        self._run_seconds_of = functools.cache(self.run_seconds.labels)

    def moved(self, to: str, plugin: str) -> None:
        """A job of `plugin` has come to the status `to`, and that is committed."""
        self._transitions_of(to, plugin).inc()

    def ran(self, plugin: str, run_s: float) -> None:
        """A plugin has run for so many seconds."""
        self._run_seconds_of(plugin).observe(run_s)

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Show a value that is read when asked for."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def counted(self, name: str, description: str, label: str, count: Count) -> None:
        """Show a value for each value of `label`, counted when asked for; none where that cannot be done just now."""
        self._counted.append((Gauge(name, description, [label], registry=self.registry), count))

    async def render(self) -> bytes:
        """The text exposition format."""
        counts = [await self._values(count) for _, count in self._counted]
        for (gauge, _), values in zip(self._counted, counts, strict=True):
            gauge.clear()
            for value, number in values.items():
                gauge.labels(value).set(number)
        return generate_latest(self.registry)

    async def _values(self, count: Count) -> Mapping[str, float]:
        try:
            async with asyncio.timeout(_COUNT_S):
                return await count()
        except (TimeoutError, ServiceError) as error:
            log.debug("a metric cannot be counted", error=str(error))
            return {}


async def measure_loop_lag(metrics: Metrics) -> None:
    """Observe for ever how late the event loop is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_TIMER_S
        await asyncio.sleep(_LAG_TIMER_S)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))
