"""What a plugin and its job get from the runner when all goes well, and how a call is cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.calls import Call, current_call
from service.errors import PluginLoadError, PluginNotFoundError
from service.models import ErrorType, Pair
from service.plugins.discovery import installed_plugins
from service.plugins.manifest import PluginSource
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.processes import marked, pids
from service.tool_runner.runner import ToolRunner

from .waiting import until


def start(runner: ToolRunner, plugin: str, payload: dict, call: Call) -> asyncio.Task[Pair]:
    async def run() -> Pair:
        current_call.set(call)
        return await runner.run(plugin, payload)

    return asyncio.create_task(run())


def is_ignored(number: signal.Signals, pid: int | None) -> bool:
    if pid is None:
        return False
    ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    return bool(int(ignored, 16) >> (number - 1) & 1)


async def test_bytes_go_in_and_come_out_as_bytes(runner: ToolRunner) -> None:
    assert await runner.run("typed", {"data": b"\x00\xff"}) == ({"size": 2, "width": 3, "back": b"\x00\xff"}, {})


async def test_an_empty_result_is_a_success(runner: ToolRunner) -> None:
    assert await runner.run("prints", {"megabytes": 0}) == ({}, {})


async def test_payload_and_result_of_many_megabytes_pass_without_holding_up_the_loop(runner: ToolRunner) -> None:
    await runner.run("typed", {"data": b"warm"})
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - begun - 0.005)

    watching = asyncio.create_task(watch())
    image = os.urandom(9_000_000)
    result, error = await runner.run("typed", {"data": image})
    watching.cancel()
    assert error == {}
    assert result["back"] == image
    assert longest < 0.25


async def test_the_report_tells_what_the_call_took_and_made(runner: ToolRunner) -> None:
    seen: list[tuple[float, str]] = []
    call = Call(job_id="a-job", attempt=2, on_progress=lambda *news: seen.append(news))
    result, error = await start(runner, "generous", {}, call)
    assert (result, error) == ({"job": "a-job", "attempt": 2, "in_time": True}, {})
    report = call.report
    assert seen == [(0.25, "a quarter")]
    assert [(file.name, file.data, file.media_type) for file in report.artifacts] == [
        ("note.txt", b"hello", "text/plain")
    ]
    assert report.metrics == {"score": 0.5}
    assert report.plugin_version == "1.0"
    assert report.worker_pid
    assert report.run_s is not None
    assert 0 <= report.run_s < 1
    assert report.cpu_s is not None
    assert 0 < report.cpu_s < 1
    assert report.peak_memory_bytes is not None
    assert 5_000_000 < report.peak_memory_bytes < 200_000_000
    assert report.traceback is None
    assert report.output is None


async def test_the_report_of_a_killed_call_has_its_times_and_its_memory(runner: ToolRunner) -> None:
    call = Call(job_id="j", timeout_s=0.5)
    _, error = await start(runner, "spins", {}, call)
    assert error["error"]["details"]["limit_s"] == 0.5
    assert call.report.run_s is not None
    assert 0.5 <= call.report.run_s < 2.5
    assert call.report.cpu_s is not None
    assert call.report.cpu_s > 0.05
    assert call.report.peak_memory_bytes is not None
    assert call.report.worker_pid


async def test_the_folder_of_a_call_is_empty_for_the_next_one(runner: ToolRunner) -> None:
    await runner.run("generous", {})
    assert await runner.run("tmp_content", {}) == ({"files": []}, {})
    await runner.run("generous", {})
    await runner.run("generous", {})


async def test_progress_is_throttled_and_its_last_word_arrives(runner: ToolRunner) -> None:
    seen: list[tuple[float, tuple[float, str]]] = []
    call = Call(job_id="j", on_progress=lambda *news: seen.append((time.monotonic(), news)))
    begun = time.monotonic()
    await start(runner, "chatty", {}, call)
    took = time.monotonic() - begun
    assert seen[-1][1] == (1.0, "done")
    assert 1 <= len(seen) <= took / 0.1 + 2
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(seen[:-1])]
    assert all(gap > 0.09 for gap in gaps)


async def test_an_error_of_the_listener_does_not_reach_the_call(runner: ToolRunner) -> None:
    def refuse(fraction: float, message: str) -> None:
        raise RuntimeError("not listening")

    _, error = await start(runner, "generous", {}, Call(job_id="j", on_progress=refuse))
    assert error == {}


async def test_coroutine_plugins_run_to_their_end(runner: ToolRunner) -> None:
    assert await runner.run("waiting", {"seconds": 0.05}) == ({"slept": 0.05}, {})


async def test_a_worker_stays_warm_for_its_plugin_and_is_set_up_once(runner: ToolRunner) -> None:
    first, _ = await runner.run("warm", {})
    await runner.run("neighbour", {})
    assert await runner.run("warm", {}) == (first, {})
    assert first["set_ups"] == 1


async def test_the_worker_that_described_a_plugin_takes_its_first_call(runner: ToolRunner, pool: WorkerPool) -> None:
    manifest = await runner.describe("one_at_a_time")
    assert manifest.concurrency == 1
    (worker,) = pool._idle
    call = Call(job_id="j")
    await start(runner, "one_at_a_time", {"seconds": 0}, call)
    assert call.report.worker_pid == worker.pid


@pytest.mark.parametrize(
    ("plugin", "error_type"), [("missing_module", ErrorType.PLUGIN), ("missing_attribute", ErrorType.PLUGIN)]
)
async def test_what_cannot_be_loaded_says_why(runner: ToolRunner, plugin: str, error_type: ErrorType) -> None:
    with pytest.raises(PluginLoadError) as caught:
        await runner.describe(plugin)
    assert caught.value.error_type == error_type
    assert "absent" in caught.value.reason
    with pytest.raises(PluginNotFoundError):
        await runner.describe("not_installed")


async def test_set_up_has_a_limit_of_its_own(runner: ToolRunner) -> None:
    assert await runner.run("slow_setup", {}) == ({"ready": True}, {})


async def test_no_more_calls_run_at_once_than_there_are_slots(runner: ToolRunner) -> None:
    begun = time.monotonic()
    await asyncio.gather(*(runner.run("slowly", {"seconds": 0.3}) for _ in range(4)))
    assert time.monotonic() - begun >= 0.6


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_plugin_that_may_run_once_at_a_time_does(runner: ToolRunner, is_known: bool) -> None:
    if is_known:
        await runner.describe("one_at_a_time")
    pairs = await asyncio.gather(*(runner.run("one_at_a_time", {"seconds": 0.1}) for _ in range(3)))
    spans = sorted((result["begun"], result["ended"]) for result, _ in pairs)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


async def test_a_plugin_sees_nothing_of_the_service(
    runner: ToolRunner, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("JOBSERVICE_API_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    result, _ = await runner.run("whoami", {})
    assert "secret" not in result["environment"].values()
    assert not [name for name in result["environment"] if name.startswith("JOBSERVICE") or name == "PYTHONPATH"]
    assert result["environment"]["OMP_NUM_THREADS"] == "1"
    assert Path(result["cwd"]).is_relative_to(settings.data_dir)
    own = {
        name for name in result["descriptors"] if not name.startswith(("/dev/null", "/proc", str(settings.data_dir)))
    }
    assert len([name for name in own if name.startswith("socket:")]) == 1
    assert len(own) == 1


@pytest.mark.parametrize("plugin", ["polite", "polite_async", "stubborn", "ignores_signals"])
async def test_when_a_cancelled_call_returns_its_plugin_has_stopped(runner: ToolRunner, plugin: str) -> None:
    running = asyncio.Event()
    call = Call(job_id="j", on_progress=lambda *_: running.set())
    task = start(runner, plugin, {}, call)
    if plugin == "ignores_signals":
        await until(lambda: is_ignored(signal.SIGTERM, call.report.worker_pid))
    else:
        await running.wait()
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 1.4
    assert call.report.worker_pid is not None
    if plugin.startswith("polite"):  # it noticed, so its worker may stay
        again = Call(job_id="j", timeout_s=0.2)
        await start(runner, plugin, {}, again)
        assert again.report.worker_pid == call.report.worker_pid
    else:
        assert call.report.worker_pid not in pids()


async def test_a_second_cancellation_does_not_hasten_the_end_of_the_wait(runner: ToolRunner) -> None:
    running = asyncio.Event()
    call = Call(job_id="j", on_progress=lambda *_: running.set())
    task = start(runner, "stubborn", {}, call)
    await running.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.report.worker_pid not in pids()


@pytest.mark.parametrize("delay", [0, 0.002, 0.02, 0.1, 0.2])
async def test_a_call_may_be_cancelled_while_its_worker_starts(
    runner: ToolRunner, pool: WorkerPool, delay: float
) -> None:
    task = start(runner, "stubborn", {}, Call(job_id="j"))
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not pool._workers and not pool._retiring)
    assert marked(pool.instance) == {}


async def test_idle_workers_beyond_the_limit_go_the_least_recently_used_first(
    tmp_path: Path, sources: dict[str, PluginSource]
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, workers=1, warm=2)
    pool = WorkerPool(settings)
    runner = ToolRunner(pool, sources, settings)
    await runner.start()
    try:
        trace = tmp_path / "trace"
        await runner.run("warm", {"trace": str(trace)})
        await runner.run("neighbour", {})
        await runner.run("typed", {"data": b"1"})
        await until(lambda: len(pool._workers) == 2)
        assert sorted(worker.source.name for worker in pool._workers) == ["neighbour", "typed"]
        assert trace.read_text() == "torn down"
    finally:
        await runner.close()


async def test_an_idle_worker_that_dies_is_replaced(runner: ToolRunner, pool: WorkerPool) -> None:
    first = Call(job_id="1")
    await start(runner, "neighbour", {}, first)
    assert first.report.worker_pid
    os.kill(first.report.worker_pid, 9)
    await until(lambda: not pool._workers)
    assert await runner.run("neighbour", {}) == ({"echo": {}}, {})


async def test_of_a_plugin_that_is_installed_anew_the_version_that_ran_is_told(
    pool: WorkerPool, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "page_tools.dist-info"
    info.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(site))

    def install(version: str, code: str) -> None:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: page-tools\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[service.plugins]\ncount = page_tools:count\n")
        (site / "page_tools.py").write_text(code)

    install("1.0", "def count(pages: int) -> dict: return {'pages': pages}")
    runner = ToolRunner(pool, installed_plugins(), settings)
    await runner.start()
    try:
        old, new = Call(job_id="1"), Call(job_id="2")
        assert await start(runner, "count", {"pages": 1}, old) == ({"pages": 1}, {})
        install("2.0", "def count(pages: int, first: int = 0) -> dict: return {'last': first + pages}")
        assert old.report.worker_pid
        os.kill(old.report.worker_pid, 9)
        await until(lambda: not pool._workers)
        with capture_logs() as logs:
            assert await start(runner, "count", {"pages": 1}, new) == ({"last": 1}, {})
    finally:
        await runner.close()

    assert (old.report.plugin_version, new.report.plugin_version) == ("1.0", "2.0")
    [told] = [line for line in logs if line["log_level"] == "warning"]
    assert told["event"].startswith("a plugin was changed; restart the service")
    assert (told["plugin"], told["before"], told["version"]) == ("count", "1.0", "2.0")


async def test_a_call_whose_worker_died_just_before_is_not_left_waiting(runner: ToolRunner) -> None:
    for _ in range(5):
        call = Call(job_id="1")
        await start(runner, "neighbour", {}, call)
        assert call.report.worker_pid
        os.kill(call.report.worker_pid, 9)
        _, error = await runner.run("neighbour", {})
        assert error == {} or error["error"]["type"] == "WorkerCrashed"


@pytest.mark.parametrize(
    "payload",
    [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {1: 2}, {"x": {"$bytes": 3}}, {"x": "y" * 5_000_000}],
)
async def test_a_payload_that_is_no_document_is_the_fault_of_the_input(runner: ToolRunner, payload: dict) -> None:
    _, error = await runner.run("neighbour", payload)
    assert error["error"]["type"] == "ValidationError"
    assert await runner.run("neighbour", {}) == ({"echo": {}}, {})


async def test_closing_stops_what_still_runs_and_later_calls_are_told(
    tmp_path: Path, sources: dict[str, PluginSource]
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, workers=2)
    runner = ToolRunner(WorkerPool(settings), sources, settings)
    await runner.start()
    running = asyncio.Event()
    task = start(runner, "stubborn", {}, Call(job_id="j", on_progress=lambda *_: running.set()))
    await running.wait()
    await runner.close()
    _, error = await task
    assert error["error"]["type"] == "InternalError"
    _, error = await runner.run("neighbour", {})
    assert error["error"]["type"] == "InternalError"


async def test_a_call_cancelled_while_its_worker_cannot_be_started_is_cancelled(
    runner: ToolRunner, pool: WorkerPool
) -> None:
    go_on = threading.Event()
    pool._spawner.submit(go_on.wait)
    call = start(runner, "typed", {"data": b""}, Call(job_id="j"))
    await until(lambda: pool._started > 0)
    (pool._scratch / pool.instance / f"w{pool._started}").mkdir()  # in the way of the worker's folder
    call.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_of_services_that_start_at_once_none_removes_the_folder_of_another(settings: Settings) -> None:
    scratch = settings.data_dir / "scratch"
    for _ in range(3):
        pools = [WorkerPool(settings) for _ in range(12)]
        await asyncio.gather(*(pool.start() for pool in pools))
        made = {path.name for path in scratch.iterdir()}
        await asyncio.gather(*(pool.close() for pool in pools))
        assert made == {pool.instance for pool in pools}
