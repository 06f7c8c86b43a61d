"""The memory of a worker is that of all processes below it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.tool_runner import processes
from service.tool_runner.output import Output
from service.tool_runner.sampler import Sampler, Watched

LAST_ID = Path("/proc/sys/kernel/ns_last_pid")
#: Its child has a child whose id is the lower one.
WORKER = f"""
import os, time
if not os.fork():
    open({str(LAST_ID)!r}, "w").write(str(os.getpid() // 2))
    if not os.fork():
        print(os.getppid(), os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


@pytest.mark.skipif(
    not os.access(LAST_ID, os.W_OK) and os.environ.get("CI") != "true", reason="ids of processes cannot be chosen here"
)
def test_a_process_counts_though_its_id_is_lower_than_that_of_its_parent() -> None:
    command = [sys.executable, "-c", WORKER]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as worker,
    ):
        try:
            assert worker.stdout
            child, grandchild = map(int, worker.stdout.readline().split())
            assert grandchild < child
            watched = Watched(worker.pid, Output(os.dup(output.fileno())), lambda resident: None)
            sampler = Sampler()
            sampler.watch(watched)
            sampler._tick()
            assert {pid for pid, owner in sampler._below.items() if owner} == {worker.pid, child, grandchild}
            sampler._tick()
            assert sampler._below[grandchild] == worker.pid
            watched.output.close()
        finally:
            os.killpg(worker.pid, 9)


def test_a_process_that_ends_while_it_is_looked_for_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    there = processes.pids()
    monkeypatch.setattr(processes, "pids", lambda: [*there, gone.pid])
    sampler = Sampler()
    sampler._tick()
    assert os.getpid() in sampler._below
