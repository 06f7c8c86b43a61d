"""What every test may ask for: a real database at head."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.db.database import Database
from service.db.migrate import upgrade


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at head, made once and copied for each test."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    asyncio.run(upgrade(sqlite_url(path)))
    return path


@pytest.fixture
def database_file(migrated_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated_file, tmp_path / "jobs.db"))


@pytest.fixture
async def database(database_file: Path, tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(sqlite_url(database_file), tmp_path / "blobs", inline_bytes=1_000) as opened:
        yield opened
