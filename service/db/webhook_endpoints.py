"""Endpoints of webhooks: operations for `Writer.write`, and every read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.codec import decode, encode
from service.db.reader import Reader
from service.db.schema import Time, webhook_deliveries, webhook_endpoints
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.models import Timestamp, later
from service.webhook_models import Webhook, WebhookEvent, WebhookPage, WebhookSecret

#: So many deliveries go with an endpoint in one transaction.
DELETE_PAGE: Final = 1_000
#: Endpoints of a tenant that hear of all its jobs: each is a row more for every job that ends.
MAX_ENDPOINTS: Final = 100

_endpoints: Final = webhook_endpoints.c
_COLUMNS: Final = tuple(_endpoints[field.name] for field in dataclasses.fields(Webhook))
_JSON: Final = frozenset({"events", "plugins"})
_mine: Final = (_endpoints.id == sa.bindparam("of_id")) & (_endpoints.tenant == sa.bindparam("of_tenant"))

_NEW_COLUMNS: Final = (*_COLUMNS, _endpoints.secret)
_new = batch_table("new", *_NEW_COLUMNS)
_counted = webhook_endpoints.alias("counted")
_INSERT = Statement(
    sa.insert(webhook_endpoints)
    .from_select(
        [column.name for column in _NEW_COLUMNS],
        sa.select(*_new.c).where(
            sa.select(sa.func.count())
            .select_from(_counted)
            .where(_counted.c.tenant == _new.c.tenant, ~_counted.c.of_jobs)
            .scalar_subquery()
            < sa.text(str(MAX_ENDPOINTS))
        ),
        include_defaults=False,
    )
    .returning(*_COLUMNS)
)
# PostgreSQL's form of INSERT: SQLAlchemy compiles its ON CONFLICT for SQLite too, where it is the same.
_INSERT_OF_JOBS = Statement(
    postgresql.insert(webhook_endpoints)
    .from_select([column.name for column in _NEW_COLUMNS], sa.select(*_new.c).where(sa.true()), include_defaults=False)
    .on_conflict_do_nothing(index_elements=["tenant", "url"], index_where=sa.text("of_jobs"))
)
_named = batch_table("named", _endpoints.tenant, _endpoints.url)
_SELECT_OF_JOBS = Statement(
    sa.select(_endpoints.tenant, _endpoints.url, _endpoints.id)
    .join(_named, (_endpoints.tenant == _named.c.tenant) & (_endpoints.url == _named.c.url))
    .where(sa.text("webhook_endpoints.of_jobs"))
)
_ROTATE = Statement(
    sa.update(webhook_endpoints)
    .where(_mine)
    .values(
        old_secret=_endpoints.secret,
        old_secret_until=sa.bindparam("until", type_=Time),
        secret=sa.bindparam("new_secret"),
    )
    .returning(_endpoints.secret, _endpoints.old_secret, _endpoints.old_secret_until)
)
_DELETE_DELIVERIES = Statement(
    sa.delete(webhook_deliveries)
    .where(
        webhook_deliveries.c.id.in_(
            sa.select(webhook_deliveries.c.id)
            .join(webhook_endpoints, _endpoints.id == webhook_deliveries.c.endpoint_id)
            .where(_mine)
            .limit(DELETE_PAGE)
        )
    )
    .returning(webhook_deliveries.c.id)
)
_DELETE = Statement(sa.delete(webhook_endpoints).where(_mine).returning(_endpoints.id))

_FAILED = Statement(
    sa.update(webhook_endpoints)
    .where(_endpoints.id == sa.bindparam("of_id"), _endpoints.failing_since.is_(None))
    .values(failing_since=sa.bindparam("now", type_=Time))
)
_SUCCEEDED = Statement(
    sa.update(webhook_endpoints)
    .where(_endpoints.id == sa.bindparam("of_id"), _endpoints.failing_since.is_not(None))
    .values(failing_since=sa.null())
)
_DISABLE = Statement(
    sa.update(webhook_endpoints)
    .where(_endpoints.id == sa.bindparam("of_id"), _endpoints.enabled)
    .values(enabled=sa.false(), disabled_reason=sa.bindparam("why"))
    .returning(_endpoints.id)
)
_DISABLE_DEAD = Statement(
    sa.update(webhook_endpoints)
    .where(
        _endpoints.id == sa.bindparam("of_id"),
        _endpoints.enabled,
        _endpoints.failing_since <= sa.bindparam("before", type_=Time),
    )
    .values(enabled=sa.false(), disabled_reason=sa.bindparam("why"))
    .returning(_endpoints.id)
)


@functools.lru_cache(maxsize=128)
def _update_statement(names: frozenset[str]) -> Statement:
    values = {name: sa.bindparam(name, type_=_endpoints[name].type) for name in names}
    return Statement(sa.update(webhook_endpoints).where(_mine).values(values).returning(*_COLUMNS))


_SELECT = Statement(sa.select(*_COLUMNS).where(_mine))
_SELECT_SECRET = Statement(
    sa.select(_endpoints.secret, _endpoints.old_secret, _endpoints.old_secret_until).where(_mine)
)
_page = sa.select(*_COLUMNS).where(_endpoints.tenant == sa.bindparam("of_tenant"))
_page = _page.order_by(_endpoints.id.desc()).limit(sa.bindparam("limit"))
_SELECT_PAGE = Statement(_page)
_SELECT_PAGE_AFTER = Statement(_page.where(_endpoints.id < sa.bindparam("after")))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    """An endpoint to insert; when it was made is the database's to say."""

    id: str
    tenant: str
    url: str
    secret: str
    of_jobs: bool = False
    events: Sequence[WebhookEvent] = tuple(WebhookEvent)
    plugins: Sequence[str] | None = None
    description: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """New values of columns, by their names."""

    id: str
    tenant: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A new secret, beside which the old one signs for `overlap_s`."""

    endpoint_id: str
    tenant: str
    secret: str
    overlap_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnEndpoint:
    """An endpoint, if it is that tenant's."""

    id: str
    tenant: str


async def insert_endpoints(tx: Transaction, items: Sequence[NewEndpoint]) -> list[Webhook | None]:
    """Record endpoints; None where the tenant has `MAX_ENDPOINTS` already."""
    made = []
    for item in items:
        rows = await tx.fetch(_INSERT, batch=batch([_new_row(item, await tx.now())]))
        made.append(_webhook(rows[0]) if rows else None)
    return made


async def ensure_of_jobs(tx: Transaction, items: Iterable[NewEndpoint]) -> Mapping[tuple[str, str], str]:
    """The ids of the endpoints that jobs name, by tenant and URL; those that are new are made."""
    wanted = {(item.tenant, item.url): item for item in items}
    found: dict[tuple[str, str], str] = {}
    # Again for what was in the way of an insert and was deleted before it could be read.
    while left := wanted.keys() - found.keys():
        now = await tx.now()
        await tx.fetch(_INSERT_OF_JOBS, batch=batch(_new_row(wanted[place], now) for place in sorted(left)))
        rows = await tx.fetch(_SELECT_OF_JOBS, batch=batch(left))
        found |= {(tenant, url): endpoint_id for tenant, url, endpoint_id in rows}
    return found


async def update_endpoints(tx: Transaction, items: Sequence[EndpointChange]) -> list[Webhook | None]:
    """Set columns of endpoints; None where there is none of that id and tenant."""
    changed = []
    for item in items:
        values = {name: encode(value) if name in _JSON and value else value for name, value in item.values.items()}
        statement = _update_statement(frozenset(values)) if values else _SELECT
        rows = await tx.fetch(statement, of_id=item.id, of_tenant=item.tenant, **values)
        changed.append(_webhook(rows[0]) if rows else None)
    return changed


async def rotate(tx: Transaction, items: Sequence[Rotation]) -> list[WebhookSecret | None]:
    """Give endpoints a new secret; None where there is none of that id and tenant."""
    changed = []
    for item in items:
        until = later(await tx.now(), item.overlap_s)
        rows = await tx.fetch(
            _ROTATE, of_id=item.endpoint_id, of_tenant=item.tenant, new_secret=item.secret, until=until
        )
        changed.append(_secret(rows[0]) if rows else None)
    return changed


async def delete_endpoints(tx: Transaction, items: Sequence[OwnEndpoint]) -> list[bool | None]:
    """Delete endpoints with their deliveries: True once it is gone, False while there are more than `DELETE_PAGE`.

    None where there is none of that id and tenant.
    """
    outcomes: list[bool | None] = []
    for item in items:
        of = {"of_id": item.id, "of_tenant": item.tenant}
        if len(await tx.fetch(_DELETE_DELIVERIES, **of)) == DELETE_PAGE:
            outcomes.append(False)
        else:
            outcomes.append(True if await tx.fetch(_DELETE, **of) else None)
    return outcomes


async def note_success(tx: Transaction, endpoint_id: str) -> None:
    """An attempt at the endpoint has succeeded."""
    await tx.fetch(_SUCCEEDED, of_id=endpoint_id)


async def note_failure(tx: Transaction, endpoint_id: str, *, disable_after_s: float) -> bool:
    """An attempt at the endpoint has failed; True when that disables it, because none has succeeded for so long."""
    await tx.fetch(_FAILED, of_id=endpoint_id, now=await tx.now())
    why = f"No delivery has succeeded for {disable_after_s / 86_400:g} days."
    dead = await tx.fetch(_DISABLE_DEAD, of_id=endpoint_id, before=later(await tx.now(), -disable_after_s), why=why)
    return bool(dead)


async def disable(tx: Transaction, endpoint_id: str, why: str) -> bool:
    """Send nothing there any more; False when that was so before."""
    return bool(await tx.fetch(_DISABLE, of_id=endpoint_id, why=why))


async def get(reader: Reader, endpoint_id: str, tenant: str) -> Webhook | None:
    """The endpoint, if it is that tenant's."""
    row = await reader.fetch_one(_SELECT, of_id=endpoint_id, of_tenant=tenant)
    return row and _webhook(row)


async def get_secret(reader: Reader, endpoint_id: str, tenant: str) -> WebhookSecret | None:
    """The secrets of the endpoint, if it is that tenant's."""
    row = await reader.fetch_one(_SELECT_SECRET, of_id=endpoint_id, of_tenant=tenant)
    return row and _secret(row)


async def list_page(reader: Reader, tenant: str, *, after: str | None, limit: int) -> WebhookPage:
    """Endpoints of a tenant, newest first."""
    values = {"of_tenant": tenant, "limit": limit + 1}
    if after is None:
        rows = await reader.fetch(_SELECT_PAGE, **values)
    else:
        rows = await reader.fetch(_SELECT_PAGE_AFTER, **values, after=after)
    items = [_webhook(row) for row in rows[:limit]]
    return WebhookPage(items=items, next=items[-1].id if len(rows) > limit else None)


def _new_row(item: NewEndpoint, now: Timestamp) -> tuple[Any, ...]:
    values = {
        "id": item.id,
        "tenant": item.tenant,
        "url": item.url,
        "of_jobs": item.of_jobs,
        "events": encode(item.events),
        "plugins": item.plugins and encode(item.plugins),
        "description": item.description,
        "enabled": True,
        "created_at": now,
        "secret": item.secret,
    }
    return tuple(values.get(column.name) for column in _NEW_COLUMNS)


def _webhook(row: Sequence[Any]) -> Webhook:
    values = {column.name: value for column, value in zip(_COLUMNS, row, strict=True)}
    return Webhook(
        **values
        | {
            "of_jobs": bool(values["of_jobs"]),
            "enabled": bool(values["enabled"]),
            "events": tuple(map(WebhookEvent, decode(values["events"]))),
            "plugins": values["plugins"] and tuple(decode(values["plugins"])),
        }
    )


def _secret(row: Sequence[Any]) -> WebhookSecret:
    text, old_text, old_until = row
    return WebhookSecret(text=text, old_text=old_text, old_until=old_until)
