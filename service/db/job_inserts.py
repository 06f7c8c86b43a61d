"""New jobs: inserted with their bytes and first events, once for each idempotency key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.codec import encode
from service.db.blobs import BlobStore, NewBlob
from service.db.job_events import add_events
from service.db.schema import jobs, webhook_job_events
from service.db.statements import Insert, Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.db.webhook_endpoints import NewEndpoint, ensure_of_jobs
from service.models import JobOptions, Timestamp, rank

MAX_LOST: Final = 3


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class NewJob:
    """A job to insert, its payload already a stored document."""

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

    @property
    def run_at(self) -> Timestamp:
        """When it becomes due; never before it was made."""
        asked = self.options.run_at
        return self.created_at if asked is None or asked < self.created_at else asked


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Inserted:
    """`id` is the new job's, or of the job that the idempotency key had made before, with the hash of that request."""

    id: str
    replayed: bool
    request_hash: str | None
    webhook_id: str | None = None


_NEW_COLUMNS: Final = (
    jobs.c.id, jobs.c.tenant, jobs.c.idempotency_key, jobs.c.request_hash, jobs.c.plugin, jobs.c.plugin_version,
    jobs.c.rank, jobs.c.webhook_id, jobs.c.priority, jobs.c.due, jobs.c.run_at, jobs.c.expires_at, jobs.c.timeout_s,
    jobs.c.max_attempts, jobs.c.created_at, jobs.c.tags, jobs.c.metadata, jobs.c.payload,
)  # fmt: skip
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
_keys = batch_table("keys", jobs.c.tenant, jobs.c.idempotency_key)
_SELECT_BY_KEY = Statement(
    sa.select(jobs.c.tenant, jobs.c.idempotency_key, jobs.c.id, jobs.c.request_hash).join(
        _keys, (jobs.c.tenant == _keys.c.tenant) & (jobs.c.idempotency_key == _keys.c.idempotency_key)
    )
)
_INSERT_WEBHOOK_EVENTS = Statement(
    sa.insert(webhook_job_events).from_select(
        ["job_id", "events"], sa.select(*batch_table("new", *webhook_job_events.columns).c)
    )
)


async def insert(tx: Transaction, items: Sequence[NewJob]) -> list[Inserted]:
    """Record new jobs with their bytes and first events; a used idempotency key yields the job it made before."""
    await BlobStore.insert(tx, (blob for item in items for blob in item.blobs))
    endpoints = await ensure_of_jobs(tx, (item.webhook for item in items if item.webhook is not None))
    keyed = [item for item in items if item.idempotency_key is not None]
    # Without a key nothing can be in the way, and asking for the rows would cost a turn of the interpreter for each.
    made = {item.id for item in items if item.idempotency_key is None}
    if made:
        await tx.insert(_JOBS, [_new_row(item, endpoints) for item in items if item.idempotency_key is None])
    if keyed:
        rows = [_new_row(item, endpoints) for item in keyed]
        made.update(row[0] for row in await tx.insert(_KEYED_JOBS, rows))
    await add_events(tx, ((item.id, 1, "submitted", item.created_at, {}) for item in items if item.id in made))
    await _add_webhook_events(tx, [item for item in items if item.id in made])
    known = await _by_key(tx, [item for item in keyed if item.id not in made])
    return [
        Inserted(id=item.id, replayed=False, request_hash=item.request_hash, webhook_id=_webhook_id(item, endpoints))
        if item.id in made
        else known[item.tenant, item.idempotency_key]
        for item in items
    ]


async def _by_key(tx: Transaction, items: Sequence[NewJob]) -> dict[tuple[str, str | None], Inserted]:
    if not items:
        return {}
    rows = await tx.fetch(_SELECT_BY_KEY, batch=batch((item.tenant, item.idempotency_key) for item in items))
    return {
        (tenant, key): Inserted(id=job_id, replayed=True, request_hash=request_hash)
        for tenant, key, job_id, request_hash in rows
    }


async def _add_webhook_events(tx: Transaction, items: Sequence[NewJob]) -> None:
    wishes = ((item.id, item.options.webhook) for item in items)
    rows = [(job_id, encode(wish.events)) for job_id, wish in wishes if wish is not None and wish.events is not None]
    if rows:
        await tx.fetch(_INSERT_WEBHOOK_EVENTS, batch=batch(rows))


def _webhook_id(item: NewJob, endpoints: Mapping[tuple[str, str], str]) -> str | None:
    return None if item.webhook is None else endpoints[item.webhook.tenant, item.webhook.url]


def _new_row(item: NewJob, endpoints: Mapping[tuple[str, str], str]) -> tuple[Any, ...]:
    options = item.options
    run_at = item.run_at
    return (
        item.id, item.tenant, item.idempotency_key, item.request_hash, item.plugin, item.plugin_version,
        rank(run_at, options.priority), _webhook_id(item, endpoints), options.priority, run_at <= item.created_at,
        run_at, options.expires_at, options.timeout_s, item.max_attempts, item.created_at, encode(options.tags),
        encode(options.metadata), item.payload,
    )  # fmt: skip
