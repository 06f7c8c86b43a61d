"""PluginManagementService over a real runner and real plugins."""

from __future__ import annotations

import contextlib
import fnmatch
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.db import plugin_metrics
from service.errors import PayloadInvalidError, PluginNotFoundError, PluginUnavailableError
from service.job_management import JobManagementService
from service.models import JobOptions, JobStatus
from service.plugin_management import FAILURES_OF_ILL_HEALTH, PluginManagementService, PluginState
from service.plugins.discovery import installed_plugins
from service.plugins.manifest import PluginSource
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner

HOSTILE = Path(__file__).parents[1] / "hostile_plugins"


@pytest.fixture
async def plugins(database, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HOSTILE))
    assert str(HOSTILE) in sys.path
    settings = Settings(data_dir=tmp_path, workers=2)
    wanted = {"echo", "sleep", "raises", "large_artifacts", "missing_module", "one_at_a_time", "thumbnail"}
    sources = {name: source for name, source in installed_plugins().items() if name in wanted}
    runner = ToolRunner(WorkerPool(settings), sources, settings)
    await runner.start()
    service = PluginManagementService(runner, lambda: plugin_metrics.load(database.reader))
    await service.start()
    yield service
    await service.close()
    await runner.close()


async def test_a_manifest_is_read_in_a_worker_and_never_imported_here(plugins):
    manifest = await plugins.manifest("one_at_a_time")
    assert manifest.concurrency == 1
    assert "hostile" not in sys.modules


async def test_no_more_of_a_plugin_run_at_once_than_it_says_or_may_be_about_to_say(plugins):
    assert plugins.concurrency_limits() == dict.fromkeys(plugins.names, 1)
    for name in plugins.names:
        with contextlib.suppress(PluginUnavailableError):
            await plugins.manifest(name)
    assert plugins.concurrency_limits() == {"one_at_a_time": 1}


async def test_an_unknown_plugin_is_not_found(plugins):
    for ask in (plugins.manifest, plugins.get_plugin, plugins.bytes_field):
        with pytest.raises(PluginNotFoundError):
            await ask("no such plugin")


async def test_a_plugin_that_cannot_be_loaded_says_why_and_leaves_the_others(plugins):
    with pytest.raises(PluginUnavailableError, match="hostile_absent") as caught:
        await plugins.manifest("missing_module")
    assert caught.value.retry_after_s is None
    info = await plugins.get_plugin("missing_module")
    assert (info.state, info.healthy) == (PluginState.UNAVAILABLE, False)
    assert "hostile_absent" in info.reason
    assert (await plugins.manifest("echo")).name == "echo"


async def no_metrics():
    return {}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("\nraise SystemExit(3)", "loading it raised SystemExit: 3 (broken.py, line 2)"),
        ("raise KeyboardInterrupt", "loading it raised KeyboardInterrupt (broken.py, line 1)"),
        ("{}['key']", "loading it raised KeyError: 'key' (broken.py, line 1)"),
        ("import json\njson.loads('no')", "loading it raised JSONDecodeError: Expecting value: * (decoder.py, line *)"),
        ("def plugin(", "loading it raised SyntaxError: '(' was never closed (broken.py, line 1)"),
        (
            "class plugin:\n    def __init__(self):\n        raise ValueError('no model')",
            "loading it raised ValueError: no model (broken.py, line 3)",
        ),
        (None, "loading it raised ModuleNotFoundError: No module named 'broken'"),
    ],
)
async def test_what_loading_a_plugin_raised_is_told_with_its_class_and_line(module, reason, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    if module is not None:
        (tmp_path / "broken.py").write_text(module)
    source = PluginSource(name="broken", value="broken:plugin", distribution="tests", distribution_version="1")
    settings = Settings(data_dir=tmp_path, workers=1)
    runner = ToolRunner(WorkerPool(settings), {"broken": source}, settings)
    await runner.start()
    service = PluginManagementService(runner, no_metrics)
    with capture_logs() as logs, pytest.raises(PluginUnavailableError) as caught:
        await service.manifest("broken")
    await service.close()
    await runner.close()
    assert fnmatch.fnmatchcase(caught.value.reason, reason)
    (line,) = logs
    assert (line["event"], line["reason"]) == ("plugin unavailable", caught.value.reason)
    assert line["traceback"].startswith("Traceback")


async def test_a_payload_is_checked_against_what_the_plugin_declares(plugins):
    with pytest.raises(PayloadInvalidError) as caught:
        await plugins.validate("thumbnail", {"image": "!", "width": 0, "depth": 3})
    assert {problem.pointer for problem in caught.value.problems} >= {"/image"}
    fields = await plugins.bind_fields("thumbnail", {"width": "64", "image": b"x"})
    assert fields == {"width": 64, "image": b"x"}
    assert await plugins.bytes_field("thumbnail") == "image"


async def test_files_are_kept_of_the_attempt_that_fails_a_job_and_of_none_before_it(plugins, database):
    jobs = JobManagementService(database, plugins)
    made = {"count": 2, "size": 3, "raise": "no"}
    job_id = await jobs.create_job("large_artifacts", made, JobOptions(max_attempts=2))
    await jobs.run_job(job_id)
    waiting = await jobs.get_record(job_id)
    assert (waiting.status, waiting.artifacts) == (JobStatus.PENDING, [])
    await jobs.run_job(job_id)
    failed = await jobs.get_record(job_id)
    assert (failed.status, len(failed.artifacts)) == (JobStatus.FAILED, 2)
    assert await jobs.read_artifact(job_id, failed.artifacts[0].name) == (failed.artifacts[0], bytes(3))


async def test_one_failure_is_not_ill_health_but_many_in_a_row_are(plugins, database):
    jobs = JobManagementService(database, plugins)
    await plugins.manifest("raises")
    healthy = []
    for _ in range(FAILURES_OF_ILL_HEALTH):
        _, error = await jobs.run_job(await jobs.create_job("raises", {}))
        assert error["error"]["type"] == "ExecutionError"
        healthy.append((await plugins.get_plugin("raises")).healthy)
    assert healthy == [True] * (FAILURES_OF_ILL_HEALTH - 1) + [False]
    info = await plugins.get_plugin("raises")
    assert info.reason.endswith("the newest with ExecutionError")  # its message may hold what another tenant sent
    assert info.metrics.error_count == FAILURES_OF_ILL_HEALTH
    await jobs.drain(5)


async def test_execution_times_have_a_true_mean_and_survive_the_process(plugins, database):
    jobs = JobManagementService(database, plugins)
    for seconds in (0.0, 0.3):
        await jobs.run_job(await jobs.create_job("sleep", {"seconds": seconds}))
    await jobs.drain(5)
    metrics = (await plugin_metrics.load(database.reader))["sleep"]
    assert metrics.success_count == 2
    assert metrics.last_run_s == pytest.approx(0.3, abs=0.2)
    assert metrics.mean_run_s == pytest.approx(0.15, abs=0.15)
    again = await PluginManagementService(plugins._tool_runner, plugins._load_metrics).get_plugin("sleep")
    assert again.metrics == metrics
