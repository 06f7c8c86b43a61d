"""The service as process 1 of a namespace, as in a container without an init."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.service.conftest import until

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture
def serve_as_first(serve):
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    return lambda *options, **more: serve(*options, prefix=NAMESPACE, **more)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def first_process(service) -> int:
    """The id, out here, of what is process 1 in there."""
    (pid,) = until(lambda: children(service.popen.pid))
    return pid


def zombies_of(pid: int) -> list[int]:
    states = {child: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children(pid)}
    return [child for child, state in states.items() if state == "Z"]


def test_as_first_process_it_works_and_buries_orphans(serve_as_first):
    service = serve_as_first("--workers", "2", plugins=["leaves_a_process", "exits"])
    first = first_process(service)
    assert b"NSpid" in Path(f"/proc/{first}/status").read_bytes()
    assert service.job(service.submit("echo", {"n": 1}), wait=30)["result"] == {"n": 1}
    for then in ("die", "hang", "return"):
        job = service.submit("leaves_a_process", {"then": then, "marked": False}, timeout_s=1)
        assert service.job(job, wait=30)["status"] in ("SUCCESS", "FAILED")
    assert service.job(service.submit("exits", {"code": 3}), wait=30)["error"]["details"]["exit_code"] == 3
    until(lambda: not zombies_of(first))
    os.kill(first, signal.SIGTERM)
    assert service.popen.wait(30) == 0


def test_as_first_process_it_drains_and_a_second_signal_ends_its_patience(serve_as_first):
    service = serve_as_first("--drain-s", "60")
    first = first_process(service)
    job = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(job)["status"] == "RUNNING")
    os.kill(first, signal.SIGTERM)
    until(lambda: "stopping" in service.log.read_text())
    os.kill(first, signal.SIGTERM)
    assert service.popen.wait(30) == 0
    assert service.sql("SELECT status, attempt FROM report_jobs") == [("PENDING", 0)]


def test_killed_as_first_process_it_leaves_nothing_behind(serve_as_first):
    service = serve_as_first()
    first = first_process(service)
    job = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(job)["status"] == "RUNNING")
    assert until(service.workers)
    os.kill(first, signal.SIGKILL)
    service.popen.wait(30)
    until(lambda: not service.workers(), timeout_s=2)
