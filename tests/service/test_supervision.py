"""Whatever loop of the service dies, it says that it is not ready, and ends with an exit code that is not 0."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import threading

import pytest

from service.app import Service, _serve
from service.settings import Settings

LOOPS = ("dispatcher", "housekeeper", "lease keeper", "rescuer", "lag", "writer")


def end_task(name):
    for task in asyncio.all_tasks():
        if task.get_name() == name:
            task.cancel()


def end_thread(name):
    """The newest thread of that name: other services of this process have theirs."""
    *_, thread = (thread for thread in threading.enumerate() if thread.name == name)
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    assert raised == 1


DEATHS = [(name, lambda name=name: end_task(name)) for name in LOOPS]
DEATHS.append(("worker watch", lambda: end_thread("worker-memory")))


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", port=0, workers=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the thread that is killed
@pytest.mark.parametrize(("name", "kill"), DEATHS, ids=[name for name, _ in DEATHS])
async def test_the_death_of_a_loop_makes_the_service_not_ready(settings, name, kill):
    async with Service.open(settings) as service:
        assert await service.health.readiness() == []
        kill()
        await asyncio.wait_for(service.failed.wait(), 5)
        assert f"The {name} loop has ended." in await service.health.readiness()


@pytest.mark.parametrize("kill", [lambda: end_task("dispatcher"), lambda: end_task("writer")])
async def test_the_death_of_a_loop_ends_the_process_with_a_failure(settings, capfd, kill):
    serving = asyncio.create_task(_serve(settings, listen=True, only_plugins=()))
    printed = ""
    while "data is in" not in printed:
        await asyncio.sleep(0.02)
        printed += capfd.readouterr().out
    kill()
    try:
        assert await asyncio.wait_for(serving, 20) == 1
    finally:
        gc.unfreeze()


async def test_closing_the_service_is_no_death(settings):
    async with Service.open(settings) as service:
        health = service.health
    assert health.dead_loops == []
    assert not service.failed.is_set()
