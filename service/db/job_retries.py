"""Jobs that ended, tried again: a new job with the stored payload of the old one, copied inside the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db import blob_references
from service.db.blob_references import payload_stands
from service.db.job_events import add_events
from service.db.job_inserts import MAX_LOST, Inserted, find_by_key
from service.db.schema import job_tags, jobs, quoted, webhook_job_events
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import PRIORITY_S, TERMINAL, Timestamp, rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A new job `id` in place of `parent_id`; an `idempotency_key` comes with the hash of the request."""

    id: str
    parent_id: str
    tenant: str
    created_at: Timestamp
    idempotency_key: str | None = None
    request_hash: str | None = None


#: What the new job is and is to be: bytes stay where they are, being named by their content.
_COPIED: Final = tuple(
    jobs.c[name]
    for name in (
        "tenant", "plugin", "plugin_version", "webhook_id", "priority", "timeout_s", "max_attempts", "tags",
        "metadata", "payload",
    )
)  # fmt: skip
_again = batch_table(
    "again",
    *(jobs.c[name] for name in ("id", "parent_id", "tenant", "created_at", "idempotency_key", "request_hash")),
    jobs.c.rank,
)
_OWN: Final = tuple(_again.c[name] for name in ("id", "parent_id", "created_at", "idempotency_key", "request_hash"))
_CONSTANTS: Final = {
    "status": literal("PENDING"), "due": sa.true(), "attempt": sa.text("0"), "lost": sa.text("0"),
    "max_lost": sa.text(str(MAX_LOST)), "fence": sa.text("0"), "event_count": sa.text("1"),
    "artifacts": sa.text("'[]'"),
}  # fmt: skip
_parent = batch_table("parent", jobs.c.id)
_HOLD_PARENTS = Statement(
    sa.select(jobs.c.id)
    .where(jobs.c.id.in_(sa.select(_parent.c.id)))
    .order_by(jobs.c.id)
    .with_for_update(read=True, key_share=True)
)
_RETRY = Statement(
    postgresql.insert(jobs)
    .from_select(
        [*(column.name for column in (*_OWN, *_COPIED)), "run_at", "rank", *_CONSTANTS],
        sa.select(
            *_OWN,
            *_COPIED,
            _again.c.created_at,
            _again.c.rank - jobs.c.priority * sa.text(str(PRIORITY_S * 1000)),
            *_CONSTANTS.values(),
        )
        .join(_again, (jobs.c.id == _again.c.parent_id) & (jobs.c.tenant == _again.c.tenant))
        .where(sa.text(f"jobs.status IN ({quoted(*TERMINAL)})"), payload_stands),
    )
    .on_conflict_do_nothing(
        index_elements=["tenant", "idempotency_key"], index_where=sa.text("idempotency_key IS NOT NULL")
    )
    .returning(jobs.c.id)
)
_pair = batch_table("pair", jobs.c.id, jobs.c.parent_id)


def _copy(table: sa.Table) -> Statement:
    """Give the new jobs what `table` holds of the old ones beside their `job_id`."""
    others = [column for column in table.columns if column.name != "job_id"]
    rows = sa.select(_pair.c.id, *others).join(table, table.c.job_id == _pair.c.parent_id)
    return Statement(sa.insert(table).from_select(["job_id", *(column.name for column in others)], rows))


_COPIES: Final = (_copy(webhook_job_events), _copy(job_tags))


async def retry(tx: Transaction, items: Sequence[Retry]) -> list[Inserted | None]:
    """Make the new jobs with their first events; a used key yields the job it made before.

    None where the tenant has no such job, where it has not ended, or where bytes of its payload are gone.
    """
    parents = {item.parent_id for item in items}
    # What belongs to them is copied by several statements: nobody may delete it between two.
    await tx.fetch(_HOLD_PARENTS, batch=batch((parent_id,) for parent_id in parents))
    await blob_references.hold_payloads(tx, parents)
    made, known = await _insert(tx, items)
    await add_events(tx, ((item.id, 1, "submitted", item.created_at, {}) for item in items if item.id in made))
    if made:
        pairs = [(item.id, item.parent_id) for item in items if item.id in made]
        await blob_references.copy_payloads(tx, pairs)
        for copy in _COPIES:
            await tx.fetch(copy, batch=batch(pairs))
    return [
        Inserted(id=item.id, replayed=False, request_hash=item.request_hash)
        if item.id in made
        else known.get((item.tenant, item.idempotency_key or ""))
        for item in items
    ]


async def _insert(tx: Transaction, items: Sequence[Retry]) -> tuple[set[str], dict[tuple[str, str], Inserted]]:
    """The ids of the jobs that were made, and by their keys those that had been made before."""
    made: set[str] = set()
    known: dict[tuple[str, str], Inserted] = {}
    left = items
    # Once more for what was in the way and was deleted before it could be read; what has no parent has none again.
    for _ in range(2):
        made |= {job_id for (job_id,) in await tx.fetch(_RETRY, batch=batch(map(_row, left)))}
        keyed = {
            item: (item.tenant, item.idempotency_key)
            for item in left
            if item.idempotency_key is not None and item.id not in made
        }
        if keyed:
            known |= await find_by_key(tx, keyed.values())
        left = [item for item, key in keyed.items() if key not in known]
        if not left:
            break
    return made, known


async def retry_page(tx: Transaction, items: Sequence[Sequence[Retry]]) -> list[list[Inserted | None]]:
    """As `retry`, for several jobs that are made together or not at all."""
    return [await retry(tx, item) for item in items]


def _row(item: Retry) -> tuple[str | int | None, ...]:
    return (
        item.id, item.parent_id, item.tenant, item.created_at, item.idempotency_key, item.request_hash,
        rank(item.created_at, 0),
    )  # fmt: skip
