from __future__ import annotations

import hashlib

import pytest

from service.db.blobs import BlobStore
from service.errors import BytesGoneError, ServiceUnavailableError
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


async def test_missing_bytes_are_said_to_be_missing(database, tmp_path):
    (ref,) = await keep(database, b"x" * 5_000)
    next(path for path in (tmp_path / "blobs").rglob("*") if path.is_file()).unlink()
    with pytest.raises(ServiceUnavailableError, match=ref.sha256[:8]):
        await database.blobs.read([ref])
    with pytest.raises(BytesGoneError, match="0000 are not kept"):
        await database.blobs.read([BlobRef(sha256="0" * 64, size=1)])


async def test_a_store_that_cannot_be_written_is_unavailable(database, tmp_path):
    (tmp_path / "blobs").write_text("a file where the directory should be")
    with pytest.raises(ServiceUnavailableError, match="blobs"):
        await database.blobs.prepare([b"x" * 5_000])
