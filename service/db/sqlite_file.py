"""The file behind SQLite: whether it is still the one that was opened, and what the driver's errors say about it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.db.ground import Fault, Healing

#: A full disk counts as freed when so much is free: less would be gone with the next few commits.
HEADROOM_BYTES: Final = 1_000_000

_RESTORE: Final = "stop the service, then restore a backup or recover what is readable with `sqlite3 FILE .recover`"
#: Kind, what happened and what to do, and how it heals, by SQLite's extended result code; else by its primary code.
_FAULTS: Final[Mapping[int, tuple[str, str, Healing]]] = {
    sqlite3.SQLITE_FULL: ("full", "the disk is full: free some space", Healing.BY_ITSELF),
    sqlite3.SQLITE_BUSY: (
        "locked",
        "another program holds its lock: end that program's transaction",
        Healing.BY_ITSELF,
    ),
    sqlite3.SQLITE_LOCKED: ("locked", "another connection holds its lock", Healing.BY_ITSELF),
    sqlite3.SQLITE_READONLY: (
        "read-only",
        "it is read-only: make the file, its directory and its file system writable",
        Healing.BY_ITSELF,
    ),
    sqlite3.SQLITE_IOERR_WRITE: (
        "io",
        "writing failed: look for a file size limit (ulimit -f), a quota or a failing disk",
        Healing.BY_ITSELF,
    ),
    sqlite3.SQLITE_IOERR: ("io", "the disk reports an error: look at the kernel's log", Healing.BY_ITSELF),
    sqlite3.SQLITE_IOERR_FSYNC: (
        "fsync",
        "the disk did not confirm a write: the service ends at once. Look at the kernel's log and check the disk",
        Healing.NEVER,
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "open",
        "a file of it cannot be opened: look for missing files and at the limit of open files (ulimit -n)",
        Healing.BY_ITSELF,
    ),
    sqlite3.SQLITE_NOMEM: ("memory", "there is no memory left: give the service more", Healing.BY_ITSELF),
    sqlite3.SQLITE_CORRUPT: ("corrupt", f"it is damaged: {_RESTORE}", Healing.BY_RESTART),
    sqlite3.SQLITE_NOTADB: ("corrupt", f"it is not a database any more: {_RESTORE}", Healing.BY_RESTART),
}
_SAME_AS: Final[Mapping[int, int]] = {sqlite3.SQLITE_IOERR_DIR_FSYNC: sqlite3.SQLITE_IOERR_FSYNC}


class FileGoneError(Exception):
    """The path no longer leads to the file that is open."""


class NoRoomError(Exception):
    """A probe would commit, but hardly anything else; `code` is what SQLite would say then."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class SqliteFile:
    """A database's file and its write-ahead log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wal = path.with_name(path.name + "-wal")
        self._identities: dict[Path, tuple[int, int]] = {}

    def verify(self) -> int:
        """The size of the log; raises `FileGoneError` when either file was deleted or replaced since the first call.

        What is committed to a file that has no name any more is lost with the process.
        """
        size = 0
        for path in (self.path, self.wal):
            try:
                found = path.stat()
            except OSError as error:
                raise FileGoneError(f"{path} is gone ({error.strerror})") from error
            size = found.st_size
            identity = (found.st_dev, found.st_ino)
            if self._identities.setdefault(path, identity) != identity:
                raise FileGoneError(f"{path} has been replaced by another file")
        return size

    def check_room(self) -> None:
        """Raise `NoRoomError` when the log could not grow by `HEADROOM_BYTES`: a probe may fit where a job does not."""
        if shutil.disk_usage(self.path.parent).free < HEADROOM_BYTES:
            raise NoRoomError(sqlite3.SQLITE_FULL, f"less than {HEADROOM_BYTES:,} bytes are free")
        with tempfile.TemporaryFile(dir=self.path.parent, buffering=0) as file:
            try:
                os.pwrite(file.fileno(), b"\0", self.wal.stat().st_size + HEADROOM_BYTES)
            except OSError as error:
                raise NoRoomError(sqlite3.SQLITE_IOERR_WRITE, f"its log cannot grow: {error.strerror}") from error

    def diagnose(self, error: BaseException) -> Fault | None:
        """The fault of the whole database behind `error`; None when it lies with what was asked of it."""
        match error:
            case FileGoneError():
                advice = "put it back, or stop the service and restore a backup"
                return Fault(kind="gone", reason=f"The database is not available: {error}; {advice}.")
            case NoRoomError():
                code = error.code
            case sqlite3.Error():
                code = getattr(error, "sqlite_errorcode", 0)
            case _:
                return None
        found = _FAULTS.get(_SAME_AS.get(code, code)) or _FAULTS.get(code & 0xFF)
        if found is None:
            return None
        kind, text, healing = found
        return Fault(kind=kind, reason=f"The database {self.path} is not available: {text} ({error}).", healing=healing)
