"""The write-ahead log: moved into the database between batches, watched, and cut when nobody needs it any more."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import time
from typing import Final

from service.db.ground import Ground
from service.db.sqlite_file import SqliteFile

_MB: Final = 1_000_000
#: A checkpoint is due after so many commits, so much growth, or so long: each costs two syncs, so not after each batch.
_COMMITS: Final = 32
_GROWTH_BYTES: Final = 4 * _MB
_EVERY_S: Final = 1.0
_CUT_BUSY_MS: Final = 50


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WalLimits:
    """Sizes of the log in bytes: above which an idle one is cut, people are warned, and new jobs are refused."""

    cut: int = 64 * _MB
    warn: int = 256 * _MB
    refuse: int = 4_000 * _MB
    refuse_share_of_free: float = 0.1


class WriteAheadLog:
    """Belongs to the connection that writes, the only one that checkpoints: no commit can race a checkpoint.

    PASSIVE waits for nobody, so that a long reader never holds up a write: the log grows until the reader leaves.
    """

    def __init__(self, file: SqliteFile, ground: Ground, limits: WalLimits | None = None) -> None:
        self._file = file
        self._ground = ground
        self._limits = limits or WalLimits()
        self._commits = 0
        self._bytes_then = 0
        self._tried_at = self._emptied_at = time.monotonic()
        self.size_bytes = 0

    @property
    def age_s(self) -> float:
        """Seconds since all of it was in the database."""
        return time.monotonic() - self._emptied_at

    def grown(self, size: int) -> bool:
        """A commit has left the log at `size` bytes; whether a checkpoint is due."""
        self._commits += 1
        self.size_bytes = size
        return (
            self._commits >= _COMMITS
            or size - self._bytes_then >= _GROWTH_BYTES
            or time.monotonic() - self._tried_at >= _EVERY_S
        )

    def checkpoint(self, connection: sqlite3.Connection, busy_timeout_ms: int) -> None:
        """Move what no reader needs; cut the file when all was moved and it is large. Outside a transaction."""
        busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._commits, self._tried_at = 0, time.monotonic()
        if not busy and frames == moved:
            self._emptied_at = self._tried_at
            if self._file.verify() > self._limits.cut:
                connection.execute(f"PRAGMA busy_timeout = {_CUT_BUSY_MS}")
                try:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
        self.size_bytes = self._bytes_then = self._file.verify()
        self._tell()

    def _tell(self) -> None:
        size, limits = self.size_bytes, self._limits
        free = shutil.disk_usage(self._file.path.parent).free
        # The log itself has taken from what was free.
        cap = min(limits.refuse, (free + size) * limits.refuse_share_of_free)
        cause = f"a program that reads {self._file.path} has held it for {self.age_s:.0f} s: end its transaction"
        grown = f"The write-ahead log has grown to {size // _MB} MB because {cause}"
        self._ground.warn("wal", f"{grown}." if size > limits.warn else None)
        self._ground.refuse_intake(f"{grown}; no new jobs until then." if size > cap else None)
