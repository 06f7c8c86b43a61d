"""How fast jobs are accepted durably, as a share of what a bare aiohttp echo reaches in the same minutes.

Both are driven alike: wrk, one thread, 32 keep-alive connections, a JSON POST of about 200 bytes. The service is the
real `jobservice serve` on an empty SQLite file with `synchronous=FULL`; the jobs are for the `echo` plugin and due in
the far future, so that only submission is measured. Rounds alternate; a run whose generator is busier than 90 % of a
core is void.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import sqlite3
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Server, console, job_service, print_table, save, serving
from benchmarks.wrk import Load, require_wrk, wrk_post

AIM = 0.30
PATH = "/v1/jobs"


def body(size: int = 200) -> bytes:
    """A submission of `size` bytes that is due when nobody is there any more."""
    job = {
        "plugin": "echo",
        "payload": {"kind": "report", "count": 42, "tags": ["a", "b"], "text": ""},
        "run_at": "2999-01-01T00:00:00.000Z",
    }
    gap = size - len(json.dumps(job, separators=(",", ":")))
    job["payload"] = {**job["payload"], "text": "x" * gap}  # type: ignore[dict-item]  # a dict, as written above
    return json.dumps(job, separators=(",", ":")).encode()


def rows_in(data_dir: Path) -> int:
    """How many jobs the database holds."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / 'jobs.db'}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])


def measure(echo: Server, service: Server, *, rounds: int, seconds: int) -> list[tuple[Load, Load]]:
    """Valid rounds of (echo, service); who goes first alternates."""
    for server in (echo, service):
        wrk_post(server, PATH, body(), seconds=1)
    valid: list[tuple[Load, Load]] = []
    for number in range(3 * rounds):
        order = (echo, service) if number % 2 == 0 else (service, echo)
        loads = {server: wrk_post(server, PATH, body(), seconds=seconds) for server in order}
        if any(load.is_void for load in loads.values()):
            console.print(f"Round {number + 1} is void: the load generator was the limit.")
            continue
        valid.append((loads[echo], loads[service]))
        if len(valid) == rounds:
            return valid
    raise RuntimeError("Too many rounds were void: give the load generator a core of its own.")


def main() -> int:
    """Measure, print, write build/bench/submit.json; 1 when the median is below the aim or a request was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="length of each run")
    options = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        with serving([sys.executable, "-m", "benchmarks.echo"]) as echo, job_service(data_dir) as service:
            rounds = measure(echo, service, rounds=options.rounds, seconds=options.seconds)
        accepted = sum(load.requests - load.refused for _, load in rounds)
        stored = rows_in(data_dir)
    report(rounds)
    ratios = [mine.rate / bare.rate for bare, mine in rounds]
    median = statistics.median(ratios)
    refused = sum(load.refused for pair in rounds for load in pair)
    console.print(
        f"Durable submission / bare echo: [bold]{median:.2f}[/] ({min(ratios):.2f}-{max(ratios):.2f}), aim {AIM:.2f}. "
        f"{accepted:,} jobs accepted in these rounds, {stored:,} rows found afterwards, {refused} requests refused."
    )
    save(
        "submit",
        {
            "ratio": {"median": median, "low": min(ratios), "high": max(ratios), "aim": AIM},
            "loop": "uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
            "body_bytes": len(body()),
            "rounds": [{"echo": dataclasses.asdict(bare), "submit": dataclasses.asdict(mine)} for bare, mine in rounds],
        },
    )
    return int(median < AIM or refused > 0 or stored < accepted)


def report(rounds: list[tuple[Load, Load]]) -> None:
    """One row a round."""
    columns = ["round", "echo /s", "submit /s", "ratio", "p50 ms", "p99 ms", "CPU us echo", "CPU us submit", "wrk core"]
    rows = [
        [
            str(number),
            f"{bare.rate:,.0f}",
            f"{mine.rate:,.0f}",
            f"{mine.rate / bare.rate:.2f}",
            f"{mine.p50_ms:.1f}",
            f"{mine.p99_ms:.1f}",
            f"{bare.server_cpu_us:.0f}",
            f"{mine.server_cpu_us:.0f}",
            f"{max(bare.generator_share, mine.generator_share):.0%}",
        ]
        for number, (bare, mine) in enumerate(rounds, 1)
    ]
    print_table("Durable submission against a bare aiohttp echo", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
