"""Calls of a plugin that is declared short: sent behind one another, and none pays for its neighbour."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from service.calls import Call
from service.codec import check_document
from service.settings import Settings
from service.tool_runner.executor import CALLS_AT_ONCE, MB, Failure, Incident, Limits
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner

from .test_running import start
from .waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """One worker at a time, so that what comes while it works is sent behind."""
    return settings.model_copy(update={"workers": 1})


async def warm(runner: ToolRunner) -> int:
    """Set the plugin up; the worker that holds it."""
    result, error = await runner.run("brief", {})
    assert error == {}
    return result["pid"]


def begin(runner: ToolRunner, *payloads: dict) -> list[tuple[asyncio.Task, Call]]:
    calls = [Call(job_id=f"job-{number}") for number in range(len(payloads))]
    return [(start(runner, "brief", payload, call), call) for payload, call in zip(payloads, calls, strict=True)]


async def test_they_share_a_worker_and_end_in_their_order(runner: ToolRunner) -> None:
    pid = await warm(runner)
    results = [(await task)[0] for task, _ in begin(runner, *({"n": n} for n in range(40)))]
    assert [result["n"] for result in results] == list(range(40))
    assert {result["pid"] for result in results} == {pid}
    assert sorted(result["at"] for result in results) == [result["at"] for result in results]


async def test_no_more_of_them_are_sent_than_the_limit(runner: ToolRunner, pool: WorkerPool) -> None:
    await warm(runner)
    running = begin(runner, *[{"do": "wait"}] * (CALLS_AT_ONCE + 3))
    await until(lambda: sum(call.report.worker_pid is not None for _, call in running) == CALLS_AT_ONCE)
    (shift,) = pool._shifts._open
    assert shift.calls == CALLS_AT_ONCE
    for task, _ in running:
        task.cancel()
    done = await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in done)


@pytest.mark.parametrize(
    ("fault", "kind"), [("die", "WorkerCrashed"), ("leave", "ExecutionError"), ("hang", "TimeLimitExceeded")]
)
async def test_what_stands_behind_a_call_that_ends_its_worker_runs_in_another_one(
    runner: ToolRunner, fault: str, kind: str
) -> None:
    pid = await warm(runner)
    first, *behind = begin(runner, {"do": fault}, {"n": 1}, {"do": "print", "text": "three", "n": 2}, {"n": 3})
    _, error = await first[0]
    assert error["error"]["type"] == kind
    assert first[1].report.worker_pid == pid
    pairs = [await task for task, _ in behind]
    assert [(result.get("n"), error) for result, error in pairs] == [(1, {}), (2, {}), (3, {})]
    assert all(result["pid"] != pid for result, _ in pairs)
    assert [call.report.output for _, call in behind] == [None, "three\n", None]
    assert all(call.report.worker_pid == result["pid"] for (_, call), (result, _) in zip(behind, pairs, strict=True))


async def test_a_call_that_comes_as_the_worker_is_killed_is_not_blamed(runner: ToolRunner, pool: WorkerPool) -> None:
    await warm(runner)
    (worker,) = (worker for worker in pool._idle if worker.source.name == "brief")
    worker.kill(Failure(incident=Incident.TIME, message="An earlier call took too long."))
    limits = Limits(setup_s=1, run_s=1, memory_bytes=200 * MB)
    assert await worker.execute({"n": 1}, Call(job_id="late"), limits) is None
    assert (await runner.run("brief", {"n": 2}))[0]["n"] == 2


async def test_a_call_that_is_ready_only_after_the_last_word_of_its_worker_is_not_blamed(
    runner: ToolRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large payload is checked in a thread; meanwhile the worker may end."""
    checked, may_go = asyncio.Event(), asyncio.Event()
    to_thread = asyncio.to_thread

    async def slowly(function: Any, *arguments: Any) -> Any:
        made = await to_thread(function, *arguments)
        if function is check_document:
            checked.set()
            await may_go.wait()
        return made

    pid = await warm(runner)
    monkeypatch.setattr("service.tool_runner.worker_process.asyncio.to_thread", slowly)
    (leaving, _), (large, _) = begin(runner, {"do": "leave_soon"}, {"n": 1, "much": ["x"] * 50_000})
    await checked.wait()
    _, error = await leaving
    assert error["error"]["type"] == "ExecutionError"
    may_go.set()
    result, error = await large
    assert (result.get("n"), error) == (1, {})
    assert result["pid"] != pid


async def test_each_report_is_of_its_own_call(runner: ToolRunner) -> None:
    await warm(runner)
    running = begin(runner, *({"do": "print", "text": f"line {n}", "n": n} for n in range(CALLS_AT_ONCE)))
    for n, (task, call) in enumerate(running):
        assert (await task)[0]["n"] == n
        assert call.report.output == f"line {n}\n"
        assert 0 <= call.report.run_s < 1
        assert 0 <= call.report.cpu_s < 1
        assert call.report.peak_memory_bytes > 1_000_000


async def test_one_that_was_cancelled_before_its_turn_never_runs(runner: ToolRunner, tmp_path: Path) -> None:
    await warm(runner)
    trace = tmp_path / "trace"
    running = begin(runner, {"do": "wait"}, {"do": "write", "path": str(trace)}, {"n": 2})
    await until(lambda: all(call.report.worker_pid is not None for _, call in running))
    running[1][0].cancel()
    await asyncio.sleep(0)
    running[0][0].cancel()
    assert (await running[2][0])[0]["n"] == 2
    with pytest.raises(asyncio.CancelledError):
        await running[1][0]
    assert not trace.exists()


async def test_nor_does_one_that_is_cancelled_while_others_ran_before_it(runner: ToolRunner, tmp_path: Path) -> None:
    await warm(runner)
    first, second, trace = (tmp_path / name for name in ("first", "second", "trace"))
    dozing = [{"do": "doze", "path": str(path)} for path in (first, second)]
    # The worker has all of them before the first has ended.
    running = begin(runner, *dozing, {"do": "write", "path": str(trace)}, {"n": 3})
    await until(second.exists)
    running[2][0].cancel()
    assert (await running[3][0])[0]["n"] == 3
    with pytest.raises(asyncio.CancelledError):
        await running[2][0]
    assert not trace.exists()


@pytest.mark.parametrize("number", [0, 2])
async def test_a_cancelled_one_takes_no_other_with_it(runner: ToolRunner, number: int) -> None:
    pid = await warm(runner)
    waits: list[dict] = [{"n": n} for n in range(4)]
    waits[0] = {"do": "wait"}
    running = begin(runner, *waits)
    await until(lambda: all(call.report.worker_pid is not None for _, call in running))
    running[number][0].cancel()
    await asyncio.sleep(0)
    running[0][0].cancel()  # else the others would wait for it
    outcomes = await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n in (0, number):
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert (outcome[0]["n"], outcome[0]["pid"]) == (n, pid)


async def test_a_coroutine_that_cleans_up_is_not_cancelled_anew_by_what_stands_behind_it(
    runner: ToolRunner, tmp_path: Path
) -> None:
    assert await runner.run("tidies_up", {}) == ({}, {})
    trace, running = tmp_path / "trace", asyncio.Event()
    call = Call(job_id="first", on_progress=lambda *_: running.set())
    first = start(runner, "tidies_up", {"trace": str(trace)}, call)
    await running.wait()
    first.cancel()
    await until(trace.exists)
    assert await runner.run("tidies_up", {}) == ({}, {})
    with pytest.raises(asyncio.CancelledError):
        await first
    assert trace.read_text() == "0"


async def test_whenever_they_are_cancelled_each_returns_and_the_worker_takes_others(runner: ToolRunner) -> None:
    await warm(runner)
    for round_ in range(60):
        running = begin(runner, *({"n": n} for n in range(2 * CALLS_AT_ONCE)))
        for _ in range(round_ % 20):
            await asyncio.sleep(0)
        for task, _ in running:
            task.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
    assert (await runner.run("brief", {"n": 1}))[0]["n"] == 1


async def test_who_waits_for_a_slot_is_not_passed_for_ever(runner: ToolRunner) -> None:
    await warm(runner)
    await runner.describe("neighbour")
    last = 0

    async def flood() -> None:
        nonlocal last
        while True:
            last = (await runner.run("brief", {"n": 1}))[0]["n"]

    floods = [asyncio.create_task(flood()) for _ in range(2 * CALLS_AT_ONCE)]
    await until(lambda: last == 1)
    async with asyncio.timeout(30):
        for _ in range(3):
            assert await runner.run("neighbour", {"n": 1}) == ({"echo": {"n": 1}}, {})
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)


async def test_a_worker_that_is_killed_from_outside_costs_one_of_them_at_most(runner: ToolRunner) -> None:
    pid = await warm(runner)
    running = begin(runner, {"do": "wait"}, *({"n": n} for n in range(1, 4)))
    await until(lambda: all(call.report.worker_pid is not None for _, call in running))
    os.kill(pid, 9)
    (_, error), *others = [await task for task, _ in running]
    assert error["error"]["type"] == "WorkerCrashed"
    assert [result["n"] for result, _ in others] == [1, 2, 3]
