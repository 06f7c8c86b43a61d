"""Who names bytes: references of jobs and schedules. Bytes that lose their last one go, in the same transaction.

A reference and its bytes hold each other by a foreign key, so that none is ever left dangling. Whoever adds one locks
the row of the bytes by that key; whoever takes one away locks it before looking for others. Where bytes went between
the two steps of an addition, the key refuses it, and the transaction is begun anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.codec import BLOB_KEY
from service.db.blobs import BlobStore, NewBlob
from service.db.schema import blob_removals, blobs, job_blobs, jobs, schedule_blobs
from service.db.statements import Insert, Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import JobPart

#: How a reference begins in the text of a document; in a string the quotes would be escaped.
_MARK: Final = f'"{BLOB_KEY}":'
_PAYLOAD: Final = literal(JobPart.PAYLOAD)

_OF_JOBS: Final = Insert(job_blobs, tuple(job_blobs.columns), {})
_OF_SCHEDULES: Final = Insert(schedule_blobs, tuple(schedule_blobs.columns), {})

_pair = batch_table("pair", jobs.c.id, sa.column("source_id", jobs.c.id.type))
_COPY_PAYLOADS = Statement(
    sa.insert(job_blobs).from_select(
        ["job_id", "part", "sha256"],
        sa.select(_pair.c.id, _PAYLOAD, job_blobs.c.sha256)
        .select_from(_pair)
        .join(job_blobs, (job_blobs.c.job_id == _pair.c.source_id) & (job_blobs.c.part == _PAYLOAD))
        .order_by(job_blobs.c.sha256),
    )
)
_COPY_OF_SCHEDULES = Statement(
    sa.insert(job_blobs).from_select(
        ["job_id", "part", "sha256"],
        sa.select(_pair.c.id, _PAYLOAD, schedule_blobs.c.sha256)
        .select_from(_pair)
        .join(schedule_blobs, schedule_blobs.c.schedule_id == _pair.c.source_id)
        .order_by(schedule_blobs.c.sha256),
    )
)
_holder = batch_table("holder", jobs.c.id)
_HOLD_PAYLOADS = Statement(
    sa.select(job_blobs.c.sha256)
    .where(job_blobs.c.job_id.in_(sa.select(_holder.c.id)), job_blobs.c.part == _PAYLOAD)
    .order_by(job_blobs.c.job_id, job_blobs.c.sha256)
    .with_for_update(read=True, key_share=True)
)
_RELEASE_JOBS = Statement(
    sa.delete(job_blobs).where(job_blobs.c.job_id.in_(sa.select(_holder.c.id))).returning(job_blobs.c.sha256)
)
_part = batch_table("released", job_blobs.c.job_id, job_blobs.c.part)
_RELEASE_PARTS = Statement(
    sa.delete(job_blobs)
    .where(
        sa.tuple_(job_blobs.c.job_id, job_blobs.c.part).in_(sa.select(_part.c.job_id, _part.c.part)),
        sa.exists()
        .where(
            jobs.c.id == job_blobs.c.job_id, jobs.c.finished_at < sa.bindparam("before", type_=jobs.c.finished_at.type)
        )
        .correlate(job_blobs),
    )
    .returning(job_blobs.c.job_id, job_blobs.c.part, job_blobs.c.sha256)
)
_RELEASE_SCHEDULE = Statement(
    sa.delete(schedule_blobs)
    .where(schedule_blobs.c.schedule_id == sa.bindparam("of_id"))
    .returning(schedule_blobs.c.sha256)
)
_released = batch_table("released", blobs.c.sha256)
# In one order everywhere: processes that free the same bytes then wait for each other, never in a circle. Who waits
# here sees, in its next statement, what the others have added or taken away.
_LOCK = Statement(
    sa.select(blobs.c.sha256, blobs.c.size_bytes, blobs.c.data.is_(None))
    .where(blobs.c.sha256.in_(sa.select(_released.c.sha256)))
    .order_by(blobs.c.sha256)
    .with_for_update()
)
_FREE = Statement(
    sa.delete(blobs)
    .where(
        blobs.c.sha256.in_(sa.select(_released.c.sha256)),
        ~sa.exists().where(job_blobs.c.sha256 == blobs.c.sha256).correlate(blobs),
        ~sa.exists().where(schedule_blobs.c.sha256 == blobs.c.sha256).correlate(blobs),
    )
    .returning(blobs.c.sha256)
)
_new_removal = postgresql.insert(blob_removals).from_select(
    ["sha256", "due_at"], sa.select(*batch_table("new", *blob_removals.columns).c).where(sa.true())
)
_REMOVE_FILES = Statement(
    _new_removal.on_conflict_do_update(
        index_elements=["sha256"], set_={blob_removals.c.due_at: _new_removal.excluded.due_at}
    )
)

#: Whether nothing that a job's payload names is gone: so that it can be tried again.
payload_stands: Final[sa.ColumnElement[bool]] = (
    sa.func.replace(sa.cast(jobs.c.payload, sa.Text), sa.literal_column(f"'{_MARK}'"), sa.literal_column("''"))
    == sa.cast(jobs.c.payload, sa.Text)
) | sa.exists().where(job_blobs.c.job_id == jobs.c.id, job_blobs.c.part == _PAYLOAD).correlate(jobs)


@dataclasses.dataclass(frozen=True, slots=True)
class Freed:
    """Bytes that nobody named any more, and that are gone: how many there were, and their size together."""

    count: int = 0
    size_bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.count + other.count, self.size_bytes + other.size_bytes)


def mentions_bytes(document: str) -> bool:
    """Whether the text of a stored document names bytes."""
    # PostgreSQL writes a space behind the colon; before it there is none.
    return _MARK in document


async def of_jobs(tx: Transaction, items: Iterable[tuple[str, JobPart, Sequence[NewBlob]]]) -> None:
    """Store bytes that parts of jobs name, which are in the database already. Costs nothing where there are none."""
    named = [(job_id, part, blob) for job_id, part, new in items for blob in new]
    if named:
        await BlobStore.insert(tx, (blob for *_, blob in named))
        rows = {(job_id, part, blob.sha256) for job_id, part, blob in named}
        await tx.insert(_OF_JOBS, sorted(rows, key=lambda row: row[2]))


async def of_schedule(tx: Transaction, schedule_id: str, new: Sequence[NewBlob]) -> None:
    """Store bytes that the payload of a schedule names, which is in the database already."""
    if new:
        await BlobStore.insert(tx, new)
        await tx.insert(_OF_SCHEDULES, [(schedule_id, sha256) for sha256 in sorted({blob.sha256 for blob in new})])


async def hold_payloads(tx: Transaction, job_ids: Collection[str]) -> None:
    """Let nobody release the payloads of these jobs before this transaction ends."""
    await tx.fetch(_HOLD_PAYLOADS, batch=batch((job_id,) for job_id in job_ids))


async def copy_payloads(tx: Transaction, pairs: Collection[tuple[str, str]]) -> None:
    """Let the payload of each first job name what that of the second one names."""
    await tx.fetch(_COPY_PAYLOADS, batch=batch(pairs))


async def copy_of_schedules(tx: Transaction, pairs: Collection[tuple[str, str]]) -> None:
    """Let the payload of each job name what that of the schedule names, which the transaction has locked."""
    await tx.fetch(_COPY_OF_SCHEDULES, batch=batch(pairs))


async def release_jobs(tx: Transaction, job_ids: Collection[str]) -> Freed:
    """Let these jobs, which are about to go, name nothing any more."""
    rows = await tx.fetch(_RELEASE_JOBS, batch=batch((job_id,) for job_id in job_ids))
    return await free(tx, {sha256 for (sha256,) in rows})


async def release_parts(
    tx: Transaction, parts: Collection[tuple[str, JobPart]], before: str
) -> tuple[set[tuple[str, str]], Freed]:
    """Let those parts of jobs name nothing any more whose job has ended before a time; which ones, and what went."""
    rows = await tx.fetch(_RELEASE_PARTS, batch=batch(parts), before=before)
    freed = await free(tx, {sha256 for *_, sha256 in rows})
    return {(job_id, part) for job_id, part, _ in rows}, freed


async def release_schedule(tx: Transaction, schedule_id: str) -> set[str]:
    """Let a schedule name nothing any more; what may then be free (see `free`)."""
    return {sha256 for (sha256,) in await tx.fetch(_RELEASE_SCHEDULE, of_id=schedule_id)}


async def free(tx: Transaction, released: Collection[str]) -> Freed:
    """Delete those of the bytes that nobody names; their files go when nobody can be about to name them again."""
    if not released:
        return Freed()
    candidates = batch((sha256,) for sha256 in sorted(released))
    found = {sha256: (size, is_file) for sha256, size, is_file in await tx.fetch(_LOCK, batch=candidates)}
    gone = sorted(sha256 for (sha256,) in await tx.fetch(_FREE, batch=candidates))
    if files := [sha256 for sha256 in gone if found[sha256][1]]:
        now = await tx.now()
        await tx.fetch(_REMOVE_FILES, batch=batch((sha256, now) for sha256 in files))
    return Freed(len(gone), sum(found[sha256][0] for sha256 in gone))
