"""What retention looks for, and what it takes away beside jobs: bytes, files without a row, old rows without a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db import blob_references
from service.db.blob_references import Freed
from service.db.reader import Reader
from service.db.schema import (
    Id,
    Time,
    blob_removals,
    blobs,
    instances,
    job_blobs,
    jobs,
    rollup_workers,
    webhook_deliveries,
)
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction, apart
from service.models import JobPart, JobStatus, Timestamp, later

#: A place among ended jobs, in the order in which they ended.
Place = tuple[Timestamp, str]
BEGINNING: Final[Place] = (Timestamp("0001-01-01T00:00:00.000Z"), "00000000-0000-0000-0000-000000000000")


def _has(part: JobPart) -> sa.ColumnElement[bool]:
    return sa.exists().where(job_blobs.c.job_id == jobs.c.id, job_blobs.c.part == literal(part)).correlate(jobs)


_ENDED = Statement(
    sa.select(jobs.c.finished_at, jobs.c.id, jobs.c.plugin, jobs.c.status, *(_has(part) for part in JobPart))
    .where(
        sa.text("jobs.finished_at IS NOT NULL"),  # the predicate of the index
        sa.tuple_(jobs.c.finished_at, jobs.c.id)
        > sa.tuple_(sa.bindparam("after_at", type_=Time), sa.bindparam("after_id", type_=Id)),
        jobs.c.finished_at < sa.bindparam("before"),
    )
    .order_by(jobs.c.finished_at, jobs.c.id)
    .limit(sa.bindparam("limit"))
)
_DUE_FILES = Statement(
    sa.select(
        blob_removals.c.sha256,
        blob_removals.c.due_at,
        sa.exists().where(blobs.c.sha256 == blob_removals.c.sha256).correlate(blob_removals),
    )
    .where(blob_removals.c.due_at <= sa.bindparam("now"))
    .order_by(blob_removals.c.due_at)
    .limit(sa.bindparam("limit"))
)
_settled = batch_table("settled", blob_removals.c.sha256, blob_removals.c.due_at)
_FORGET_FILES = Statement(
    sa.delete(blob_removals).where(
        sa.tuple_(blob_removals.c.sha256, blob_removals.c.due_at).in_(sa.select(_settled.c.sha256, _settled.c.due_at))
    )
)
_PUT_OFF_FILES = Statement(
    sa.update(blob_removals)
    .where(blob_removals.c.sha256.in_(sa.select(_settled.c.sha256)))
    .values(due_at=sa.bindparam("new_due_at"))
)
_seen = batch_table("seen", blobs.c.sha256)
_TAKE_ON_FILES = Statement(
    postgresql.insert(blob_removals)
    .from_select(
        ["sha256", "due_at"],
        sa.select(_seen.c.sha256, sa.bindparam("now", type_=Time)).where(
            ~sa.exists().where(blobs.c.sha256 == _seen.c.sha256).correlate(_seen)
        ),
    )
    .on_conflict_do_nothing()
    .returning(blob_removals.c.sha256)
)
_PRUNE_PINGS = Statement(
    sa.delete(webhook_deliveries).where(
        sa.text("webhook_deliveries.job_id IS NULL"), webhook_deliveries.c.finished_at < sa.bindparam("before")
    )
)
# Who was killed never said so: those are silent for as long.
_is_over: Final = sa.func.coalesce(instances.c.stopped_at, instances.c.beat_at) < sa.bindparam("before", type_=Time)
_PRUNE_WORKERS = Statement(
    sa.delete(rollup_workers).where(rollup_workers.c.owner.in_(sa.select(instances.c.id).where(_is_over)))
)
_PRUNE_INSTANCES = Statement(sa.delete(instances).where(_is_over))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A job that has ended, and the parts of it that still have bytes."""

    place: Place
    plugin: str
    status: JobStatus
    parts: frozenset[JobPart]

    @property
    def id(self) -> str:
        """The job's."""
        return self.place[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OverdueParts:
    """Parts of jobs whose bytes are to go, if those ended `kept_s` seconds ago by the database's clock."""

    parts: Sequence[tuple[str, JobPart]]
    kept_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DueFile:
    """A file to be removed, unless a row `is_named` again."""

    sha256: str
    due_at: Timestamp
    is_named: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettledFiles:
    """Files that are gone, or named again; and others, to be looked at in `wait_s` seconds."""

    done: Sequence[DueFile]
    put_off: Sequence[DueFile]
    wait_s: float


async def read_clock(tx: Transaction, items: Sequence[None]) -> list[Timestamp]:
    """The database's time."""
    return [await tx.now()] * len(items)


async def find_ended(reader: Reader, after: Place, before: Timestamp, limit: int) -> list[EndedJob]:
    """The next jobs behind a place that ended before a time, in the order in which they ended."""
    rows = await reader.fetch(_ENDED, after_at=after[0], after_id=after[1], before=before, limit=limit)
    return [
        EndedJob(
            place=(finished_at, job_id),
            plugin=plugin,
            status=JobStatus(status),
            parts=frozenset(part for part, is_there in zip(JobPart, has, strict=True) if is_there),
        )
        for finished_at, job_id, plugin, status, *has in rows
    ]


@apart
async def release(tx: Transaction, items: Sequence[OverdueParts]) -> list[tuple[int, Freed]]:
    """Let those parts name their bytes no more; how many did, and what went because nobody else names it."""
    outcomes = []
    for item in items:
        released, freed = await blob_references.release_parts(tx, item.parts, later(await tx.now(), -item.kept_s))
        outcomes.append((len(released), freed))
    return outcomes


async def find_due_files(reader: Reader, now: Timestamp, limit: int) -> list[DueFile]:
    """Files to be removed by now."""
    rows = await reader.fetch(_DUE_FILES, now=now, limit=limit)
    return [DueFile(sha256=sha256, due_at=due_at, is_named=bool(is_named)) for sha256, due_at, is_named in rows]


async def settle_files(tx: Transaction, items: Sequence[SettledFiles]) -> list[None]:
    """Record what has become of files."""
    for item in items:
        if item.done:
            await tx.fetch(_FORGET_FILES, batch=batch((file.sha256, file.due_at) for file in item.done))
        if item.put_off:
            files = batch((file.sha256, file.due_at) for file in item.put_off)
            await tx.fetch(_PUT_OFF_FILES, batch=files, new_due_at=later(await tx.now(), item.wait_s))
    return [None] * len(items)


async def take_on_files(tx: Transaction, items: Sequence[Collection[str]]) -> list[int]:
    """Have those of the files removed that have no row; how many."""
    now = await tx.now()
    return [len(await tx.fetch(_TAKE_ON_FILES, batch=batch((sha256,) for sha256 in item), now=now)) for item in items]


async def prune_rows_without_a_job(tx: Transaction, items: Sequence[float]) -> list[None]:
    """Delete pings that ended, and instances that stopped or fell silent, `items[i]` seconds ago."""
    for kept_s in items:
        before = later(await tx.now(), -kept_s)
        await tx.fetch(_PRUNE_PINGS, before=before)
        await tx.fetch(_PRUNE_WORKERS, before=before)
        await tx.fetch(_PRUNE_INSTANCES, before=before)
    return [None] * len(items)
