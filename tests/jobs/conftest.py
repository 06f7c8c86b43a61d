from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.db import plugin_metrics
from service.db.database import Database
from service.job_management import JobManagementService
from service.plugin_management import PluginManagementService
from service.settings import Settings
from service.tool_runner.pool import WorkerPool
from service.tool_runner.runner import ToolRunner


@pytest.fixture
def plugin_management(database: Database, tmp_path: Path) -> PluginManagementService:
    """With a real runner that has no plugin installed."""
    settings = Settings(data_dir=tmp_path, workers=2)
    return PluginManagementService(
        ToolRunner(WorkerPool(settings), {}, settings), lambda: plugin_metrics.load(database.reader)
    )


@pytest.fixture
async def jobs(database: Database, plugin_management: PluginManagementService) -> AsyncIterator[JobManagementService]:
    service = JobManagementService(database, plugin_management)
    yield service
    await service.drain(0)
