"""The one histogram of all reports: buckets of durations whose bounds never change, and percentiles from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Each bucket reaches a fifth further than the one below it, up to 31 days.
_GROWTH_PERCENT: Final = 120
_LONGEST_MS: Final = 31 * 86_400_000


def _bounds() -> tuple[int, ...]:
    bounds = [0]
    while bounds[-1] < _LONGEST_MS:
        bounds.append(max(bounds[-1] + 1, bounds[-1] * _GROWTH_PERCENT // 100))
    return tuple(bounds)


#: The longest duration in each bucket, in milliseconds. Up to 10 ms each millisecond has a bucket of its own.
BOUNDS_MS: Final = _bounds()
#: What is longer than every bucket counts in the last one.
LAST_MS: Final = BOUNDS_MS[-1]

#: The duration in seconds that stands for a bucket, by its bound: at most 10 % from every duration in it.
VALUE_S: Final[Mapping[int, float]] = {
    bound: round(2 * (below + 1) * bound / (below + 1 + bound) / 1000, 6) if bound else 0.0
    for below, bound in zip((-1, *BOUNDS_MS), BOUNDS_MS, strict=False)
}

#: The percentiles that reports have.
PERCENTILES: Final = (50, 95, 99)


def percentile_s(counts: Mapping[int, int], percent: int) -> float | None:
    """The duration in seconds that `percent` of all do not exceed; None without any. `counts` is by bound in ms."""
    total = sum(counts.values())
    passed = 0
    for bound in sorted(counts):
        passed += counts[bound]
        if passed and passed * 100 >= percent * total:
            return VALUE_S[bound]
    return None
