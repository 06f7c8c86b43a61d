"""Bytes by content: small ones in the `blobs` table, larger ones in files, on disk before any row names them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db.directories import make_directory, sync_directory
from service.db.reader import Reader
from service.db.schema import blobs
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.errors import ServiceUnavailableError
from service.models import BlobRef, Timestamp, timestamp

#: Up to this size hashing costs less than handing the bytes to a thread.
_HASH_ON_LOOP_BYTES: Final = 16 * 1024

#: What ends when somebody makes room; anything else needs a look at the directory.
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS})
_RETRY_S: Final = 5

_INSERT = Statement(
    postgresql.insert(blobs)
    .values({column.name: sa.bindparam(column.name) for column in blobs.columns})
    .on_conflict_do_nothing()
)
_wanted = batch_table("wanted", blobs.c.sha256)
_SELECT = Statement(sa.select(blobs.c.sha256, blobs.c.data).where(blobs.c.sha256.in_(sa.select(_wanted.c.sha256))))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewBlob:
    """Bytes ready to be named by a row: hashed, and on disk if `data` is None."""

    sha256: str
    size: int
    created_at: Timestamp
    data: bytes | None


class BlobStore:
    """Keeps bytes under their SHA-256. `prepare` them first, `insert` in the transaction whose rows name them."""

    def __init__(self, directory: Path, reader: Reader, *, inline_bytes: int) -> None:
        self._directory = directory
        self._reader = reader
        self._inline_bytes = inline_bytes
        self._is_synced = False  # the directory itself, into the one above

    async def prepare(self, values: Sequence[bytes]) -> list[NewBlob]:
        """Hash `values` and put the large ones on stable storage; in the order given.

        Raises `ServiceUnavailableError` when a file cannot be written; nothing is left behind then.
        """
        if sum(map(len, values)) <= min(_HASH_ON_LOOP_BYTES, self._inline_bytes):
            return [self._prepare(value) for value in values]
        try:
            return await asyncio.to_thread(lambda: [self._prepare(value) for value in values])
        except OSError as error:
            raise ServiceUnavailableError(
                f"Bytes cannot be stored in {self._directory}: {error}.",
                retry_after_s=_RETRY_S if error.errno in _PASSING else None,
            ) from error

    def _prepare(self, value: bytes) -> NewBlob:
        sha256 = hashlib.sha256(value).hexdigest()
        inline = len(value) <= self._inline_bytes
        if not inline:
            if not self._is_synced:
                make_directory(self._directory)
                # Also when it was there: another thread may have made it, and not have come to this yet.
                sync_directory(self._directory.parent)
                self._is_synced = True
            write_durably(self._path(sha256), value)
        return NewBlob(sha256=sha256, size=len(value), created_at=timestamp(), data=value if inline else None)

    @staticmethod
    async def insert(tx: Transaction, new: Iterable[NewBlob]) -> None:
        """Add the rows; bytes that are stored already stay as they are."""
        rows = {blob.sha256: (blob.sha256, blob.size, blob.created_at, blob.data) for blob in new}
        # In one order everywhere: processes that add the same bytes then wait for each other, never in a circle.
        await tx.execute_many(_INSERT, [row for _, row in sorted(rows.items())])

    async def read(self, refs: Iterable[BlobRef]) -> dict[str, bytes]:
        """The bytes behind `refs` by their hash; raises `ServiceUnavailableError`.

        Where some are missing or unreadable, waiting does not help.
        """
        wanted = sorted({ref.sha256 for ref in refs})
        if not wanted:
            return {}
        found: dict[str, bytes] = {}
        for sha256, data in await self._reader.fetch(_SELECT, batch=batch((sha256,) for sha256 in wanted)):
            found[sha256] = data if data is not None else await asyncio.to_thread(self._read_file, sha256)
        if missing := set(wanted) - found.keys():
            raise ServiceUnavailableError(
                f"Stored bytes are missing: {', '.join(sorted(missing))}.", retry_after_s=None
            )
        return found

    def _read_file(self, sha256: str) -> bytes:
        try:
            return self._path(sha256).read_bytes()
        except OSError as error:
            retry_after_s = 5 if error.errno in (errno.EMFILE, errno.ENFILE) else None
            raise ServiceUnavailableError(
                f"Stored bytes cannot be read: {error}.", retry_after_s=retry_after_s
            ) from error

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that it survives a power cut: file synced, renamed into place, directories synced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
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
