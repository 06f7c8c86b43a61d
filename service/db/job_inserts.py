"""New jobs: inserted with their bytes and first events, once for each idempotency key and each chosen id."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.codec import encode
from service.db import blob_references
from service.db.blobs import NewBlob
from service.db.job_events import add_events
from service.db.reader import Reader
from service.db.schema import job_tags, jobs, webhook_job_events
from service.db.statements import Insert, Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.db.webhook_endpoints import NewEndpoint, ensure_of_jobs
from service.models import JobOptions, JobPart, Timestamp, rank

MAX_LOST: Final = 3


@dataclasses.dataclass(eq=False, slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class NewJob:
    """A job to insert, its payload already a stored document.

    With `is_chosen` the id is the client's choice and may be taken; it then needs a `request_hash` too.
    """

    id: str
    tenant: str
    plugin: str
    plugin_version: str | None
    payload: str
    blobs: Sequence[NewBlob]
    options: JobOptions
    max_attempts: int
    created_at: Timestamp
    idempotency_key: str | None
    request_hash: str | None
    webhook: NewEndpoint | None = None  # of `options.webhook`; made where that tenant and URL has none
    batch_id: str | None = None
    is_chosen: bool = False
    schedule_id: str | None = None
    scheduled_for: Timestamp | None = None  # the tick; None where somebody asked for a job of the schedule now

    @property
    def run_at(self) -> Timestamp:
        """When it becomes due; never before it was made."""
        asked = self.options.run_at
        return self.created_at if asked is None or asked < self.created_at else asked


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Inserted:
    """`id` is the new job's, or of the job that the key or chosen id had made before, with the hash of that request.

    No hash: that job was made by no such request, or is another tenant's.
    """

    id: str
    replayed: bool
    request_hash: str | None
    webhook_id: str | None = None
    batch_id: str | None = None


_NEW_COLUMNS: Final = (
    jobs.c.id, jobs.c.tenant, jobs.c.idempotency_key, jobs.c.request_hash, jobs.c.plugin, jobs.c.plugin_version,
    jobs.c.rank, jobs.c.batch_id, jobs.c.schedule_id, jobs.c.scheduled_for, jobs.c.webhook_id, jobs.c.priority,
    jobs.c.due, jobs.c.run_at, jobs.c.expires_at, jobs.c.timeout_s, jobs.c.max_attempts, jobs.c.created_at, jobs.c.tags,
    jobs.c.metadata, jobs.c.payload,
)  # fmt: skip
#: Jobs of a batch that go in at once: between two of them the event loop has a turn.
_CHUNK: Final = 500
_CONSTANTS: Final = {
    "status": literal("PENDING"),
    "attempt": sa.text("0"),
    "lost": sa.text("0"),
    "max_lost": sa.text(str(MAX_LOST)),
    "fence": sa.text("0"),
    "event_count": sa.text("1"),
    "artifacts": sa.text("'[]'"),
}
_JOBS: Final = Insert(jobs, _NEW_COLUMNS, _CONSTANTS)
_KEYED_JOBS: Final = Insert(
    jobs,
    _NEW_COLUMNS,
    _CONSTANTS,
    lambda insert: insert.on_conflict_do_nothing(
        index_elements=["tenant", "idempotency_key"], index_where=sa.text("idempotency_key IS NOT NULL")
    ).returning(jobs.c.id),
)
_CHOSEN_JOBS: Final = Insert(
    jobs,
    _NEW_COLUMNS,
    _CONSTANTS,
    lambda insert: insert.on_conflict_do_nothing(index_elements=["id"]).returning(jobs.c.id),
)
_keys = batch_table("keys", jobs.c.tenant, jobs.c.idempotency_key)
_SELECT_BY_KEY = Statement(
    sa.select(jobs.c.tenant, jobs.c.idempotency_key, jobs.c.id, jobs.c.request_hash, jobs.c.batch_id).join(
        _keys, (jobs.c.tenant == _keys.c.tenant) & (jobs.c.idempotency_key == _keys.c.idempotency_key)
    )
)
_INSERT_WEBHOOK_EVENTS = Statement(
    sa.insert(webhook_job_events).from_select(
        ["job_id", "events"], sa.select(*batch_table("new", *webhook_job_events.columns).c)
    )
)
_TAGS: Final = Insert(job_tags, tuple(job_tags.columns), {})
_ids = batch_table("ids", jobs.c.id)
_SELECT_BY_ID = Statement(
    sa.select(jobs.c.id, jobs.c.tenant, jobs.c.request_hash, jobs.c.batch_id).join(_ids, jobs.c.id == _ids.c.id)
)


async def insert(tx: Transaction, items: Sequence[NewJob]) -> list[Inserted]:
    """Record new jobs with their bytes and first events; a used key or chosen id yields the job it made before."""
    endpoints = await ensure_of_jobs(tx, (item.webhook for item in items if item.webhook is not None))
    # Without a key nothing can be in the way, and asking for the rows would cost a turn of the interpreter for each.
    free = [item for item in items if item.idempotency_key is None and not item.is_chosen]
    if free:
        await tx.insert(_JOBS, [_new_row(item, endpoints) for item in free])
    outcomes = {item: _made(item, endpoints) for item in free}
    keyed = [item for item in items if item.idempotency_key is not None]
    outcomes |= await _insert_or_find(tx, keyed, endpoints, _KEYED_JOBS, _by_key)
    chosen = [item for item in items if item.is_chosen]
    outcomes |= await _insert_or_find(tx, chosen, endpoints, _CHOSEN_JOBS, _by_id)
    new = [item for item in items if not outcomes[item].replayed]
    await blob_references.of_jobs(tx, ((item.id, JobPart.PAYLOAD, item.blobs) for item in new))
    await add_events(tx, ((item.id, 1, "submitted", item.created_at, {}) for item in new))
    if tags := [(item.id, tag, item.tenant) for item in new for tag in set(item.options.tags)]:
        await tx.insert(_TAGS, tags)
    await _add_webhook_events(tx, new)
    return [outcomes[item] for item in items]


async def insert_batch(tx: Transaction, items: Sequence[Sequence[NewJob]]) -> list[list[Inserted]]:
    """As `insert`, for several jobs that are recorded together or not at all."""
    outcomes = []
    for item in items:
        inserted: list[Inserted] = []
        for start in range(0, len(item), _CHUNK):
            inserted += await insert(tx, item[start : start + _CHUNK])
        outcomes.append(inserted)
    return outcomes


#: The ids of endpoints that jobs name, by tenant and URL.
_Endpoints = Mapping[tuple[str, str], str]
_Find = Callable[[Transaction, Sequence[NewJob]], Awaitable[dict[NewJob, Inserted]]]


async def _insert_or_find(
    tx: Transaction, items: Sequence[NewJob], endpoints: _Endpoints, into: Insert, find: _Find
) -> dict[NewJob, Inserted]:
    outcomes: dict[NewJob, Inserted] = {}
    # Again for what was in the way of an insert and was deleted before it could be read.
    while left := [item for item in items if item not in outcomes]:
        first: dict[str, NewJob] = {}
        for item in left:
            first.setdefault(item.id, item)
        rows = await tx.insert(into, [_new_row(item, endpoints) for item in first.values()])
        outcomes |= {first[job_id]: _made(first[job_id], endpoints) for (job_id,) in rows}
        if others := [item for item in left if item not in outcomes]:
            outcomes |= await find(tx, others)
    return outcomes


async def _by_key(tx: Transaction, items: Sequence[NewJob]) -> dict[NewJob, Inserted]:
    places = {item: (item.tenant, item.idempotency_key or "") for item in items}
    known = await find_by_key(tx, places.values())
    return {item: known[place] for item, place in places.items() if place in known}


async def _by_id(tx: Transaction, items: Sequence[NewJob]) -> dict[NewJob, Inserted]:
    rows = await tx.fetch(_SELECT_BY_ID, batch=batch((item.id,) for item in items))
    known = {row[0]: row for row in rows}
    return {item: _taken(item.tenant, *known[item.id]) for item in items if item.id in known}


async def find_by_key(
    source: Reader | Transaction, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], Inserted]:
    """The jobs that keys, each with its tenant, have made; nothing for a key that made none."""
    rows = await source.fetch(_SELECT_BY_KEY, batch=batch(keys))
    return {(tenant, key): _known(*rest) for tenant, key, *rest in rows}


async def find_by_id(reader: Reader, tenant: str, job_id: str) -> Inserted | None:
    """The job of that id as the answer to a tenant that chooses this id too, or None if it is free."""
    rows = await reader.fetch(_SELECT_BY_ID, batch=batch([(job_id,)]))
    return next((_taken(tenant, *row) for row in rows), None)


def _made(item: NewJob, endpoints: _Endpoints) -> Inserted:
    return Inserted(
        id=item.id,
        replayed=False,
        request_hash=item.request_hash,
        webhook_id=_webhook_id(item, endpoints),
        batch_id=item.batch_id,
    )


def _known(job_id: str, request_hash: str | None, batch_id: str | None) -> Inserted:
    return Inserted(id=job_id, replayed=True, request_hash=request_hash, batch_id=batch_id)


def _taken(by: str, job_id: str, owner: str, request_hash: str | None, batch_id: str | None) -> Inserted:
    # What is another tenant's is answered like any id that is taken: by a request that is never this one.
    return _known(job_id, request_hash, batch_id) if owner == by else _known(job_id, None, None)


async def _add_webhook_events(tx: Transaction, items: Sequence[NewJob]) -> None:
    wishes = ((item.id, item.options.webhook) for item in items)
    rows = [(job_id, encode(wish.events)) for job_id, wish in wishes if wish is not None and wish.events is not None]
    if rows:
        await tx.fetch(_INSERT_WEBHOOK_EVENTS, batch=batch(rows))


def _webhook_id(item: NewJob, endpoints: _Endpoints) -> str | None:
    return None if item.webhook is None else endpoints[item.webhook.tenant, item.webhook.url]


def _new_row(item: NewJob, endpoints: _Endpoints) -> tuple[Any, ...]:
    options = item.options
    run_at = item.run_at
    return (
        item.id, item.tenant, item.idempotency_key, item.request_hash, item.plugin, item.plugin_version,
        rank(run_at, options.priority), item.batch_id, item.schedule_id, item.scheduled_for,
        _webhook_id(item, endpoints), options.priority, run_at <= item.created_at, run_at, options.expires_at,
        options.timeout_s, item.max_attempts, item.created_at, encode(options.tags), encode(options.metadata),
        item.payload,
    )  # fmt: skip
