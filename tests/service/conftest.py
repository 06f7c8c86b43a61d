"""The real service as a process that a test may kill and start again on the same data."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from service.failpoints import VARIABLE
from service.tool_runner.processes import MARKER
from tests.built_in import install_only
from tests.hostile_plugins import install


class Process:
    """`jobservice serve` on `data_dir`, with these of the plugins built in and these of the hostile ones installed."""

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        prefix: Sequence[str] = (),
        built_in: Sequence[str] = ("echo", "sleep"),
        plugins: Sequence[str] = (),
        failpoints: str | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
        environment["PYTHONPATH"] = str(install_only(data_dir.parent, built_in))
        if plugins:
            environment["PYTHONPATH"] += f":{install(data_dir.parent, plugins)}"
        if failpoints is not None:
            environment[VARIABLE] = failpoints
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-m",
                    "service",
                    "serve",
                    "--port",
                    "0",
                    "--data-dir",
                    str(data_dir),
                    *options,
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.popen.stdout
        urls = (re.search(r"http://\S+", line) for line in self.popen.stdout)
        found = next((url for url in urls if url), None)
        assert found, f"it did not start:\n{self.log.read_text()}"
        self.url = found[0]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.kill()
        assert self.popen.stdout
        self.popen.stdout.close()

    def submit(self, plugin: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        body = {"plugin": plugin, "payload": payload or {}, **options}
        answer = requests.post(f"{self.url}/v1/jobs", json=body, timeout=30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str, wait: int | None = None) -> dict[str, Any]:
        query = f"?wait={wait}" if wait else ""
        record: dict[str, Any] = requests.get(f"{self.url}/v1/jobs/{job_id}{query}", timeout=60).json()
        return record

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = requests.get(f"{self.url}/v1/jobs/{job_id}/attempts", timeout=30).json()["items"]
        return items

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.data_dir / 'jobs.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(text).fetchall()

    def workers(self) -> list[int]:
        """Living workers, and what they have started, of any service on this data."""
        return [pid for pid in marked_processes() if str(self.data_dir) in working_directory(pid)]


def marked_processes() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and f"{MARKER}=".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def working_directory(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def until(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    """What `condition` returns once it is true."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)
    return value


def metric(service: Process, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = requests.get(f"{service.url}/metrics", timeout=5).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a service on this test's data, with options; started again, it finds what the one before has left."""
    started: list[Process] = []

    def start(*options: str, **more: Any) -> Process:
        started.append(Process(tmp_path / "data", *options, **more))
        return started[-1]

    yield start
    for process in started:
        process.close()
