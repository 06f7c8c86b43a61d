"""Whatever a plugin does, its own job gets the right error in time and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from service.calls import Call, current_call
from service.tool_runner.frames import Kind, pack
from service.tool_runner.pool import WorkerPool
from service.tool_runner.processes import marked, pids
from service.tool_runner.runner import ToolRunner
from tests.hostile_plugins.cases import CASES

from .test_running import start
from .waiting import is_alive, until

LIMIT_S = 1.5


@pytest.mark.parametrize(
    ("plugin", "payload", "error_type", "details"), CASES, ids=[f"{case[0]}-{case[1] or ''}" for case in CASES]
)
async def test_it_costs_its_own_job_and_nothing_else(
    runner: ToolRunner, plugin: str, payload: dict[str, Any], error_type: str, details: dict[str, Any]
) -> None:
    await runner.run("neighbour", {})
    begun = time.monotonic()
    (result, error), beside = await asyncio.gather(runner.run(plugin, payload), runner.run("slowly", {"seconds": 0.3}))
    took = time.monotonic() - begun
    assert result == {}
    assert error["error"]["type"] == error_type, error
    assert details.items() <= error["error"]["details"].items()
    assert error["error"]["plugin"] == plugin
    assert 0 < len(error["error"]["message"]) <= 8_192
    assert "Traceback" not in error["error"]["message"]
    assert took < LIMIT_S + 2
    assert beside == ({"slept": 0.3}, {})
    assert await runner.run("neighbour", {"a": b"after"}) == ({"echo": {"a": b"after"}}, {})


@pytest.mark.parametrize("mood", [("hang", "TimeLimitExceeded"), ("crash", "WorkerCrashed"), ("raise", "PluginError")])
async def test_a_plugin_that_turns_bad_on_import_fails_its_job_and_can_come_back(
    runner: ToolRunner, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, mood: tuple[str, str]
) -> None:
    assert (await runner.describe("moody")).name == "moody"
    await _forget_warm_workers(runner)
    switch = tmp_path / "switch"
    switch.mkdir()
    monkeypatch.syspath_prepend(str(switch))
    (switch / "hostile_switch.py").write_text(f"IMPORT = {mood[0]!r}\n")
    _, error = await runner.run("moody", {})
    assert error["error"]["type"] == mood[1]
    assert error["error"]["details"]["phase"] == "import"
    (switch / "hostile_switch.py").write_text("IMPORT = 'behave better'\n")
    assert await runner.run("moody", {}) == ({"import": "behave better"}, {})


async def _forget_warm_workers(runner: ToolRunner) -> None:
    pool = runner._executor
    assert isinstance(pool, WorkerPool)
    for worker in list(pool._idle):
        await worker.retire()


async def test_the_death_of_the_first_worker_does_not_touch_the_tenth(runner: ToolRunner, pool: WorkerPool) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    await runner.run("neighbour", {})
    pool._started = 9
    tenth = asyncio.create_task(runner.run("slowly", {"seconds": 0.8}))
    await until(lambda: len(pool.worker_pids) == 2)
    assert call.report.worker_pid
    os.kill(call.report.worker_pid, signal.SIGKILL)
    assert await tenth == ({"slept": 0.8}, {})


async def test_a_process_left_behind_is_killed_after_the_call_and_its_result_stands(
    runner: ToolRunner, pool: WorkerPool
) -> None:
    result, error = await runner.run("leaves_a_process", {})
    assert error == {}
    await until(lambda: marked(pool.instance) == {})
    again, _ = await runner.run("leaves_a_process", {"marked": False})
    assert again["pid"] != result["pid"]


@pytest.mark.parametrize(
    "then", ["return", "hang", "die", "kill its group", "end its main thread", "stop its keeper", "be killed"]
)
async def test_a_process_that_hides_from_its_worker_ends_with_it(
    runner: ToolRunner, pool: WorkerPool, tmp_path: Path, then: str
) -> None:
    trace = tmp_path / "trace"
    call = Call(job_id="j")
    running = start(runner, "hides_a_process", {"trace": str(trace), "then": then.replace("be killed", "hang")}, call)
    await until(trace.exists)
    hidden = int(trace.read_text())
    if then == "be killed":
        assert call.report.worker_pid is not None
        os.kill(call.report.worker_pid, signal.SIGKILL)
    await running
    await until(lambda: not pool.worker_pids, timeout_s=8)
    assert not is_alive(hidden)


async def test_a_process_that_set_up_started_may_stay(runner: ToolRunner) -> None:
    first, _ = await runner.run("helped", {})
    second, _ = await runner.run("helped", {})
    assert first["alive"]
    assert second == first


async def test_of_a_forked_plugin_only_one_answers(runner: ToolRunner) -> None:
    for _ in range(3):
        result, error = await runner.run("forks", {})
        assert error == {}
        assert result["pid"] > 0


async def test_a_plugin_may_close_the_descriptors_it_did_not_open(runner: ToolRunner) -> None:
    assert await runner.run("closes_descriptors", {"up_to": 10}) == ({"closed": True}, {})


@pytest.mark.parametrize("do", ["close", "stop", "stop later", "start again"])
async def test_a_plugin_that_harms_its_event_loop_is_alone_with_it(runner: ToolRunner, tmp_path: Path, do: str) -> None:
    trace = tmp_path / "trace"
    before, _ = await runner.run("harms_its_loop", {})
    _, error = await runner.run("harms_its_loop", {"do": do, "trace": str(trace)})
    assert error == {} if do == "start again" else error["error"]["type"] == "ExecutionError"
    for _ in range(2):
        after, error = await runner.run("harms_its_loop", {})
        assert error == {}
        assert after["pid"] != before["pid"]
    assert not trace.exists()


@pytest.mark.parametrize("how", ["file", "link", "sealed", "deep"])
async def test_whatever_a_call_leaves_in_its_folder_the_next_one_finds_it_empty(runner: ToolRunner, how: str) -> None:
    first, error = await runner.run("leaves_a_folder", {"how": how})
    assert error == {}
    assert await runner.run("leaves_a_folder", {}) == (first, {})


async def test_files_that_a_call_leaves_are_gone_before_the_next_and_those_of_set_up_stay(runner: ToolRunner) -> None:
    first, error = await runner.run("leaves_files", {})
    assert error == {}
    second, _ = await runner.run("leaves_files", {})
    third, _ = await runner.run("leaves_files", {})
    assert first["is_lasting"]
    assert first["found"] == 1
    # The folder of multiprocessing stays too: it is made once, for as long as the process lives.
    assert second == third == {**first, "found": 2}


async def test_a_timer_that_a_call_left_does_not_end_the_next(runner: ToolRunner) -> None:
    first, error = await runner.run("leaves_an_alarm", {"rings": 0.3})
    assert error == {}
    assert await runner.run("leaves_an_alarm", {"seconds": 0.6}) == (first, {})


@pytest.mark.parametrize("timer", [signal.ITIMER_VIRTUAL, signal.ITIMER_PROF])
async def test_nor_does_one_of_processor_time_and_what_set_up_started_runs_on(runner: ToolRunner, timer: int) -> None:
    first, error = await runner.run("leaves_a_timer", {"timer": timer, "seconds": 0.2})
    assert error == {}
    assert first["is_running"]
    assert await runner.run("leaves_a_timer", {"spins": 0.6}) == (first, {})


def forged(kind: Kind, says: dict[str, Any], seconds: float = 0) -> list[Any]:
    return [int(kind), says, seconds]


@pytest.mark.parametrize("seconds", [0, 0.2])
async def test_a_forged_reply_gives_no_other_job_the_wrong_result(runner: ToolRunner, seconds: float) -> None:
    await runner.run("forges", {})
    frames = [forged(Kind.REPLY, {"result": {"n": "forged"}}, seconds)]
    _, error = await runner.run("forges", {"frames": frames, "n": 0})
    assert error["error"]["type"] == "WorkerCrashed"
    assert error["error"]["details"] == {"reason": "protocol"}
    for n in (1, 2):
        assert await runner.run("forges", {"n": n}) == ({"n": n}, {})


async def test_no_plugin_makes_its_failure_a_fault_of_the_service(runner: ToolRunner) -> None:
    await runner.run("forges", {})
    # The first exchange with its worker loaded the plugin, the second was the call above.
    says = {"number": 3, "incident": "host", "message": "forged", "exception": "Error"}
    _, error = await runner.run("forges", {"frames": [forged(Kind.REPLY, says, 0.2)]})
    assert error["error"]["type"] == "WorkerCrashed"
    assert "neither a result nor a failure" in error["error"]["message"]


async def test_a_reply_forged_for_a_cancelled_call_is_none_to_the_next(runner: ToolRunner) -> None:
    await runner.run("forges", {})
    running = asyncio.Event()
    call = Call(job_id="j", on_progress=lambda *_: running.set())
    news = forged(Kind.PROGRESS, {"fraction": 0.5, "message": ""}, 0.1)
    frames = [news, forged(Kind.REPLY, {"result": {"n": "forged"}}, 0.2)]
    task = start(runner, "forges", {"frames": frames, "n": 0}, call)
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.report.worker_pid not in pids()
    assert await runner.run("forges", {"n": 1}) == ({"n": 1}, {})


async def test_a_plugin_that_may_run_never_at_once_is_not_waited_for(runner: ToolRunner) -> None:
    _, error = await runner.run("forges_a_manifest", {})
    assert error["error"]["details"] == {"reason": "protocol"}
    assert "concurrency" in error["error"]["message"]


async def test_a_plugin_may_ask_for_more_memory_than_there_are_numbers_for(runner: ToolRunner) -> None:
    assert await runner.run("asks_for_endless_memory", {}) == ({}, {})


async def test_no_call_is_blamed_for_the_memory_that_those_before_it_kept(runner: ToolRunner) -> None:
    pairs = [await runner.run("keeps_memory", {"bytes": 60_000_000}) for _ in range(5)]
    assert [error for _, error in pairs] == [{}] * 5
    first, second, *_ = (result["pid"] for result, _ in pairs)
    assert second == first  # what was kept the first time leaves enough


async def test_what_set_up_takes_is_no_reason_for_another_worker(runner: ToolRunner) -> None:
    first = await runner.run("large_once_set_up", {})
    assert first[1] == {}
    assert await runner.run("large_once_set_up", {}) == first


async def test_what_was_printed_before_a_crash_is_in_the_report_and_bounded(runner: ToolRunner) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    _, error = await runner.run("prints", {"megabytes": 20, "then": "die"})
    assert error["error"]["details"]["exit_code"] == 3
    assert call.report.output is not None
    assert call.report.output.endswith("the last line\n")
    assert len(call.report.output) <= 8_192


async def test_what_was_printed_before_a_crash_is_told_also_where_the_job_before_had_printed_much(
    runner: ToolRunner, pool: WorkerPool
) -> None:
    assert (await runner.run("prints", {"megabytes": 2}))[1] == {}
    (worker,) = pool._idle
    await until(lambda: worker._output.emptied > 0)
    call = Call(job_id="j")
    current_call.set(call)
    _, error = await runner.run("prints", {"megabytes": 0, "then": "die"})
    assert error["error"]["details"]["exit_code"] == 3
    assert call.report.output == "the last line\n"


async def test_a_crash_shows_where_it_was_to_administrators_only(runner: ToolRunner) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    _, error = await runner.run("segfault", {})
    assert call.report.output is not None
    assert "hostile.py" in call.report.output
    assert "hostile.py" not in str(error)


async def test_artifacts_may_take_as_much_as_the_service_says_whatever_their_names(runner: ToolRunner) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    assert await runner.run("large_artifacts", {"count": 1_000, "size": 19_990}) == ({}, {})
    assert len(call.report.artifacts) == 1_000


async def test_an_artifact_that_was_refused_takes_no_room_of_the_others(runner: ToolRunner) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    assert await runner.run("keeps_what_fits", {"sizes": [20_000_001, 1_000]}) == ({}, {})
    assert [(file.name, len(file.data)) for file in call.report.artifacts] == [("1.bin", 1_000)]


async def test_a_process_that_was_forked_beside_a_thread_does_not_hang_in_what_it_tells(runner: ToolRunner) -> None:
    assert await runner.run("tells_from_forks", {"forks": 20}) == ({}, {})


@pytest.mark.parametrize(
    ("payload", "error_type", "message"),
    [
        (
            {"count": 21, "size": 1_000_000},
            "InvalidOutput",
            "takes more than 20000000 bytes together with its artifacts",
        ),
        ({"count": 2, "text": 100}, "InvalidOutput", "takes more than 20000000 bytes together with its artifacts"),
        ({"count": 2, "raise": "the last page is torn"}, "ExecutionError", "the last page is torn"),
        ({"count": 2, "raise": "\1" * 100_000}, "ExecutionError", "\1" * 8_000),
    ],
    ids=["artifacts", "result", "raises", "raises a long text"],
)
async def test_why_there_is_no_result_is_told_however_much_the_artifacts_took(
    runner: ToolRunner, payload: dict[str, Any], error_type: str, message: str
) -> None:
    _, error = await runner.run("large_artifacts", payload)
    assert error["error"]["type"] == error_type
    assert message in error["error"]["message"]


async def test_no_word_of_a_plugin_makes_a_figure_that_cannot_be(runner: ToolRunner) -> None:
    figures = {"run_s": 1e308, "cpu_s": 1e308, "total_cpu_s": 1e308, "peak_bytes": 1e308, "printed": [0, 2**64 - 1]}
    forged = b"".join(pack(Kind.REPLY, {"number": 2, "result": {"forged": True}, **figures}))
    call = Call(job_id="j")
    current_call.set(call)
    assert await runner.run("writes_rubbish", {"hex": forged.hex()}) == ({"forged": True}, {})
    report = call.report
    assert report.run_s is not None
    assert 0 <= report.run_s < 10
    assert report.cpu_s is not None
    assert 0 <= report.cpu_s < 10 * (os.cpu_count() or 1)
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_bytes < 2**63
    assert report.output is None


async def test_a_traceback_is_in_the_report_and_not_in_the_error(runner: ToolRunner) -> None:
    call = Call(job_id="j")
    current_call.set(call)
    _, error = await runner.run("raises", {"message": "wrong"})
    assert error["error"]["message"] == "wrong"
    assert call.report.traceback is not None
    assert "hostile.py" in call.report.traceback
    assert "hostile.py" not in str(error)
