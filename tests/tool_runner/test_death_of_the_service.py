"""Nothing that a plugin started outlives the service, however the service ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.plugins.manifest import PluginSource
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.processes import kill_marked, marked, stat
from service.tool_runner.runner import ToolRunner

from .conftest import HOSTILE
from .waiting import is_alive, until


class Owner:
    """The process under test."""

    def __init__(self, data_dir: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("owner.py")), str(data_dir), str(HOSTILE)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.hidden = data_dir / "hidden"
        self.instance = self.process.stdout.readline().strip()

    async def is_busy(self) -> None:
        """Wait until all its calls do what they do: five workers below keepers, and what one has hidden."""
        await until(
            lambda: len(marked(self.instance)) == 10 and b"T" in self.states() and self.hidden.exists(), timeout_s=20
        )

    def has_hidden(self) -> bool:
        """Whether the process lives that one of its plugins has hidden."""
        return is_alive(int(self.hidden.read_text()))

    def states(self) -> set[bytes]:
        return {fields[0] for pid in marked(self.instance) if (fields := stat(pid))}

    def guards(self) -> list[int]:
        needle = f"service.tool_runner.guard\0{self.instance}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            if needle in content:
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.process.kill()
    owner.process.communicate()
    kill_marked(owner.instance)


async def test_after_kill_9_of_the_service_nothing_is_left_within_two_seconds(owner: Owner) -> None:
    await owner.is_busy()
    (guard,) = owner.guards()
    owner.process.kill()
    await until(lambda: marked(owner.instance) == {} and not owner.has_hidden(), timeout_s=2)
    await until(lambda: not Path(f"/proc/{guard}").exists(), timeout_s=5)


async def test_a_signal_to_the_whole_group_does_not_take_the_guard_with_it(owner: Owner) -> None:
    await owner.is_busy()
    (guard,) = owner.guards()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guard, number)
    owner.process.kill()
    await until(lambda: marked(owner.instance) == {}, timeout_s=2)


async def test_without_its_guard_the_keepers_still_end_all_that_is_theirs(owner: Owner) -> None:
    await owner.is_busy()
    (guard,) = owner.guards()
    os.kill(guard, signal.SIGKILL)
    owner.process.kill()
    await until(lambda: marked(owner.instance) == {} and not owner.has_hidden(), timeout_s=2)


async def test_a_guard_that_dies_is_replaced_with_the_next_worker(runner: ToolRunner, pool: WorkerPool) -> None:
    assert pool._guard is not None
    first = pool._guard.pid
    pool._guard.kill()
    await until(lambda: stat(first)[0] == b"Z")
    assert await runner.run("neighbour", {}) == ({"echo": {}}, {})
    assert pool._guard.pid != first
    assert pool._guard.poll() is None


async def test_the_folder_of_a_dead_service_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path, sources: dict[str, PluginSource], settings: Settings, runner: ToolRunner, pool: WorkerPool
) -> None:
    left = tmp_path / "scratch" / "dead"
    (left / "w1").mkdir(parents=True)
    (left / "w1" / "file").write_text("left")
    second = ToolRunner(WorkerPool(settings), sources, settings)
    await second.start()
    try:
        assert not left.exists()
        assert (tmp_path / "scratch" / pool.instance).exists()
        assert await runner.run("neighbour", {}) == ({"echo": {}}, {})
    finally:
        await second.close()
