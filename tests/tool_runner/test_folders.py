"""What plugin code leaves in its folders is removed, however it made it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.settings import Settings
from service.tool_runner import folders
from service.tool_runner.pool import WorkerPool


def nest(folder: Path, levels: int) -> None:
    """Folders in folders, each with a file beside; deeper than any path may be long."""
    above = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 10, dir_fd=above)
        inner = os.open("d" * 10, os.O_RDONLY, dir_fd=above)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(above)
        above = inner
    os.close(above)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def test_folders_in_folders_are_removed_without_end(folder: Path) -> None:
    nest(folder, 2_000)
    nest(folder, 0)
    (folder / "beside").mkdir()
    folders.remove(folder)
    assert not folder.exists()


def test_what_may_not_be_written_to_is_removed(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    for made in (folder / "a" / "b", folder / "a", folder):
        made.chmod(0o500)
    folders.remove(folder)
    assert not folder.exists()


def test_links_are_removed_and_not_followed(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o750)
    (kept / "file").touch()
    (folder / "link").symlink_to(kept)
    folders.remove(folder)
    folder.symlink_to(kept)
    folders.remove(folder)
    assert not os.path.lexists(folder)
    assert (kept / "file").exists()
    assert kept.stat().st_mode & 0o777 == 0o750


def test_a_file_in_place_of_a_folder_is_removed_and_nothing_is_no_fault(folder: Path) -> None:
    folder.rmdir()
    folder.touch()
    folders.remove(folder)
    folders.remove(folder)
    assert not folder.exists()


async def test_whatever_a_dead_service_left_behind_a_pool_starts(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, workers=1)
    left = settings.data_dir / "scratch" / "of-a-dead-one"
    left.mkdir(parents=True)
    nest(left, 2_000)
    pool = WorkerPool(settings)
    assert pool._scratch == left.parent
    await pool.start()
    await pool.close()
    assert not left.exists()


@pytest.mark.parametrize("is_there", [False, True])
async def test_what_plugins_work_on_is_for_the_owner_alone(tmp_path: Path, is_there: bool) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, workers=1)
    if is_there:
        (tmp_path / "scratch").mkdir(mode=0o755)
    pool = WorkerPool(settings)
    await pool.start()
    await pool.close()
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
