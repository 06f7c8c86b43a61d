"""What the figures must reach: a gate that holds, and an aim to reach for; one table, and the judge."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence

from benchmarks.cpu_jobs import PLAIN, WITH_PICTURES
from benchmarks.databases import NAMES
from benchmarks.figures import Book, Figure, number
from benchmarks.growth import MEASURED
from benchmarks.memory import MEMORY
from benchmarks.peers import BEST_DURABLE, BEST_REDIS

#: The worst of all measurements of the run.
LAG = "event-loop lag p99.9, worst of all runs"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """`figure` is the name of what is judged, by its median. With `at_most` less is better."""

    figure: str
    gate: float
    aim: float
    at_most: bool = False
    only_full: bool = False  # the short form cannot measure it

    def holds(self, value: float, bound: float) -> bool:
        """Whether the value is on the right side of a bound, or on it."""
        return value <= bound if self.at_most else value >= bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.gate:g}, aim {self.aim:g}"


class Result(enum.StrEnum):
    """How a figure stands."""

    AIM = "aim reached"
    GATE = "gate holds"
    SHORT = "FALLS SHORT"
    MISSING = "NOT MEASURED"
    LATER = "full form only"

    @property
    def is_failure(self) -> bool:
        """Whether the gate fails; what was not measured is not known to hold."""
        return self in (Result.SHORT, Result.MISSING)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A gate, its figure if there is one, and how it stands."""

    gate: Gate
    figure: Figure | None
    result: Result
    why: str = ""

    def __str__(self) -> str:
        if self.figure is None:
            return f"{self.gate.figure}: {self.result}{f' ({self.why})' if self.why else ''}"
        bound = f"{'at most' if self.gate.at_most else 'at least'} {self.gate.gate:g}"
        text = f"{self.gate.figure}: {number(self.figure.median)} {self.figure.unit}, wanted {bound}"
        if self.result is not Result.SHORT:
            return text
        gap = abs(self.figure.median / self.gate.gate - 1)
        return f"{text}: {gap:.0%} too {'much' if self.gate.at_most else 'little'}"


def _gates() -> Iterator[Gate]:
    for figure, sqlite, postgresql in (
        ("durable submit / echo", (0.40, 0.55), (0.35, 0.50)),
        ("live end-to-end / echo", (0.24, 0.40), (0.17, 0.30)),
        ("GET of a finished job / echo", (0.55, 0.75), (0.40, 0.60)),
        ("drain / echo", (0.70, 1.2), (0.50, 1.0)),
    ):
        yield Gate(figure=f"{figure}, {NAMES['sqlite']}", gate=sqlite[0], aim=sqlite[1])
        yield Gate(figure=f"{figure}, {NAMES['postgresql']}", gate=postgresql[0], aim=postgresql[1])
    yield Gate(figure=BEST_DURABLE, gate=2, aim=4)
    yield Gate(figure=BEST_REDIS, gate=1, aim=1.5)
    yield Gate(figure="POST to result at 50/s, SQLite: p50 / one insert", gate=4, aim=2, at_most=True)
    yield Gate(figure="POST to result at 50/s, SQLite: p99 / one insert", gate=12, aim=6, at_most=True)
    yield Gate(figure=f"{PLAIN} / two bare processes", gate=0.93, aim=0.98)
    yield Gate(figure=f"{WITH_PICTURES} / two bare processes", gate=0.88, aim=0.95)
    yield Gate(figure="5 MB pictures submitted / bare handler", gate=0.6, aim=0.9)
    for kind in NAMES.values():
        for name in MEASURED:
            yield Gate(figure=f"{name}, most rows / fewest, {kind}", gate=1.5, aim=1.15, at_most=True)
    yield Gate(figure="CPU of an accepted job, two API processes / one", gate=1.15, aim=1.05, at_most=True)
    yield Gate(figure=MEMORY, gate=1.2, aim=1.05, at_most=True, only_full=True)
    yield Gate(figure=LAG, gate=20, aim=10, at_most=True)


GATES: tuple[Gate, ...] = tuple(_gates())


def judge(book: Book, *, is_short: bool, gates: Sequence[Gate] = GATES) -> list[Verdict]:
    """How each gate stands by what is in the book."""
    return [_judge(book, gate, is_short=is_short) for gate in gates]


def _judge(book: Book, gate: Gate, *, is_short: bool) -> Verdict:
    figure = book.figures.get(gate.figure)
    if figure is None:
        result = Result.LATER if gate.only_full and is_short else Result.MISSING
        return Verdict(gate=gate, figure=None, result=result, why=book.missing.get(gate.figure, ""))
    if gate.holds(figure.median, gate.aim):
        result = Result.AIM
    else:
        result = Result.GATE if gate.holds(figure.median, gate.gate) else Result.SHORT
    return Verdict(gate=gate, figure=figure, result=result)
