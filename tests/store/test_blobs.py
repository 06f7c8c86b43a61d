from __future__ import annotations

import asyncio
import errno
import hashlib

import pytest
import sqlalchemy as sa
import structlog

from service.db import schema
from service.db.blobs import BlobStore
from service.db.statements import Statement
from service.errors import BytesGoneError, BytesLostError, ServiceUnavailableError
from service.models import BlobRef


async def keep(database, *values):
    prepared = await database.blobs.prepare(values)

    async def insert(tx, items):
        await BlobStore.insert(tx, prepared)
        return [None] * len(items)

    await database.writer.write(insert, None)
    return [BlobRef(sha256=blob.sha256, size=blob.size) for blob in prepared]


@pytest.mark.parametrize("size", [0, 1, 1_000, 1_001, 300_000])
async def test_bytes_of_any_size_come_back(database, size):
    value = bytes(range(256)) * (size // 256 + 1)
    value = value[:size]
    (ref,) = await keep(database, value)
    assert ref.sha256 == hashlib.sha256(value).hexdigest()
    assert await database.blobs.read([ref]) == {ref.sha256: value}


async def test_the_same_bytes_are_kept_once(database, tmp_path):
    first, second = await keep(database, b"x" * 5_000, b"x" * 5_000)
    await keep(database, b"x" * 5_000)
    assert first == second
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [first.sha256]


async def test_files_are_for_the_owner_alone_and_no_temporary_stays(database, tmp_path):
    await keep(database, b"x" * 5_000)
    (path,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert path.stat().st_mode & 0o077 == 0


async def test_missing_bytes_are_said_to_be_missing_and_their_file_is_logged_once(database, tmp_path):
    (ref,) = await keep(database, b"x" * 5_000)
    (path,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    path.unlink()
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(BytesLostError, match=f"{ref.sha256} are lost") as raised:
                await database.blobs.read([ref])
            assert str(tmp_path) not in str(raised.value)
    assert [line["path"] for line in lines] == [str(path)]
    await database.blobs.prepare([b"x" * 5_000])  # who sends them again brings them back for all who name them
    assert await database.blobs.read([ref]) == {ref.sha256: b"x" * 5_000}
    with pytest.raises(BytesGoneError, match="0000 are not kept"):
        await database.blobs.read([BlobRef(sha256="0" * 64, size=1)])


async def test_bytes_that_went_while_they_were_looked_for_are_not_lost(database, monkeypatch):
    (ref,) = await keep(database, b"x" * 5_000)

    async def prune(tx, items):
        await tx.fetch(Statement(sa.delete(schema.blobs).returning(schema.blobs.c.sha256)))
        return [None] * len(items)

    def pruned(sha256):
        asyncio.run_coroutine_threadsafe(database.writer.write(prune, None), loop).result()
        raise FileNotFoundError(errno.ENOENT, "it went after its row")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(database.blobs.files, "read", pruned)
    with pytest.raises(BytesGoneError) as raised:
        await database.blobs.read([ref])
    assert not isinstance(raised.value, BytesLostError)


async def test_bytes_that_cannot_be_read_are_unavailable_and_name_no_path(database, tmp_path, monkeypatch):
    (ref,) = await keep(database, b"x" * 5_000)

    def refused(sha256):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / sha256))

    monkeypatch.setattr(database.blobs.files, "read", refused)
    with pytest.raises(ServiceUnavailableError, match=f"{ref.sha256} cannot be read: Permission denied") as raised:
        await database.blobs.read([ref])
    assert raised.value.retry_after_s is None
    assert str(tmp_path) not in str(raised.value)


async def test_a_store_that_cannot_be_written_is_unavailable(database, tmp_path):
    (tmp_path / "blobs").write_text("a file where the directory should be")
    with pytest.raises(ServiceUnavailableError, match="blobs"):
        await database.blobs.prepare([b"x" * 5_000])
