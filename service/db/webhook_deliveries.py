"""Deliveries of webhooks: claimed on a lease, recorded by the holder of the last claim, listed with their log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.db import webhook_endpoints as endpoints
from service.db.reader import Reader
from service.db.schema import Time, webhook_attempts, webhook_deliveries, webhook_endpoints
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.db.webhook_outbox import insert_deliveries
from service.models import Timestamp, later
from service.webhook_models import (
    PING,
    ClaimedDelivery,
    Delivery,
    DeliveryAttempt,
    DeliveryOutcome,
    DeliveryPage,
    DeliveryStatus,
    DueEndpoint,
    WebhookSecret,
)

#: So many deliveries to an endpoint that was disabled are given up in one transaction.
GIVE_UP_PAGE: Final = 500
#: So many endpoints are looked at in one go.
_MOST_DUE: Final = 1_000

_deliveries: Final = webhook_deliveries.c
_PENDING: Final = sa.text("webhook_deliveries.status = 'PENDING'")

# The endpoints for which something is pending, found by a step through the index for each of them and not by a look at
# each delivery: one endpoint that is slow may have a million.
_step = webhook_deliveries.alias("step")
_STEP_PENDING: Final = sa.text("step.status = 'PENDING'")
_first = sa.select(_step.c.endpoint_id).where(_STEP_PENDING).order_by(_step.c.endpoint_id).limit(1)
_heads = sa.select(_first.scalar_subquery().label("endpoint_id")).cte("heads", recursive=True)
_next = _first.where(_step.c.endpoint_id > _heads.c.endpoint_id).correlate(_heads).scalar_subquery()
_heads = _heads.union_all(sa.select(_next).where(_heads.c.endpoint_id.is_not(None)))
_next_at = (
    sa.select(_step.c.next_at)
    .where(_STEP_PENDING, _step.c.endpoint_id == webhook_endpoints.c.id)
    .order_by(_step.c.next_at)
    .limit(1)
    .correlate(webhook_endpoints)
    .scalar_subquery()
)
_asked_at: Final = sa.bindparam("now", type_=Time)


def _select_due(now: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(webhook_endpoints.c.id, webhook_endpoints.c.enabled, webhook_endpoints.c.failing_since.is_not(None))
        .join_from(_heads, webhook_endpoints, webhook_endpoints.c.id == _heads.c.endpoint_id)
        .where(~webhook_endpoints.c.enabled | (_next_at <= now))
        .order_by(_next_at)
        .limit(_MOST_DUE)
    )


# The server's clock decides in the claim; who asks with a clock that is behind it must not come late.
_SELECT_DUE = Statement(
    _select_due(_asked_at), on_postgresql=_select_due(sa.func.greatest(_asked_at, sa.func.clock_timestamp()))
)

_due_first = (
    sa.select(_deliveries.id)
    .join(webhook_endpoints, webhook_endpoints.c.id == _deliveries.endpoint_id)
    .where(
        _deliveries.endpoint_id == sa.bindparam("of_endpoint"),
        _PENDING,
        _deliveries.next_at <= sa.bindparam("now"),
        webhook_endpoints.c.enabled,
    )
    .order_by(_deliveries.next_at)
    .limit(sa.bindparam("room", type_=sa.Integer))
    .with_for_update(skip_locked=True, of=webhook_deliveries)
    .cte("due_first")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_CLAIM = Statement(
    sa.update(webhook_deliveries)
    .where(_deliveries.id.in_(sa.select(_due_first.c.id)), _PENDING)
    .values(
        attempt=_deliveries.attempt + sa.text("1"),
        next_at=sa.bindparam("until", type_=Time),
        lease_until=sa.bindparam("until", type_=Time),
    )
    .returning(
        _deliveries.id,
        _deliveries.endpoint_id,
        _deliveries.job_id,
        _deliveries.type,
        _deliveries.attempt,
        _deliveries.failures,
        _deliveries.created_at,
    )
)
_wanted = batch_table("wanted", webhook_endpoints.c.id)
_SELECT_TARGETS = Statement(
    sa.select(*(webhook_endpoints.c[name] for name in ("id", "url", "secret", "old_secret", "old_secret_until"))).join(
        _wanted, webhook_endpoints.c.id == _wanted.c.id
    )
)

_outcome = batch_table(
    "outcome", _deliveries.id, _deliveries.attempt, _deliveries.status, _deliveries.next_at, _deliveries.finished_at,
    sa.column("failed", sa.Integer), _deliveries.last_status_code, _deliveries.last_error,
)  # fmt: skip
_RECORD = Statement(
    sa.update(webhook_deliveries)
    .where(_deliveries.id == _outcome.c.id, _deliveries.attempt == _outcome.c.attempt, _PENDING)
    .values(
        status=_outcome.c.status,
        next_at=_outcome.c.next_at,
        finished_at=_outcome.c.finished_at,
        lease_until=sa.null(),
        failures=_deliveries.failures + _outcome.c.failed,
        last_status_code=_outcome.c.last_status_code,
        last_error=_outcome.c.last_error,
    )
    .returning(_deliveries.id, _deliveries.attempt)
)
_ATTEMPT_COLUMNS: Final = tuple(webhook_attempts.columns)
_INSERT_ATTEMPTS = Statement(
    sa.insert(webhook_attempts).from_select(
        [column.name for column in _ATTEMPT_COLUMNS], sa.select(*batch_table("new", *_ATTEMPT_COLUMNS).c)
    )
)
_told = batch_table("told", *_ATTEMPT_COLUMNS[:3])
_SELECT_RECORDED = Statement(
    sa.select(*_told.c).join(
        webhook_attempts, sa.and_(*(column == webhook_attempts.c[column.name] for column in _told.c))
    )
)
_GIVE_UP = Statement(
    sa.update(webhook_deliveries)
    .where(
        _deliveries.id.in_(
            sa.select(_deliveries.id)
            .join(webhook_endpoints, webhook_endpoints.c.id == _deliveries.endpoint_id)
            .where(_deliveries.endpoint_id == sa.bindparam("of_endpoint"), _PENDING, ~webhook_endpoints.c.enabled)
            .limit(GIVE_UP_PAGE)
        ),
        _PENDING,
    )
    .values(
        status=literal("EXHAUSTED"),
        next_at=sa.null(),
        lease_until=sa.null(),
        finished_at=sa.bindparam("now", type_=Time),
        last_error=sa.bindparam("why"),
    )
    .returning(_deliveries.id)
)
_free: Final = _deliveries.lease_until.is_(None) | (_deliveries.lease_until <= sa.bindparam("now", type_=Time))
_REDELIVER = Statement(
    sa.update(webhook_deliveries)
    .where(_deliveries.id == sa.bindparam("of_id"), _deliveries.endpoint_id == sa.bindparam("of_endpoint"), _free)
    .values(
        status=literal("PENDING"),
        next_at=sa.bindparam("now", type_=Time),
        lease_until=sa.null(),
        finished_at=sa.null(),
        failures=sa.text("0"),
    )
)

_LISTED: Final = tuple(_deliveries[field.name] for field in dataclasses.fields(Delivery) if field.name != "attempts")
_FILTERS: Final[Mapping[str, sa.ColumnElement[bool]]] = {
    "id": _deliveries.id == sa.bindparam("id"),
    "status": _deliveries.status == sa.bindparam("status"),
    "after": _deliveries.id < sa.bindparam("after"),
}
_of_ids = batch_table("of_ids", webhook_attempts.c.delivery_id)
_SELECT_ATTEMPTS = Statement(
    sa.select(*_ATTEMPT_COLUMNS)
    .join(_of_ids, webhook_attempts.c.delivery_id == _of_ids.c.delivery_id)
    .order_by(webhook_attempts.c.delivery_id, webhook_attempts.c.attempt)
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryClaim:
    """Up to `rooms[endpoint]` due deliveries to each endpoint."""

    rooms: Mapping[str, int]
    lease_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Redelivery:
    """A delivery of an endpoint, to be made now, whatever became of it."""

    delivery_id: str
    endpoint_id: str


async def claim_deliveries(tx: Transaction, items: Sequence[DeliveryClaim]) -> list[list[ClaimedDelivery]]:
    """Lease due deliveries, those that are due longest first. Nobody else claims them before the lease ends."""
    return [await _claim(tx, item) for item in items]


async def _claim(tx: Transaction, item: DeliveryClaim) -> list[ClaimedDelivery]:
    now = await tx.now()
    until = later(now, item.lease_s)
    rows = [
        row
        for endpoint_id, room in item.rooms.items()
        for row in await tx.fetch(_CLAIM, of_endpoint=endpoint_id, room=room, now=now, until=until)
    ]
    if not rows:
        return []
    found = await tx.fetch(_SELECT_TARGETS, batch=batch((endpoint_id,) for endpoint_id in {row[1] for row in rows}))
    targets = {
        endpoint_id: (url, WebhookSecret(text=secret, old_text=old_secret, old_until=old_secret_until))
        for endpoint_id, url, secret, old_secret, old_secret_until in found
    }
    return [_claimed(row, *targets[row[1]]) for row in rows]


def _claimed(row: Sequence[Any], url: str, secret: WebhookSecret) -> ClaimedDelivery:
    delivery_id, endpoint_id, job_id, kind, attempt, failures, created_at = row
    return ClaimedDelivery(
        id=delivery_id,
        endpoint_id=endpoint_id,
        job_id=job_id,
        type=kind,
        attempt=attempt,
        failures=failures,
        created_at=created_at,
        url=url,
        secret=secret,
    )


async def record_attempts(tx: Transaction, items: Sequence[DeliveryOutcome]) -> list[bool]:
    """Record outcomes with their line of the log; False where the delivery was claimed again, or is gone.

    True also where this very outcome was recorded before, by a commit of which nobody heard.
    """
    now = await tx.now()
    held = {tuple(row) for row in await tx.fetch(_RECORD, batch=batch(_outcome_row(item, now) for item in items))}
    is_held = [(item.delivery.id, item.delivery.attempt) in held for item in items]
    recorded = [item for item, yes in zip(items, is_held, strict=True) if yes]
    if recorded:
        await tx.fetch(_INSERT_ATTEMPTS, batch=batch(map(_attempt_row, recorded)))
    # In one order everywhere, so that two processes never wait for each other.
    for item in sorted(recorded, key=lambda item: item.delivery.endpoint_id):
        endpoint_id = item.delivery.endpoint_id
        if item.status is DeliveryStatus.DELIVERED:
            await endpoints.note_success(tx, endpoint_id)
        elif item.disable is not None:
            await endpoints.disable(tx, endpoint_id, item.disable)
        else:
            await endpoints.note_failure(tx, endpoint_id, disable_after_s=item.disable_after_s)
    if all(is_held):
        return is_held
    told = batch((item.delivery.id, item.delivery.attempt, item.at) for item in items)
    before = {tuple(row) for row in await tx.fetch(_SELECT_RECORDED, batch=told)}
    return [(item.delivery.id, item.delivery.attempt, item.at) in before for item in items]


def _outcome_row(item: DeliveryOutcome, now: Timestamp) -> tuple[Any, ...]:
    next_at = None if item.retry_in_s is None else later(now, item.retry_in_s)
    finished_at = now if next_at is None else None
    failed = int(item.status is not DeliveryStatus.DELIVERED)
    delivery = item.delivery
    return delivery.id, delivery.attempt, item.status, next_at, finished_at, failed, item.status_code, item.error


def _attempt_row(item: DeliveryOutcome) -> tuple[Any, ...]:
    return item.delivery.id, item.delivery.attempt, item.at, item.status_code, item.error, item.took_s


async def give_up(tx: Transaction, items: Sequence[str]) -> list[int]:
    """End what is pending for endpoints that are disabled, at most `GIVE_UP_PAGE` deliveries each; how many."""
    why = "the webhook is disabled"
    now = await tx.now()
    return [len(await tx.fetch(_GIVE_UP, of_endpoint=endpoint_id, now=now, why=why)) for endpoint_id in items]


async def ping(tx: Transaction, items: Sequence[str]) -> list[str]:
    """Record a ping to each endpoint; the ids of the deliveries."""
    now = await tx.now()
    return await insert_deliveries(tx, ((endpoint_id, None, PING, now) for endpoint_id in items))


async def redeliver(tx: Transaction, items: Sequence[Redelivery]) -> list[None]:
    """Make deliveries due now, with all their attempts before them; one that is being attempted goes on as it is."""
    for item in items:
        await tx.fetch(_REDELIVER, of_id=item.delivery_id, of_endpoint=item.endpoint_id, now=await tx.now())
    return [None] * len(items)


async def find_due(reader: Reader, now: Timestamp) -> list[DueEndpoint]:
    """Endpoints that have something due at `now`, or are disabled and have something pending; the longest due first."""
    return [
        DueEndpoint(id=endpoint_id, enabled=bool(enabled), is_failing=bool(is_failing))
        for endpoint_id, enabled, is_failing in await reader.fetch(_SELECT_DUE, now=now)
    ]


async def get(reader: Reader, endpoint_id: str, delivery_id: str) -> Delivery | None:
    """The delivery with its log, if it is that endpoint's."""
    rows = await _select(reader, endpoint_id, limit=1, id=delivery_id)
    return (await _with_attempts(reader, rows))[0] if rows else None


async def list_page(
    reader: Reader, endpoint_id: str, *, status: DeliveryStatus | None, after: str | None, limit: int
) -> DeliveryPage:
    """Deliveries of an endpoint with their log, newest first."""
    rows = await _select(reader, endpoint_id, limit=limit + 1, status=status, after=after)
    items = await _with_attempts(reader, rows[:limit])
    return DeliveryPage(items=items, next=items[-1].id if len(rows) > limit else None)


_LISTS: Final[dict[frozenset[str], Statement]] = {}


async def _select(reader: Reader, endpoint_id: str, *, limit: int, **filters: str | None) -> list[Any]:
    given = {name: value for name, value in filters.items() if value is not None}
    names = frozenset(given)
    if names not in _LISTS:
        query = sa.select(*_LISTED).where(_deliveries.endpoint_id == sa.bindparam("of_endpoint"))
        query = query.where(*(_FILTERS[name] for name in names))
        _LISTS[names] = Statement(query.order_by(_deliveries.id.desc()).limit(sa.bindparam("limit")))
    return await reader.fetch(_LISTS[names], of_endpoint=endpoint_id, limit=limit, **given)


async def _with_attempts(reader: Reader, rows: Sequence[Any]) -> list[Delivery]:
    if not rows:
        return []
    log: dict[str, list[DeliveryAttempt]] = {row[0]: [] for row in rows}
    for delivery_id, attempt, at, status_code, error, took_s in await reader.fetch(
        _SELECT_ATTEMPTS, batch=batch((row[0],) for row in rows)
    ):
        log[delivery_id].append(
            DeliveryAttempt(attempt=attempt, at=at, status_code=status_code, error=error, took_s=took_s)
        )
    names = [column.name for column in _LISTED]
    return [
        Delivery(
            **dict(zip(names, row, strict=True)) | {"status": DeliveryStatus(row[names.index("status")])},
            attempts=log[row[0]],
        )
        for row in rows
    ]
