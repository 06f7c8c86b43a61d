"""The commands `keys` and `tenants`, on the database itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from service.access import ApiKey, Rate, Role
from service.cli.failures import UsageError
from service.cli.output import coloured, moment, print_table, put, say, table_of
from service.cli.parameters import MANY, Json, ServiceSettings
from service.models import DEFAULT_TENANT, JSON, later, timestamp
from service.settings import Settings

if TYPE_CHECKING:
    from service.key_management import KeyManagementService

keys = App(name="keys", help="Make, list and revoke API keys, in the database itself; needs no running service.")
tenants = App(name="tenants", help="List tenants, and limit how many of their jobs may wait.")


@keys.command(name="create")
async def create_key(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    tenant: str = DEFAULT_TENANT,
    role: Annotated[tuple[Role, ...], MANY] = (Role.SUBMIT, Role.READ),
    days: float | None = None,
    rate: float | None = None,
    burst: int | None = None,
    settings: ServiceSettings = None,
    json: Json = False,
) -> None:
    """Make an API key and print it. It is shown this once: only a hash of it is kept.

    Args:
        name: What the key is for.
        tenant: Whose jobs it sees and makes; a new one is made.
        role: What it may do; may be repeated.
        days: It expires after so many.
        rate: Requests a second in the long run; default: the service's setting.
        burst: Requests at once; default: the rate, rounded up.
    """
    if rate is None and burst is not None:
        raise UsageError("--burst goes with --rate: how fast it may be filled again.")
    if rate is not None and math.isinf(rate):
        raise UsageError(f"--rate {rate}: give a number of requests a second; without it the service's setting holds.")
    allowed = None if rate is None else Rate(per_s=rate, burst=max(1, math.ceil(rate)) if burst is None else burst)
    expires_at = None if days is None else later(timestamp(), days * 86_400)
    # As in `serve`.
    from service.key_management import check_key

    check_key(name, tenant=tenant, roles=role, expires_at=expires_at, rate=allowed)  # no database is made for one
    async with _keys(settings, must_exist=False) as management:
        key, secret = await management.create(name, tenant=tenant, roles=role, expires_at=expires_at, rate=allowed)
    if json:
        put({**_key_document(key), "key": secret})
        return
    put(secret)
    say(f"The key {key.prefix} of tenant {key.tenant} may {', '.join(sorted(key.roles))}. It is not shown again.")


@keys.command(name="list")
async def list_keys(*, settings: ServiceSettings = None, json: Json = False) -> None:
    """List the API keys, oldest first; their secrets are kept nowhere."""
    async with _keys(settings) as management:
        found = await management.list_keys()
    if json:
        put([_key_document(key) for key in found])
        return
    table = table_of("key", "name", "tenant", "roles", "state", "expires (UTC)", "last used (UTC)")
    now = timestamp()
    for key in found:
        table.add_row(
            key.prefix, key.name, key.tenant, ",".join(sorted(key.roles)), coloured(key.state(now)),
            moment(key.expires_at), moment(key.last_used_at),
        )  # fmt: skip
    print_table(table)


@keys.command(name="revoke")
async def revoke_key(
    prefix: Annotated[str, Parameter(name="PREFIX")],
    /,
    *,
    settings: ServiceSettings = None,
    json: Json = False,
) -> None:
    """Make an API key worthless, for ever; a running service knows within 5 seconds.

    Args:
        prefix: Which one, as `keys list` shows it: `jsk_` and the twelve digits behind it.
    """
    async with _keys(settings) as management:
        key = await management.revoke(prefix)
    put(_key_document(key) if json else f"The key {key.prefix} ({key.name}) is revoked.")


@tenants.command(name="list")
async def list_tenants(*, settings: ServiceSettings = None, json: Json = False) -> None:
    """List the tenants that have a key or a limit of their own."""
    async with _keys(settings) as management:
        quotas = await management.list_quotas()
    if json:
        put([{"tenant": name, "max_queued": most} for name, most in quotas.items()])
        return
    table = table_of("tenant", "jobs that may wait")
    for name, most in quotas.items():
        table.add_row(name, "" if most is None else str(most))
    print_table(table)


@tenants.command(name="limit")
async def limit_tenant(
    tenant: Annotated[str, Parameter(name="TENANT")],
    most: Annotated[int | None, Parameter(name="JOBS")] = None,
    /,
    *,
    settings: ServiceSettings = None,
) -> None:
    """Let at most JOBS of a tenant's jobs wait; without JOBS the service's own limit is its limit again."""
    async with _keys(settings) as management:
        is_new = tenant not in await management.list_quotas()
        await management.set_quota(tenant, most)
    put(f"At most {most} jobs of {tenant} wait." if most is not None else f"{tenant} has no limit of its own.")
    if is_new:
        say(f"{tenant} is a new tenant, without a key yet. The others: `jobservice tenants list`.")


@contextlib.asynccontextmanager
async def _keys(settings: Settings | None, *, must_exist: bool = True) -> AsyncIterator[KeyManagementService]:
    settings = settings or Settings()
    # As in `serve`.
    from service import logs
    from service.app import open_keys

    logs.configure(settings.log_level, settings.log_format)
    async with open_keys(settings, must_exist=must_exist, on_made=lambda path: say(f"made {path}")) as management:
        yield management


def _key_document(key: ApiKey) -> dict[str, JSON]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "roles": sorted(key.roles),
        "rate_per_s": key.rate and key.rate.per_s,
        "burst": key.rate and key.rate.burst,
        "state": key.state(timestamp()),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
