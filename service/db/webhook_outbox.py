"""The outbox of webhooks: what an endpoint is to hear of is recorded in the transaction that ends the job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from uuid_utils import uuid7

from service.db.schema import Time, jobs, webhook_deliveries, webhook_endpoints, webhook_job_events
from service.db.statements import JsonHas, Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import TERMINAL, Timestamp

#: The type of each event that ends a job, as endpoints hear of it.
_TYPES: Final = {status.lower(): f"job.{status.lower()}" for status in TERMINAL}

_ended = batch_table("ended", webhook_deliveries.c.job_id, webhook_deliveries.c.type, sa.column("at", Time))
_endpoints: Final = webhook_endpoints.c
_heard: Final = _endpoints.enabled & JsonHas(_endpoints.events, _ended.c.type)
_of_tenant = (
    sa.select(_endpoints.id, *_ended.c)
    .join_from(_ended, jobs, jobs.c.id == _ended.c.job_id)
    .join(webhook_endpoints, _endpoints.tenant == jobs.c.tenant)
    .where(
        sa.text("NOT webhook_endpoints.of_jobs"),
        _heard,
        _endpoints.plugins.is_(None) | JsonHas(_endpoints.plugins, jobs.c.plugin),
    )
)
_of_job = (
    sa.select(_endpoints.id, *_ended.c)
    .join_from(_ended, jobs, jobs.c.id == _ended.c.job_id)
    .join(webhook_endpoints, _endpoints.id == jobs.c.webhook_id)
    .join(webhook_job_events, webhook_job_events.c.job_id == jobs.c.id, isouter=True)
    .where(
        _heard,
        webhook_job_events.c.events.is_(None) | JsonHas(webhook_job_events.c.events, _ended.c.type),
    )
)
_SELECT_HEARERS = Statement(_of_tenant.union_all(_of_job))

_NEW_COLUMNS: Final = tuple(
    webhook_deliveries.c[name] for name in ("id", "endpoint_id", "job_id", "type", "next_at", "created_at")
)
_new = batch_table("new", *_NEW_COLUMNS)
# An endpoint may be deleted by another process at this very moment: what was deleted when the lock is had is left out.
_INSERT = Statement(
    sa.insert(webhook_deliveries).from_select(
        [*(column.name for column in _NEW_COLUMNS), "status", "attempt", "failures"],
        sa.select(*_new.c, literal("PENDING"), sa.text("0"), sa.text("0"))
        .join(webhook_endpoints, _endpoints.id == _new.c.endpoint_id)
        .with_for_update(read=True, key_share=True, of=webhook_endpoints),
        include_defaults=False,
    )
)


async def add_deliveries(tx: Transaction, events: Iterable[tuple[str, str, Timestamp]]) -> None:
    """Record what `events` (job, type, time; those that end no job do not count) mean to endpoints.

    Where nobody listens this costs one statement, which looks into an empty index, for each transaction that ends jobs.
    """
    ended = [(job_id, _TYPES[kind], at) for job_id, kind, at in events if kind in _TYPES]
    if not ended:
        return
    hearers = await tx.fetch(_SELECT_HEARERS, batch=batch(ended))
    await insert_deliveries(tx, ((endpoint_id, job_id, kind, at) for endpoint_id, job_id, kind, at in hearers))


async def insert_deliveries(tx: Transaction, deliveries: Iterable[tuple[str, str | None, str, Timestamp]]) -> list[str]:
    """Record deliveries (endpoint, job, type, time), due at once; their ids."""
    rows = [(str(uuid7()), endpoint_id, job_id, kind, at, at) for endpoint_id, job_id, kind, at in deliveries]
    if rows:
        await tx.fetch(_INSERT, batch=batch(rows))
    return [row[0] for row in rows]
