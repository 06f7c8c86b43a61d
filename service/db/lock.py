"""One process on one SQLite file: whoever holds the lock knows that every process before it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from service.errors import DatabaseInUseError, StartupError


@contextlib.contextmanager
def exclusive_lock(database: Path) -> Iterator[None]:
    """Hold `database`'s lock file; raises `DatabaseInUseError` when another process holds it.

    The kernel drops the lock with the process, however it ends; programs started by the holder do not inherit it.
    """
    path = database.with_name(database.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(
            f"{path} cannot be opened: {error.strerror}. Let this user (uid {os.getuid()}) write there, "
            "or choose another JOBSERVICE_DATA_DIR."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise DatabaseInUseError(
                f"Another service (process {holder}) already uses {database}. One SQLite file takes one service: "
                "stop the other, or choose another JOBSERVICE_DATA_DIR."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
