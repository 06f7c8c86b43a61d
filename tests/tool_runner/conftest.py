"""A real runner on a real pool, with the hostile plugins installed; it must leave no process and no descriptor."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.plugins.discovery import installed_plugins
from service.plugins.manifest import PluginSource
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.processes import marked
from service.tool_runner.runner import ToolRunner
from tests.tool_runner.waiting import until

HOSTILE = Path(__file__).parents[1] / "hostile_plugins"


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, PluginSource]:
    monkeypatch.syspath_prepend(str(HOSTILE))
    return installed_plugins()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None, data_dir=tmp_path, workers=2, warm=4, timeout_s=1.5, memory_mb=200, max_result_mb=20
    )


@pytest.fixture
def pool(settings: Settings) -> WorkerPool:
    return WorkerPool(settings)


@pytest.fixture(scope="session")
def settled() -> None:
    """What stays of the tests before these is looked through for garbage once, not before each of these."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def runner(
    settled: None, pool: WorkerPool, sources: dict[str, PluginSource], settings: Settings
) -> AsyncIterator[ToolRunner]:
    gc.collect()
    before = descriptors()
    runner = ToolRunner(pool, sources, settings)
    await runner.start()
    yield runner
    await runner.close()
    assert marked(pool.instance) == {}
    # A look at /proc that was under way when the runner closed ends by itself.
    await until(lambda: descriptors() - before == set())
    assert list((settings.data_dir / "scratch").iterdir()) == []


def descriptors() -> set[str]:
    """What this process holds open, by number and target."""
    held = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            held.add(f"{path.name} {path.readlink()}")
    return held
