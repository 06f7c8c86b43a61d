"""What one look at the queue starts."""

from __future__ import annotations

from pathlib import Path

from service.db import plugin_controls, plugin_metrics
from service.db.database import Database
from service.db.plugin_controls import Limits
from service.dispatcher import Dispatcher
from service.events import EventBus
from service.job_management import JobManagementService
from service.plugin_controls import PluginControls
from service.plugin_management import PluginManagementService
from service.plugins.discovery import installed_plugins
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner


async def test_a_limited_plugin_at_the_head_of_the_queue_keeps_no_worker_from_others(
    database: Database, tmp_path: Path
) -> None:
    settings, events = Settings(data_dir=tmp_path, workers=2), EventBus()
    sources = {name: source for name, source in installed_plugins().items() if name in ("echo", "sleep")}
    runner = ToolRunner(WorkerPool(settings), sources, settings)
    await runner.start()
    plugins = PluginManagementService(runner, lambda: plugin_metrics.load(database.reader))
    for name in sources:
        await plugins.manifest(name)
    controls = PluginControls(lambda: plugin_controls.load(database.reader), events)
    await database.writer.write(
        plugin_controls.set_limits, Limits(plugin="sleep", concurrency=1, rate_per_s=None, burst=None)
    )
    await controls.refresh()
    jobs = JobManagementService(database, plugins, events=events, controls=controls)
    try:
        for _ in range(4):
            await jobs.create_job("sleep", {"seconds": 60})
        await jobs.create_job("echo", {})
        started = await Dispatcher(jobs, plugins, events, controls, capacity=2).dispatch()
        assert started == 2
        assert jobs.running == {"sleep": 1, "echo": 1}
    finally:
        await jobs.drain(0)
        await runner.close()
