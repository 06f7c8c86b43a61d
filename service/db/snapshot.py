"""A copy of an SQLite database as it is at one moment, made while others read and write it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

from service.db.directories import sync_directory
from service.db.engine import DatabaseKind, database_kind, sqlite_path
from service.db.preflight import check_access
from service.errors import StartupError


def snapshot(database_url: str, target: Path) -> None:
    """Copy the database to `target`, which must not exist, and have it on disk. Blocks; writers do not wait for it.

    Raises `StartupError` when there is no such database, no room, or another kind of database.
    """
    if database_kind(database_url) is not DatabaseKind.SQLITE:
        raise StartupError("A PostgreSQL database is copied by its own tools: pg_dump --format=custom --file=FILE URL.")
    path = sqlite_path(database_url)
    if not path.is_file():
        raise StartupError(f"There is no database at {path.absolute()}.")
    check_access(path)
    try:
        copy(path, target)
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StartupError(f"{path} was not copied to {target}: {why}.") from error


def copy(path: Path, target: Path) -> None:
    """Copy the file `path` to `target`, whole or not at all. Raises `FileExistsError`, `OSError` or `sqlite3.Error`."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    partial = target.with_name(target.name + ".partial")
    try:
        # A reader's snapshot: it sees what was committed before it, and keeps nobody from writing.
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        ) as reader:
            partial.unlink(missing_ok=True)
            # Payloads and secrets are for its owner's eyes.
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            reader.execute("VACUUM INTO ?", (str(partial),))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(target)
        sync_directory(target.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)
