"""Whichever call of the driver or the file system fails, a write is whole or not there, and its waiter is told."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import errno
import itertools
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from service.db import (
    job_changes,
    job_claims,
    job_endings,
    job_inserts,
    job_removals,
    job_retries,
    webhook_deliveries,
    webhook_endpoints,
)
from service.db.blobs import NewBlob
from service.db.database import Database
from service.db.job_changes import CancelRequest
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_removals import Removal
from service.db.job_retries import Retry
from service.db.transaction import RefusedError
from service.db.webhook_deliveries import DeliveryClaim
from service.db.webhook_endpoints import NewEndpoint
from service.errors import ServiceUnavailableError
from service.models import BlobRef, ClaimedJob, JobStatus, timestamp
from service.webhook_models import ClaimedDelivery, DeliveryOutcome, DeliveryStatus, new_webhook_secret
from tests.conftest import sqlite_url
from tests.store.test_jobs import ME
from tests.store.test_writer import new_job

SMALL, LARGE, RESULT, BATCHED = b"s" * 100, b"l" * 5_000, b"r" * 6_000, b"b" * 4_000

_INJECTED = "injected"
_DISK = sqlite3.OperationalError(f"disk I/O error ({_INJECTED})")
_REFUSED = sqlite3.IntegrityError(f"constraint failed ({_INJECTED})")
_FILE = OSError(errno.EIO, _INJECTED)


#: A call, and the how manyeth of its kind it is. (Its place among all calls differs from run to run: what the writer
#: does after a commit, and which writes come together in a batch, is a matter of timing.)
Place = tuple[str, int]
#: How often a run may miss the call that it should see fail.
TRIES = 3


class Calls:
    """Counts the calls of the driver and of `os` while armed, and makes one of them fail before it does anything."""

    def __init__(self) -> None:
        self._is_armed = False
        self._fatal: Place | None = None
        self._driver_error: Exception = _DISK
        self.made: collections.Counter[str] = collections.Counter()
        self.failed: str | None = None

    @contextlib.contextmanager
    def failing(self, fatal: Place | None, driver_error: Exception) -> Iterator[None]:
        """Within the block the call `fatal` fails; None fails none. All are counted in `made`."""
        self._fatal, self._driver_error, self.failed = fatal, driver_error, None
        self.made.clear()
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False

    def driver(self, what: str) -> None:
        self._pass(what, self._driver_error)

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `os` that is counted."""

        def call(*arguments: Any, **more: Any) -> Any:
            self._pass(function.__name__, _FILE)
            return function(*arguments, **more)

        return call

    def _pass(self, what: str, error: Exception) -> None:
        if not self._is_armed:
            return
        self.made[what] += 1
        if (what, self.made[what]) == self._fatal:
            self.failed = what
            raise error


def connection_class(calls: Calls, *, ignored: str | None = None) -> type[sqlite3.Connection]:
    """The driver's connection, its calls counted; a statement that is `ignored` never reaches the database."""

    class Connection(sqlite3.Connection):
        def execute(self, text: str, *parameters: Any) -> sqlite3.Cursor:
            calls.driver(text)
            return super().execute("SELECT 1" if text == ignored else text, *parameters)

        def executemany(self, text: str, *parameters: Any) -> sqlite3.Cursor:
            calls.driver(text)
            return super().executemany(text, *parameters)

        def commit(self) -> None:
            calls.driver("COMMIT")
            super().commit()

    return Connection


def install(monkeypatch: pytest.MonkeyPatch, *, ignored: str | None = None) -> Calls:
    calls = Calls()
    connect = partial(sqlite3.connect, factory=connection_class(calls, ignored=ignored))
    monkeypatch.setattr(sqlite3, "connect", connect)
    for function in (os.fsync, os.rename, os.open, os.mkdir):
        monkeypatch.setattr(os, function.__name__, calls.wrapped(function))
    return calls


@dataclasses.dataclass(slots=True, kw_only=True)
class Write:
    """Something asked of the store, and how its effect is seen in the database: all of it or nothing."""

    make: Callable[[list[NewBlob]], Awaitable[Any]]
    effect: Callable[[sqlite3.Connection], tuple[Any, ...]]
    nothing: tuple[Any, ...]
    whole: tuple[Any, ...]
    stored: bytes | None = None


def _rows(connection: sqlite3.Connection, text: str, *values: Any) -> list[tuple[Any, ...]]:
    return connection.execute(text, values).fetchall()


def _submission(database: Database, value: bytes | None, key: str | None = None) -> Write:
    job = new_job(key=key)

    def make(blobs: list[NewBlob]) -> Awaitable[Any]:
        job.blobs = blobs
        return database.writer.write(job_inserts.insert, job)

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT status, event_count FROM jobs WHERE id = ?", job.id),
            _rows(connection, "SELECT n, type FROM job_events WHERE job_id = ?", job.id),
        )

    return Write(make=make, effect=effect, nothing=([], []), whole=([("PENDING", 1)], [(1, "submitted")]), stored=value)


def _ending(database: Database, job: ClaimedJob) -> Write:
    def make(blobs: list[NewBlob]) -> Awaitable[Any]:
        item = Ending(job=job, owner=ME, status=JobStatus.SUCCESS, result='{"ok":true}', blobs=blobs)
        return database.writer.write(job_endings.end, item)

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT status, result, event_count FROM jobs WHERE id = ?", job.id),
            _rows(connection, "SELECT outcome FROM job_attempts WHERE job_id = ?", job.id),
            _rows(connection, "SELECT type FROM job_events WHERE job_id = ? AND n = 3", job.id),
            _rows(connection, "SELECT type, status FROM webhook_deliveries WHERE job_id = ?", job.id),
        )

    return Write(
        make=make,
        effect=effect,
        nothing=([("RUNNING", None, 2)], [(None,)], [], []),
        whole=([("SUCCESS", '{"ok":true}', 3)], [("SUCCESS",)], [("success",)], [("job.success", "PENDING")]),
        stored=RESULT,
    )


def _cancellation(database: Database, job: ClaimedJob) -> Write:
    def make(_: list[NewBlob]) -> Awaitable[Any]:
        return database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job.id, reason="why"))

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT cancel_requested_at IS NOT NULL, event_count FROM jobs WHERE id = ?", job.id),
            _rows(connection, "SELECT type FROM job_events WHERE job_id = ? AND n = 3", job.id),
        )

    return Write(make=make, effect=effect, nothing=([(0, 2)], []), whole=([(1, 3)], [("cancel_requested",)]))


def _delivery(database: Database, delivery: ClaimedDelivery) -> Write:
    def make(_: list[NewBlob]) -> Awaitable[Any]:
        item = DeliveryOutcome(
            delivery=delivery,
            status=DeliveryStatus.EXHAUSTED,
            at=timestamp(),
            took_s=0.1,
            error="gone",
            disable="gone",
            disable_after_s=60,
        )
        return database.writer.write(webhook_deliveries.record_attempts, item)

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT status, failures FROM webhook_deliveries WHERE id = ?", delivery.id),
            _rows(connection, "SELECT attempt, error FROM webhook_attempts WHERE delivery_id = ?", delivery.id),
            _rows(connection, "SELECT disabled_reason FROM webhook_endpoints WHERE id = ?", delivery.endpoint_id),
        )

    return Write(
        make=make,
        effect=effect,
        nothing=([("PENDING", 0)], [], [(None,)]),
        whole=([("EXHAUSTED", 1)], [(1, "gone")], [("gone",)]),
    )


async def _endpoint(database: Database, tenant: str) -> str:
    new = NewEndpoint(id=str(uuid7()), tenant=tenant, url="https://example.com", secret=new_webhook_secret())
    await database.writer.write(webhook_endpoints.insert_endpoints, new)
    return new.id


async def _claimed_ping(database: Database) -> ClaimedDelivery:
    endpoint_id = await _endpoint(database, "acme")
    await database.writer.write(webhook_deliveries.ping, endpoint_id)
    claim = DeliveryClaim(rooms={endpoint_id: 1}, lease_s=60)
    (delivery,) = await database.writer.write(webhook_deliveries.claim_deliveries, claim)
    return delivery


def _batch(database: Database) -> Write:
    batch_id, jobs = str(uuid7()), [new_job(), new_job(key="b"), new_job()]

    def make(blobs: list[NewBlob]) -> Awaitable[Any]:
        for job in jobs:
            job.batch_id, job.blobs = batch_id, blobs
        return database.writer.write(job_inserts.insert_batch, jobs)

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        of_batch = "SELECT count(*) FROM jobs WHERE batch_id = ?"
        submitted = "SELECT count(*) FROM job_events JOIN jobs ON jobs.id = job_id WHERE batch_id = ?"
        return (_rows(connection, of_batch, batch_id), _rows(connection, submitted, batch_id))

    return Write(make=make, effect=effect, nothing=([(0,)], [(0,)]), whole=([(3,)], [(3,)]), stored=BATCHED)


def _retry(database: Database, parent_id: str) -> Write:
    item = Retry(id=str(uuid7()), parent_id=parent_id, tenant="default", created_at=timestamp())

    def make(_: list[NewBlob]) -> Awaitable[Any]:
        return database.writer.write(job_retries.retry_page, [item])

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT status, parent_id FROM jobs WHERE id = ?", item.id),
            _rows(connection, "SELECT n, type FROM job_events WHERE job_id = ?", item.id),
        )

    return Write(make=make, effect=effect, nothing=([], []), whole=([("PENDING", parent_id)], [(1, "submitted")]))


def _removal(database: Database, job_id: str) -> Write:
    def make(_: list[NewBlob]) -> Awaitable[Any]:
        return database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=[job_id]))

    def effect(connection: sqlite3.Connection) -> tuple[Any, ...]:
        return (
            _rows(connection, "SELECT status FROM jobs WHERE id = ?", job_id),
            _rows(connection, "SELECT count(*) FROM job_events WHERE job_id = ?", job_id),
        )

    return Write(make=make, effect=effect, nothing=([("CANCELLED",)], [(2,)]), whole=([], [(0,)]))


async def _told(database: Database, writes: list[Write]) -> list[Any]:
    """What each waiter is told: bytes go to disk one by one and the rows all at once, so the calls keep order."""

    async def prepared(write: Write) -> list[NewBlob] | ServiceUnavailableError:
        try:
            return await database.blobs.prepare([] if write.stored is None else [write.stored])
        except ServiceUnavailableError as error:
            return error

    async with asyncio.timeout(30):
        blobs = [await prepared(write) for write in writes]
        pairs = zip(writes, blobs, strict=True)
        asked = [write.make(stored) for write, stored in pairs if isinstance(stored, list)]
        told = iter(await asyncio.gather(*asked, return_exceptions=True))
    return [next(told) if isinstance(stored, list) else stored for stored in blobs]


async def run(directory: Path, empty: Path, calls: Calls, fatal: Place | None, error: Exception) -> str | None:
    """Writes of every kind with the call `fatal` failing; what it was that failed, None when there was no such call."""
    file = Path(shutil.copy(empty, directory / "jobs.db"))
    async with Database.open(sqlite_url(file), directory / "blobs", inline_bytes=1_000) as database:
        for _ in range(2):
            await database.writer.write(job_inserts.insert, new_job())
        await _endpoint(database, "default")
        pinged = await _claimed_ping(database)
        ended, cancelled = await database.writer.write(job_claims.claim, Claim(owner=ME, limit=2, lease_s=60))
        over = [new_job(), new_job()]
        for job in over:
            await database.writer.write(job_inserts.insert, job)
            await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job.id, reason="why"))
        writes = [
            _submission(database, SMALL),
            _submission(database, LARGE),
            _submission(database, None, key="k"),
            _ending(database, ended),
            _cancellation(database, cancelled),
            _delivery(database, pinged),
            _batch(database),
            _retry(database, over[0].id),
            _removal(database, over[1].id),
        ]
        with calls.failing(fatal, error):
            told = await _told(database, writes)
        await _check(database, directory, writes, told)
        # What failed was one call, not the store: the same writes go through now.
        failed = [write for write, answer in zip(writes, told, strict=True) if isinstance(answer, Exception)]
        await _check(database, directory, failed, again := await _told(database, failed))
        assert not [answer for answer in again if isinstance(answer, Exception)], again
    return calls.failed


async def _check(database: Database, directory: Path, writes: list[Write], told: list[Any]) -> None:
    with contextlib.closing(sqlite3.connect(directory / "jobs.db")) as connection:
        for write, answer in zip(writes, told, strict=True):
            assert not isinstance(answer, BaseException) or isinstance(answer, ServiceUnavailableError | RefusedError)
            expected = write.nothing if isinstance(answer, Exception) else write.whole
            assert write.effect(connection) == expected, answer
        assert _rows(connection, "PRAGMA integrity_check") == [("ok",)]
        assert _rows(connection, "PRAGMA foreign_key_check") == []
        rows = _rows(connection, "SELECT sha256, size_bytes FROM blobs")
        stored = [BlobRef(sha256=sha256, size=size) for sha256, size in rows]
    values = (await database.blobs.read(stored)).values()
    assert {write.stored for write, answer in zip(writes, told, strict=True) if not isinstance(answer, Exception)} <= {
        None,
        *values,
    }
    assert list((directory / "blobs").rglob(".*")) == [], "temporary files are left"


async def fail_each(directory: Path, empty: Path, calls: Calls, error: Exception) -> list[str]:
    """Every call of the writes fails once, each in a run on a database of its own; what they were."""
    runs = itertools.count()

    async def failed_at(fatal: Place | None) -> str | None:
        place = directory / str(next(runs))
        place.mkdir()
        return await run(place, empty, calls, fatal, error)

    await failed_at(None)
    failed: list[str] = []
    for fatal in [(what, number) for what, count in calls.made.items() for number in range(1, count + 1)]:
        for _ in range(TRIES):
            if what := await failed_at(fatal):
                failed.append(what)
                break
    return failed


@pytest.mark.parametrize("error", [_DISK, _REFUSED], ids=["disk", "refused"])
async def test_whichever_call_fails_each_write_is_whole_or_not_there_and_its_waiter_knows(
    error, tmp_path, migrated_file, monkeypatch
):
    failed = await fail_each(tmp_path, migrated_file, install(monkeypatch), error)
    assert {"BEGIN IMMEDIATE", "COMMIT", "fsync", "rename", "open", "mkdir"} <= set(failed), failed
    assert len([what for what in failed if what.startswith(("INSERT", "UPDATE", "DELETE"))]) >= 12, failed


async def test_writes_without_a_transaction_are_found_out(tmp_path, migrated_file, monkeypatch):
    calls = install(monkeypatch, ignored="BEGIN IMMEDIATE")
    with pytest.raises(AssertionError):
        await fail_each(tmp_path, migrated_file, calls, _DISK)


async def test_temporary_files_left_behind_are_found_out(tmp_path, migrated_file, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(AssertionError, match="temporary files"):
        await fail_each(tmp_path, migrated_file, install(monkeypatch), _DISK)
