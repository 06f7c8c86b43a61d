"""What happened to jobs, event by event: each is written in the transaction that makes it true."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from service.codec import encode
from service.db.schema import job_events, jobs
from service.db.statements import Insert, ThisTransaction
from service.db.transaction import Transaction
from service.db.webhook_outbox import add_deliveries
from service.models import JSON, Timestamp

#: Job, its `event_count` in this transaction, type, time and data.
NewEvent = tuple[str, int, str, Timestamp, JSON]

#: What every change of a job sets beside what it is about.
COUNT_EVENT: Final = {jobs.c.event_count: jobs.c.event_count + sa.text("1")}

_EVENT_COLUMNS: Final = tuple(job_events.c[name] for name in ("job_id", "n", "type", "at", "data"))
_EVENTS: Final = Insert(job_events, _EVENT_COLUMNS, {"tx": ThisTransaction()})


async def add_events(tx: Transaction, events: Iterable[NewEvent]) -> None:
    """Record `events`, and what they mean to webhooks; the rows of their jobs count them already."""
    rows = [(job_id, n, kind, at, encode(data)) for job_id, n, kind, at, data in events]
    if rows:
        await tx.insert(_EVENTS, rows)
        await add_deliveries(tx, ((job_id, kind, at) for job_id, _, kind, at, _ in rows))
