"""What a person at the terminal is told when the service, the terminal or the pipe goes away."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import COMMAND, RunningService, clean_environment, cli, running_service

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture
def closed_url() -> str:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def foreign_url() -> Iterator[str]:
    """The address of an HTTP server that is something else."""
    code = (
        "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler); "
        "print(s.server_port, flush=True); s.serve_forever()"
    )
    command = [COMMAND[0], "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("plugins",),
        ("show", "x"),
        ("result", "x"),
        ("cancel", "x"),
        ("submit", "-p", "x", "--payload", "{}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_service_every_command_says_how_to_start_one(
    closed_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = cli(*arguments, cwd=tmp_path, JOBSERVICE_URL=closed_url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        f"jobservice: No service answers at {closed_url}: connection refused",
        "Start it with `jobservice serve`, or name another: --url, JOBSERVICE_URL.",
    ]


def test_another_server_is_not_taken_for_the_service(foreign_url: str, tmp_path: Path) -> None:
    done = cli("jobs", "--url", foreign_url, cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@dataclasses.dataclass(slots=True)
class Watcher:
    """`submit --wait` at a terminal that has drawn its job as RUNNING."""

    process: subprocess.Popen[str]
    terminal: int
    drawn: bytes = b""

    def read_until(self, wanted: bytes | None) -> None:
        """Read the terminal until `wanted` is drawn, or, for None, until the command has let go of it."""
        while wanted is None or wanted not in self.drawn:
            try:
                self.drawn += os.read(self.terminal, 4096)
            except OSError:  # how Linux says that the other side is closed
                assert wanted is None, self.drawn
                return

    def end(self) -> tuple[int, str]:
        """Exit code and stdout."""
        self.read_until(None)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


@contextlib.contextmanager
def watching(service: RunningService, seconds: float) -> Iterator[tuple[str, Watcher]]:
    """A running job of so many seconds and somebody who watches it."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "submit", "--plugin", "sleep", "--field", f"seconds={seconds}", "--wait", "--json"],
        cwd=service.folder,
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        os.close(stderr)
        try:
            watcher = Watcher(process, terminal)
            watcher.read_until(b"RUNNING")
            job_id = re.search(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", watcher.drawn)
            assert job_id
            yield job_id[0].decode(), watcher
        finally:
            process.kill()
            os.close(terminal)


def test_ctrl_c_while_waiting_leaves_the_job_and_says_how_to_follow_it(service: RunningService) -> None:
    with watching(service, seconds=60) as (job_id, watcher):
        watcher.process.send_signal(signal.SIGINT)
        assert watcher.end() == (130, "")
    assert f"jobservice show {job_id} --wait".encode() in watcher.drawn
    assert b"Traceback" not in watcher.drawn
    assert json.loads(service.cli("show", job_id, "--json").stdout)["status"] == "RUNNING"
    assert service.cli("cancel", job_id).returncode == 0


def test_progress_is_drawn_while_waiting(service: RunningService) -> None:
    with watching(service, seconds=4) as (_, watcher):
        watcher.read_until(b"of 4 s")
        code, out = watcher.end()
    assert (code, json.loads(out)["status"]) == (0, "SUCCESS")


def test_a_service_killed_while_somebody_waits_is_told_with_exit_code_3(own_service: RunningService) -> None:
    with watching(own_service, seconds=60) as (job_id, watcher):
        own_service.process.kill()
        assert watcher.end() == (3, "")
    assert f"jobservice show {job_id} --wait".encode() in watcher.drawn
    assert b"Traceback" not in watcher.drawn


def test_a_wait_outlives_a_restart_of_the_service(own_service: RunningService) -> None:
    with watching(own_service, seconds=4) as (job_id, watcher):
        own_service.process.kill()
        own_service.process.wait()
        with running_service(own_service.folder, port=int(own_service.url.rpartition(":")[2])):
            code, out = watcher.end()
    record = json.loads(out)
    assert (code, record["id"], record["status"]) == (0, job_id, "SUCCESS")


def test_a_closed_pipe_is_no_reason_to_complain(service: RunningService) -> None:
    for command in ("jobs --limit 500", "jobs --limit 500 --json", "plugins ocr", "config"):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {' '.join(COMMAND)} {command} | true; echo ${{PIPESTATUS[0]}}"],
            env=service.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "141")


@pytest.mark.parametrize(
    ("command", "stream"),
    [("--help", "stdout"), ("submit --help", "stdout"), ("config", "stdout"), ("nonsense", "stderr")],
)
def test_the_exit_code_tells_that_nobody_reads(tmp_path: Path, command: str, stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    done = subprocess.run(
        [*COMMAND, *command.split()], cwd=tmp_path, env=clean_environment(), timeout=60, check=False, **streams
    )
    os.close(writer)
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (141, b"", b"")
