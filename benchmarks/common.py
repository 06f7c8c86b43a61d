"""What the benchmarks share: a real service beside them, percentiles, tables and files of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build/bench"
PLUGINS = ROOT / "benchmarks/plugins"

STOP_S = 60

console = Console(width=110)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server process and where it listens."""

    url: str
    pid: int


@contextlib.contextmanager
def serving(command: Sequence[str], *, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server that prints its URL; it is told to stop, and must end well, when the block is left."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command,
            env=_environment() | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield Server(url=_announced_url(process, log), pid=process.pid)
        finally:
            process.terminate()
            try:
                verdict = f"ended with {process.wait(timeout=STOP_S)}"
            except subprocess.TimeoutExpired:
                process.kill()
                verdict = f"did not stop within {STOP_S} s"
                process.wait()
        if process.returncode not in (0, -signal.SIGTERM):
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} {verdict}:\n{log.read()[-4000:]}")


@contextlib.contextmanager
def job_service(data_dir: Path, *options: str, plugins: bool = False) -> Iterator[Server]:
    """Run `jobservice serve`, settings at their defaults, on a fresh database and a free port.

    With `plugins`, those of `benchmarks/plugins` are installed.
    """
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
    path = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
    with serving(command, environment={"PYTHONPATH": path} if plugins else {}) as server:
        yield server


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}


def _announced_url(process: subprocess.Popen[str], log: Any) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"http://\S+:\d+", line):
            return found[0]
    log.seek(0)
    raise RuntimeError(f"The server ended without saying where it listens:\n{log.read()[-4000:]}")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory of one process that is in RAM now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least `q` (0..1) of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Numbers to the right, names to the left."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def save(name: str, results: dict[str, Any]) -> None:
    """Write the results, and what they were measured on, to build/bench/`name`.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")
    console.print(f"Written to {path.relative_to(ROOT)}")


def _cpu_model() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()
