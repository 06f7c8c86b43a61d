"""A process that owns a pool with calls that never end; run by tests that kill it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from service.plugins.discovery import installed_plugins
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner


async def main(data_dir: str, hostile: str) -> None:
    sys.path.insert(0, hostile)
    settings = Settings(_env_file=None, data_dir=Path(data_dir), workers=4, timeout_s=600)
    pool = WorkerPool(settings)
    runner = ToolRunner(pool, installed_plugins(), settings)
    await runner.start()
    await runner.run("neighbour", {})  # one idle worker
    sys.stdout.write(f"{pool.instance}\n")
    sys.stdout.flush()
    hidden = {"then": "hang", "trace": f"{data_dir}/hidden"}
    calls = [("spins_in_c", {}), ("stops_itself", {}), ("ignores_signals", {}), ("hides_a_process", hidden)]
    await asyncio.gather(*(runner.run(plugin, payload) for plugin, payload in calls))


asyncio.run(main(*sys.argv[1:]))
