"""The table of gates is what was agreed, and its judge names what falls short, and by how much."""

from __future__ import annotations

import pytest

from benchmarks.figures import Book, alternate
from benchmarks.gates import GATES, LAG, Gate, Result, judge
from benchmarks.growth import MEASURED

#: What was agreed: gate and aim of each figure.
AGREED = {
    "durable submit / echo, SQLite": (0.40, 0.55),
    "durable submit / echo, PostgreSQL": (0.35, 0.50),
    "live end-to-end / echo, SQLite": (0.24, 0.40),
    "live end-to-end / echo, PostgreSQL": (0.17, 0.30),
    "GET of a finished job / echo, SQLite": (0.55, 0.75),
    "GET of a finished job / echo, PostgreSQL": (0.40, 0.60),
    "drain / echo, SQLite": (0.70, 1.2),
    "drain / echo, PostgreSQL": (0.50, 1.0),
    "live / best durable peer that stores results": (2, 4),
    "live / best Redis peer": (1, 1.5),
    "POST to result at 50/s, SQLite: p50 / one insert": (4, 2),
    "POST to result at 50/s, SQLite: p99 / one insert": (12, 6),
    "20 ms CPU jobs / two bare processes": (0.93, 0.98),
    "20 ms CPU jobs with 100 KB pictures / two bare processes": (0.88, 0.95),
    "5 MB pictures submitted / bare handler": (0.6, 0.9),
    **{f"{name}, most rows / fewest, {kind}": (1.5, 1.15) for name in MEASURED for kind in ("SQLite", "PostgreSQL")},
    "CPU of an accepted job, two API processes / one": (1.15, 1.05),
    "service memory after 1,000,000 jobs / after 10,000": (1.2, 1.05),
    LAG: (20, 10),
}


def test_the_table_is_complete():
    assert {gate.figure: (gate.gate, gate.aim) for gate in GATES} == AGREED


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.figure)
def test_an_aim_is_beyond_its_gate_and_each_has_another_result(gate: Gate):
    assert gate.holds(gate.aim, gate.gate)
    beyond = 2 * gate.gate if gate.at_most else gate.gate / 2
    for value, result in ((gate.aim, Result.AIM), (gate.gate, Result.GATE), (beyond, Result.SHORT)):
        book = Book()
        book.add(gate.figure, [value], "x")
        (verdict,) = judge(book, is_short=False, gates=[gate])
        assert verdict.result is result
        assert gate.figure in str(verdict)


def test_the_judge_says_by_how_much():
    book = Book()
    book.add("rate", [0.1, 0.2, 0.9], "x")
    book.add("time", [30.0], "ms")
    rate, time = judge(
        book,
        is_short=True,
        gates=[Gate(figure="rate", gate=0.4, aim=0.5), Gate(figure="time", gate=20, aim=10, at_most=True)],
    )
    assert str(rate) == "rate: 0.2 x, wanted at least 0.4: 50% too little"
    assert str(time) == "time: 30 ms, wanted at most 20: 50% too much"


def test_what_was_not_measured_does_not_hold():
    book = Book()
    book.miss("there", "redis-server is not installed")
    gates = [Gate(figure="there", gate=1, aim=2), Gate(figure="a million", gate=1, aim=2, only_full=True)]
    there, million = judge(book, is_short=True, gates=gates)
    assert there.result is Result.MISSING
    assert there.result.is_failure
    assert "redis-server is not installed" in str(there)
    assert million.result is Result.LATER
    assert not million.result.is_failure
    assert judge(book, is_short=False, gates=gates)[1].result.is_failure


class _Run:
    def __init__(self, rate: float, *, is_void: bool = False) -> None:
        self.rate = rate
        self.is_void = is_void


def test_a_round_with_a_void_run_is_thrown_away_and_who_goes_first_moves_on():
    order: list[str] = []

    def run(name: str) -> _Run:
        order.append(name)
        return _Run(len(order), is_void=len(order) == 2)

    samples = alternate(2, {"a": lambda: run("a"), "b": lambda: run("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [sample.rate for sample in samples["a"]] == [4, 5]
    assert [sample.rate for sample in samples["b"]] == [3, 6]
    with pytest.raises(RuntimeError, match="0 were not void"):
        alternate(1, {"a": lambda: _Run(1, is_void=True)})
