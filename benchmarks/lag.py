"""The service's own measurement of its event loop: how late a 10 ms timer wakes it, read from `/metrics`."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

Taken = TypeVar("Taken")

LAG_HISTOGRAM = "jobservice_event_loop_lag_seconds"


def parse_lag(text: str) -> dict[float, float]:
    """Cumulative counts of the lag histogram in an exposition by upper bound in seconds."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{LAG_HISTOGRAM}_bucket"
    }


def lag_bound_ms(counts: Mapping[float, float], q: float) -> float:
    """Upper bound of the bucket that holds quantile `q` of what was observed."""
    total = counts[float("inf")]
    if not total:
        raise RuntimeError(f"{LAG_HISTOGRAM} observed nothing")
    return next(bound for bound in sorted(counts) if counts[bound] >= q * total) * 1e3


def lag_between(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """What was observed between two readings."""
    return {bound: after[bound] - before[bound] for bound in after}


class LagLog:
    """What the loops of the service were late by, summed over the rounds of each measurement."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[float, float]] = {}

    @contextlib.contextmanager
    def watch(self, name: str, *urls: str) -> Iterator[None]:
        """Add what the services at `urls` observe while the block runs."""
        before = [_read(url) for url in urls]
        yield
        for url, earlier in zip(urls, before, strict=True):
            counts = self._counts.setdefault(name, {})
            for bound, count in lag_between(earlier, _read(url)).items():
                counts[bound] = counts.get(bound, 0) + count

    def watched(self, name: str, run: Callable[[], Taken], *urls: str) -> Callable[[], Taken]:
        """`run`, with what the services at `urls` observe meanwhile added."""

        def watched() -> Taken:
            with self.watch(name, *urls):
                return run()

        return watched

    def bounds_ms(self, q: float) -> dict[str, float]:
        """Upper bounds of quantile `q` of each measurement."""
        return {name: lag_bound_ms(counts, q) for name, counts in self._counts.items() if counts[float("inf")]}


def _read(url: str) -> dict[float, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        return parse_lag(answer.read().decode())
