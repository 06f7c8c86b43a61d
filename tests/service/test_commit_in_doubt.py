"""The connection is lost while the server commits: what was asked for has happened, and nobody was told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.db import job_queries, plugin_metrics
from service.db.database import Database
from service.job_management import JobManagementService
from service.plugin_management import PluginManagementService
from service.plugins.discovery import installed_plugins
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner
from tests.in_doubt import losing_commits


@pytest.fixture
async def relayed(postgres_url, tmp_path):
    """A relay, and a job manager on a database behind it."""
    settings = Settings(data_dir=tmp_path, workers=1)
    async with (
        losing_commits(postgres_url) as relay,
        Database.open(relay.url, tmp_path / "blobs", inline_bytes=1_000) as database,
        contextlib.AsyncExitStack() as stack,
    ):
        runner = ToolRunner(WorkerPool(settings), installed_plugins(), settings)
        await runner.start()
        stack.push_async_callback(runner.close)
        plugins = PluginManagementService(runner, lambda: plugin_metrics.load(database.reader))
        service = JobManagementService(database, plugins, lease_s=60)
        stack.push_async_callback(service.drain, 0)
        yield relay, service, database


def moves(service):
    return {
        sample.labels["to"]: sample.value
        for metric in service._metrics.transitions.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


async def test_an_end_that_was_committed_unheard_is_told_as_any_other(relayed):
    relay, service, database = relayed
    job_id = await service.create_job("echo", {"n": 1})
    waiting = asyncio.create_task(service.wait_for(job_id, 30))
    relay.doomed.append(b'"SUCCESS"')
    assert await service.run_job(job_id) == ({"n": 1}, {})
    assert relay.doomed == []
    assert (await waiting).status == "SUCCESS"
    assert moves(service) == {"RUNNING": 1, "SUCCESS": 1}
    assert service._metrics.stale_writes._value.get() == 0
    assert [attempt.outcome for attempt in await job_queries.list_attempts(database.reader, job_id)] == ["SUCCESS"]
