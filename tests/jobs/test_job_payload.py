"""The payload of a claimed job: read once, early if there are bytes in it, and waited for while it cannot be read."""

from __future__ import annotations

import asyncio
import contextvars
import errno
from pathlib import Path
from typing import Any

import pytest

from service.db import job_inserts
from service.db.database import Database
from service.documents import Documents
from service.errors import BytesGoneError, ServiceUnavailableError
from service.job_payload import JobPayload
from service.models import ClaimedJob
from tests.store.test_jobs import claim
from tests.store.test_writer import new_job

IMAGE = bytes(range(256)) * 16  # more than stays in the database of the tests


async def claimed(database: Database, payload: dict[str, Any]) -> ClaimedJob:
    job = new_job()
    job.payload, _, job.blobs = await Documents(database.blobs).store(payload)
    await database.writer.write(job_inserts.insert, job)
    (found,) = await claim(database)
    return found


async def test_bytes_are_read_when_they_are_prepared_and_not_again(database: Database) -> None:
    job = await claimed(database, {"image": IMAGE, "mime_type": "image/png"})
    payload = JobPayload(job, Documents(database.blobs))
    payload.prepare()
    payload.prepare()
    assert (await payload.get())["image"] == IMAGE
    for file in files(database):
        file.unlink()
    assert await payload.get() == {"image": IMAGE, "mime_type": "image/png"}
    with pytest.raises((BytesGoneError, ServiceUnavailableError)):
        await JobPayload(job, Documents(database.blobs)).get()


async def test_what_is_read_early_is_read_in_the_name_of_its_own_job(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    read, readers = database.blobs.files.read, []

    def noted(sha256: str) -> bytes:
        readers.append(name.get())
        return read(sha256)

    monkeypatch.setattr(database.blobs.files, "read", noted)
    job = await claimed(database, {"image": IMAGE})
    name.set("its own")
    payload = JobPayload(job, Documents(database.blobs))
    name.set("another one that ends")
    payload.prepare()
    assert (await payload.get())["image"] == IMAGE
    assert readers == ["its own"]


async def test_what_has_no_bytes_is_not_read_before_it_is_asked_for(database: Database) -> None:
    payload = JobPayload(await claimed(database, {"n": 1, "text": "no bytes"}), Documents(database.blobs))
    tasks = asyncio.all_tasks()
    payload.prepare()
    assert asyncio.all_tasks() == tasks
    assert await payload.get() == {"n": 1, "text": "no bytes"}
    payload.discard()


async def test_what_nobody_asks_for_is_nobodys_error(database: Database) -> None:
    job = await claimed(database, {"image": IMAGE})
    for file in files(database):
        file.unlink()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    given_up = JobPayload(job, Documents(database.blobs))
    given_up.prepare()
    given_up.discard()
    failed = JobPayload(job, Documents(database.blobs))
    failed.prepare()
    await asyncio.wait(asyncio.all_tasks() - before)
    failed.discard()
    del given_up, failed
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_payload_is_waited_for_while_its_file_cannot_be_opened(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.job_payload._RETRY_S", 0.01)
    read, refused = database.blobs.files.read, [OSError(errno.EMFILE, "too many open files")] * 2

    def refusing(sha256: str) -> bytes:
        if refused:
            raise refused.pop()
        return read(sha256)

    monkeypatch.setattr(database.blobs.files, "read", refusing)
    payload = JobPayload(await claimed(database, {"image": IMAGE}), Documents(database.blobs))
    assert (await payload.get())["image"] == IMAGE
    assert refused == []


def files(database: Database) -> list[Path]:
    found = [path for path in database.blobs.files.directory.rglob("*") if path.is_file()]
    assert found
    return found
