"""The import contracts of pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .walls import ROOT, SERVICE


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walls")
    shutil.copytree(SERVICE, folder / "service", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_import_contract_is_kept() -> None:
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("service/models.py", "from service import settings", "Imports point down; a new file must take a place"),
        ("service/db/schema.py", "from service.api import app", "Imports point down; a new file must take a place"),
        ("service/stray.py", '"""A module without a place."""', "Imports point down; a new file must take a place"),
        ("service/tool_runner/runner.py", "from service.db import schema", "Plugins and their runner know no database"),
        ("service/plugins/discovery.py", "import service.db", "Plugins and their runner know no database"),
        ("service/db/schema.py", "from service.plugins import manifest", "The database knows no plugins"),
        ("service/job_management.py", "import service.tool_runner", "Only PluginManagementService reaches ToolRunner"),
        ("service/dispatcher.py", "import service.tool_runner", "Only PluginManagementService reaches ToolRunner"),
        ("service/plugin_management.py", "from service.plugins import loading", "Only ToolRunner loads plugins"),
        ("service/api/handlers.py", "import service.db.reader", "Only management and the wiring reach the data"),
        ("service/job_management.py", "import sqlalchemy", "SQL lives in service.db"),
        ("service/api/handlers.py", "def late():\n    import sqlite3", "SQL lives in service.db"),
        ("service/job_management.py", "from aiohttp import web", "HTTP lives in service.api"),
    ],
)
def test_a_planted_import_breaks_the_contract_meant_for_it(
    sources: Path, module: str, planted: str, contract: str
) -> None:
    path = sources / module
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{planted}\n")
    try:
        outcome = lint_imports(sources)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    verdicts = [line for line in outcome.stdout.splitlines() if line.startswith(contract)]
    assert any(" BROKEN" in verdict for verdict in verdicts), outcome.stdout
