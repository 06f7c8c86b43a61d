"""Figures: what was measured, round by round; ratios are taken within a round and reported as median and range."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from benchmarks.common import console

#: How often a round may be void before the measurement is given up, for each round that is wanted.
MAX_TRIES = 3


class Sample(Protocol):
    """What one run gives."""

    @property
    def rate(self) -> float:
        """Of whatever it did, per second."""

    @property
    def is_void(self) -> bool:
        """Something else than what was measured was the limit."""


AnySample = TypeVar("AnySample", bound=Sample)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table: a value for each round. `durability` says what survives when the power goes."""

    name: str
    values: tuple[float, ...]
    unit: str = "/s"
    durability: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """What it is judged by."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{number(self.median)} {self.unit} ({number(min(self.values))} to {number(max(self.values))})"


class Book:
    """All figures of one run of the suite, by name, and what could not be measured, with the reason."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.missing: dict[str, str] = {}

    def add(
        self, name: str, values: Sequence[float], unit: str = "/s", *, durability: str = "", note: str = ""
    ) -> None:
        """Enter a figure; a name comes once."""
        if name in self.figures:
            raise ValueError(f"{name} is measured twice")
        self.figures[name] = Figure(name=name, values=tuple(values), unit=unit, durability=durability, note=note)

    def add_ratio(self, name: str, over: Sequence[float], under: Sequence[float], *, note: str = "") -> None:
        """Enter the ratios of two things measured in the same rounds."""
        self.add(name, [a / b for a, b in zip(over, under, strict=True)], "x", note=note)

    def miss(self, name: str, why: str) -> None:
        """Say what could not be measured."""
        self.missing[name] = why


def alternate(rounds: int, runs: Mapping[str, Callable[[], AnySample]]) -> dict[str, list[AnySample]]:
    """Samples of each run, one a round; who goes first moves on, and a round with a void sample is thrown away."""
    samples: dict[str, list[AnySample]] = {name: [] for name in runs}
    names, valid = list(runs), 0
    for attempt in range(MAX_TRIES * rounds):
        first = attempt % len(names)
        taken = {name: runs[name]() for name in names[first:] + names[:first]}
        if void := [name for name, sample in taken.items() if sample.is_void]:
            console.print(f"A round is void: the load generator was the limit of {', '.join(void)}.")
            continue
        for name, sample in taken.items():
            samples[name].append(sample)
        valid += 1
        if valid == rounds:
            return samples
    raise RuntimeError(f"of {MAX_TRIES * rounds} rounds {valid} were not void: the load generator needs a core")


def rates(samples: Sequence[Sample]) -> list[float]:
    """The rate of each round."""
    return [sample.rate for sample in samples]


def number(value: float) -> str:
    """Three digits that count; more where they stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
