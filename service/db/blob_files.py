"""The object store in a directory: one file a content, put there before any row names it, removed after the last did.

Several processes use the directory at once. Whoever puts bytes that are there already touches their file; whoever
removes a file first takes it aside, and puts it back if it was touched: so nobody commits a row that names nothing.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.db.directories import make_directory, sync_directory

#: A file that was put or touched since is not removed: its row may be about to be committed.
GRACE_S: Final = 3_600.0

_NAME: Final = re.compile(r"[0-9a-f]{64}")
_ASIDE: Final = re.compile(r"\.([0-9a-f]{64})\.aside")


class BlobFiles:
    """Files by the SHA-256 of what they hold. Every method reads or writes the disk, and may raise `OSError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._is_synced = False  # the directory itself, into the one above

    def put(self, sha256: str, data: bytes) -> None:
        """Have `data` on stable storage; it stays for `GRACE_S` at least, with or without a row."""
        if not self._is_synced:
            make_directory(self.directory)
            # Also when it was there: another thread may have made it, and not have come to this yet.
            sync_directory(self.directory.parent)
            self._is_synced = True
        write_durably(self._path(sha256), data)

    def read(self, sha256: str) -> bytes:
        """The bytes; raises `FileNotFoundError` where there are none."""
        path = self._path(sha256)
        # Whoever has it aside either puts it back or knows that no row names it.
        for candidate in (path, _aside(path)):
            try:
                return candidate.read_bytes()
            except FileNotFoundError:
                continue
        return path.read_bytes()

    def remove(self, sha256: str, *, grace_s: float = GRACE_S) -> bool:
        """Remove the file, which no row names; False where somebody may be about to, having put or touched it since."""
        path = self._path(sha256)
        aside = _aside(path)
        try:
            if _is_younger(path, grace_s):
                return False
            path.rename(aside)
        except FileNotFoundError:
            return True
        try:
            # Who touched it before it went aside is seen here; who comes after finds nothing, and writes it anew.
            if not _is_younger(aside, grace_s):
                aside.unlink()
                return True
            aside.rename(path)
        except FileNotFoundError:  # another process is at it
            return False
        sync_directory(path.parent)
        return False

    def look(self, number: int, *, grace_s: float = GRACE_S) -> list[str]:
        """What may have no row in subdirectory `number` of 256: the names of files that are older than `grace_s`.

        What a process left there that was killed is tidied up: halves of files go, files taken aside come back.
        """
        return list(self._look(self.directory / f"{number:02x}", grace_s))

    def _look(self, directory: Path, grace_s: float) -> Iterator[str]:
        if not directory.is_dir():
            return
        for path in directory.iterdir():
            try:
                if _NAME.fullmatch(path.name):
                    if not _is_younger(path, grace_s):
                        yield path.name
                elif (aside := _ASIDE.fullmatch(path.name)) is not None:
                    if time.time() - path.stat().st_ctime >= grace_s:  # since it was taken aside
                        os.utime(path)  # the same may have been put since; what replaces it must be as young
                        path.rename(directory / aside[1])
                elif not _is_younger(path, grace_s):
                    path.unlink()
            except FileNotFoundError:
                continue

    def _path(self, sha256: str) -> Path:
        return self.directory / sha256[:2] / sha256


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")


def _is_younger(path: Path, age_s: float) -> bool:
    return time.time() - path.stat().st_mtime < age_s


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that it survives a power cut: file synced, renamed into place, directories synced.

    A file that is there is taken for the same, and touched.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.utime(path)
    except FileNotFoundError:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    # Also when the file was there: whoever renamed it may not have come to this yet.
    for directory in (path.parent, path.parent.parent):
        sync_directory(directory)
