"""Bytes by content: small ones in the `blobs` table, larger ones in files, on disk before any row names them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql

from service.db.blob_files import BlobFiles
from service.db.reader import Reader
from service.db.schema import blobs, job_blobs
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.errors import BytesGoneError, BytesLostError, ServiceUnavailableError
from service.models import BlobRef, JobPart, Timestamp, timestamp

#: Up to this size hashing costs less than handing the bytes to a thread.
_HASH_ON_LOOP_BYTES: Final = 128_000

#: What ends when somebody makes room; anything else needs a look at the directory.
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS})
_RETRY_S: Final = 5
#: So many values are hashed and written at once: more keep the event loop from its core, and no disk busier.
_WRITES_AT_ONCE: Final = max(2, len(os.sched_getaffinity(0)))

_INSERT = Statement(
    postgresql.insert(blobs)
    .values({column.name: sa.bindparam(column.name) for column in blobs.columns})
    .on_conflict_do_nothing()
)
_wanted = batch_table("wanted", blobs.c.sha256)
_SELECT = Statement(sa.select(blobs.c.sha256, blobs.c.data).where(blobs.c.sha256.in_(sa.select(_wanted.c.sha256))))
_SELECT_OF_JOB = Statement(
    sa.select(blobs.c.sha256, blobs.c.data)
    .join(job_blobs, job_blobs.c.sha256 == blobs.c.sha256)
    .where(
        job_blobs.c.job_id == sa.bindparam("of_job"),
        job_blobs.c.part == sa.bindparam("of_part"),
        job_blobs.c.sha256 == sa.bindparam("of_sha256"),
    )
)

log = structlog.get_logger(__name__)


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
        self.files = BlobFiles(directory)
        self._reader = reader
        self._inline_bytes = inline_bytes
        self._writing = asyncio.Semaphore(_WRITES_AT_ONCE)
        self._told: set[str] = set()  # what the log has heard of: whoever follows a lost file may ask for ever

    async def prepare(self, values: Sequence[bytes]) -> list[NewBlob]:
        """Hash `values` and put the large ones on stable storage; in the order given.

        Raises `ServiceUnavailableError` when a file cannot be written; those before it go as files that nobody names.
        """
        if sum(map(len, values)) <= min(_HASH_ON_LOOP_BYTES, self._inline_bytes):
            return [self._prepare(value) for value in values]
        try:
            async with self._writing:
                return await asyncio.to_thread(lambda: [self._prepare(value) for value in values])
        except OSError as error:
            raise ServiceUnavailableError(
                f"Bytes cannot be stored in {self.files.directory}: {error}.",
                retry_after_s=_RETRY_S if error.errno in _PASSING else None,
            ) from error

    def _prepare(self, value: bytes) -> NewBlob:
        sha256 = hashlib.sha256(value).hexdigest()
        inline = len(value) <= self._inline_bytes
        if not inline:
            self.files.put(sha256, value)
        return NewBlob(sha256=sha256, size=len(value), created_at=timestamp(), data=value if inline else None)

    @staticmethod
    async def insert(tx: Transaction, new: Iterable[NewBlob]) -> None:
        """Add the rows; bytes that are stored already stay as they are."""
        rows = {blob.sha256: (blob.sha256, blob.size, blob.created_at, blob.data) for blob in new}
        # In one order everywhere: processes that add the same bytes then wait for each other, never in a circle.
        await tx.execute_many(_INSERT, [row for _, row in sorted(rows.items())])

    async def read(self, refs: Iterable[BlobRef]) -> dict[str, bytes]:
        """The bytes behind `refs` by their hash; raises `BytesGoneError`, `BytesLostError`, `ServiceUnavailableError`.

        Where a file is lost or unreadable, waiting does not help.
        """
        wanted = sorted({ref.sha256 for ref in refs})
        if not wanted:
            return {}
        rows = await self._reader.fetch(_SELECT, batch=batch((sha256,) for sha256 in wanted))
        found = {sha256: await self._data(sha256, data) for sha256, data in rows}
        if gone := set(wanted) - found.keys():
            raise _gone(*gone)
        return found

    async def read_of_job(self, job_id: str, part: JobPart, ref: BlobRef) -> bytes:
        """The bytes behind a reference in a part of a job, which must still name them; raises as `read`.

        Whether anybody else keeps the same bytes is not told: it may be another tenant.
        """
        row = await self._reader.fetch_one(_SELECT_OF_JOB, of_job=job_id, of_part=part, of_sha256=ref.sha256)
        if row is None:
            raise _gone(ref.sha256)
        return await self._data(*row)

    async def _data(self, sha256: str, data: bytes | None) -> bytes:
        if data is not None:
            return data
        try:
            return await asyncio.to_thread(self.files.read, sha256)
        except FileNotFoundError as error:
            # Retention may have taken the row since it was read, and then the file.
            if not await self._reader.fetch(_SELECT, batch=batch([(sha256,)])):
                raise _gone(sha256) from error
            self._tell(sha256, "a file of stored bytes is lost", error)
            raise BytesLostError(sha256) from error
        except OSError as error:
            is_passing = error.errno in (errno.EMFILE, errno.ENFILE)
            if not is_passing:
                self._tell(sha256, "a file of stored bytes cannot be read", error)
            raise ServiceUnavailableError(
                f"The stored bytes {sha256} cannot be read: {error.strerror}.",
                retry_after_s=_RETRY_S if is_passing else None,
            ) from error

    def _tell(self, sha256: str, event: str, error: OSError) -> None:
        if sha256 not in self._told:
            self._told.add(sha256)
            log.error(event, path=error.filename, error=error.strerror)


def _gone(*hashes: str) -> BytesGoneError:
    return BytesGoneError(f"The bytes {', '.join(sorted(hashes))} are not kept any more.")
