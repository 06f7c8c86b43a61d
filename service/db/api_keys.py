"""API keys and the tenants they belong to: operations for `Writer.write`, and every read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.access import ApiKey, Rate, Role
from service.codec import decode, encode
from service.db.reader import Reader
from service.db.schema import api_keys, tenants
from service.db.statements import Statement, batch, batch_table
from service.db.transaction import Transaction
from service.models import Timestamp, later

#: The last use of a key is written at most so often.
LAST_USED_S: Final = 60.0

_COLUMNS: Final = (
    api_keys.c.id, api_keys.c.prefix, api_keys.c.name, api_keys.c.tenant, api_keys.c.roles, api_keys.c.rate_per_s,
    api_keys.c.burst, api_keys.c.created_at, api_keys.c.expires_at, api_keys.c.revoked_at, api_keys.c.last_used_at,
)  # fmt: skip
_INSERT_TENANT = Statement(
    postgresql.insert(tenants)
    .values(name=sa.bindparam("tenant_name"), created_at=sa.bindparam("at"))
    .on_conflict_do_nothing()
)
_INSERT_KEY = Statement(
    sa.insert(api_keys).values({column.name: sa.bindparam(column.name) for column in api_keys.columns})
)
_REVOKE = Statement(
    sa.update(api_keys)
    .where(api_keys.c.prefix == sa.bindparam("of_prefix"))
    .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.bindparam("at", type_=api_keys.c.revoked_at.type)))
    .returning(*_COLUMNS)
)
_touched = batch_table("touched", api_keys.c.id)
_TOUCH = Statement(
    sa.update(api_keys)
    .where(
        api_keys.c.id.in_(sa.select(_touched.c.id)),
        api_keys.c.last_used_at.is_(None) | (api_keys.c.last_used_at <= sa.bindparam("before")),
    )
    .values(last_used_at=sa.bindparam("at"))
)
_UPSERT_TENANT = Statement(
    postgresql.insert(tenants)
    .values(name=sa.bindparam("tenant_name"), created_at=sa.bindparam("at"), max_queued=sa.bindparam("most"))
    .on_conflict_do_update(index_elements=["name"], set_={"max_queued": sa.bindparam("most")})
)
_wanted = batch_table("wanted", api_keys.c.sha256)
_SELECT_BY_HASH = Statement(
    sa.select(api_keys.c.sha256, *_COLUMNS).where(api_keys.c.sha256.in_(sa.select(_wanted.c.sha256)))
)
_SELECT_ALL = Statement(sa.select(*_COLUMNS).order_by(api_keys.c.id))
_SELECT_ANY = Statement(sa.select(api_keys.c.id).limit(1))
_SELECT_TENANTS = Statement(sa.select(tenants.c.name, tenants.c.max_queued).order_by(tenants.c.name))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to insert; its times are the database's."""

    id: str
    prefix: str
    sha256: str
    name: str
    tenant: str
    roles: Collection[Role]
    rate: Rate | None
    expires_at: Timestamp | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many jobs of a tenant may wait at once; None leaves it to the service."""

    tenant: str
    max_queued: int | None


async def insert(tx: Transaction, items: Sequence[NewKey]) -> list[ApiKey]:
    """Record keys, and their tenants where those are new."""
    made = []
    for item in items:
        key = ApiKey(
            id=item.id,
            prefix=item.prefix,
            name=item.name,
            tenant=item.tenant,
            roles=frozenset(item.roles),
            rate=item.rate,
            created_at=await tx.now(),
            expires_at=item.expires_at,
            revoked_at=None,
            last_used_at=None,
        )
        await tx.fetch(_INSERT_TENANT, tenant_name=item.tenant, at=await tx.now())
        await tx.fetch(
            _INSERT_KEY,
            id=key.id,
            prefix=key.prefix,
            sha256=item.sha256,
            name=key.name,
            tenant=key.tenant,
            roles=encode(sorted(key.roles)),
            rate_per_s=key.rate and key.rate.per_s,
            burst=key.rate and key.rate.burst,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=None,
            last_used_at=None,
        )
        made.append(key)
    return made


async def revoke(tx: Transaction, items: Sequence[str]) -> list[ApiKey | None]:
    """Make the keys of these prefixes worthless for ever; None where there is none. The first time is what stays."""
    revoked = []
    for prefix in items:
        rows = await tx.fetch(_REVOKE, of_prefix=prefix, at=await tx.now())
        revoked.append(_key(rows[0]) if rows else None)
    return revoked


async def touch(tx: Transaction, items: Sequence[Collection[str]]) -> list[None]:
    """Record that keys are in use now, unless that was recorded in the last `LAST_USED_S`."""
    used = sorted({key_id for item in items for key_id in item})
    now = await tx.now()
    await tx.fetch(_TOUCH, batch=batch((key_id,) for key_id in used), at=now, before=later(now, -LAST_USED_S))
    return [None] * len(items)


async def set_quota(tx: Transaction, items: Sequence[Quota]) -> list[None]:
    """Set what tenants may have; the row of a new tenant is made."""
    for item in items:
        await tx.fetch(_UPSERT_TENANT, tenant_name=item.tenant, most=item.max_queued, at=await tx.now())
    return [None] * len(items)


async def find(reader: Reader, hashes: Collection[str]) -> dict[str, ApiKey]:
    """The keys of these hashes, by hash."""
    rows = await reader.fetch(_SELECT_BY_HASH, batch=batch((sha256,) for sha256 in hashes))
    return {row[0]: _key(row[1:]) for row in rows}


async def any_made(reader: Reader) -> bool:
    """Whether there has ever been a key."""
    return await reader.fetch_one(_SELECT_ANY) is not None


async def list_all(reader: Reader) -> list[ApiKey]:
    """Every key, oldest first, the revoked ones too."""
    return [_key(row) for row in await reader.fetch(_SELECT_ALL)]


async def quotas(reader: Reader) -> Mapping[str, int | None]:
    """Every tenant, with how many of its jobs may wait."""
    return dict(await reader.fetch(_SELECT_TENANTS))


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, prefix, name, tenant, roles, per_s, burst, created_at, expires_at, revoked_at, last_used_at = row
    return ApiKey(
        id=key_id,
        prefix=prefix,
        name=name,
        tenant=tenant,
        roles=frozenset(map(Role, decode(roles))),
        rate=None if per_s is None else Rate(per_s=per_s, burst=burst),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
        last_used_at=last_used_at,
    )
