"""The gate in front of every call: who asks, whether the call is theirs to make, and not too often."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web

from service.access import ANYONE, Caller, Rate, Role
from service.api.problems import Problem
from service.key_management import KeyManagementService

#: Where a request keeps headers for its answer, whatever that is.
ANSWER_HEADERS: Final = web.RequestKey("answer_headers", dict[str, str])
_CHALLENGE: Final = 'Bearer realm="jobservice"'
_BEARER: Final = re.compile(r"bearer +([0-9A-Za-z._~+/=-]{1,200})", re.ASCII | re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may make a call: a key with one of `roles`; with `of_operator` one of the default tenant.

    `roles` None asks for no key at all. ADMIN has every role.
    """

    roles: frozenset[Role] | None
    of_operator: bool = False

    def admits(self, caller: Caller) -> bool:
        """Whether the call is `caller`'s to make."""
        return self.roles is None or (caller.has_any(self.roles) and (caller.is_operator or not self.of_operator))


#: No key is asked for: nothing about jobs is told.
PUBLIC: Final = Policy(roles=None)
#: What every client may know.
ANY_KEY: Final = Policy(roles=frozenset(Role))
SUBMIT: Final = Policy(roles=frozenset({Role.SUBMIT}))
READ: Final = Policy(roles=frozenset({Role.READ}))
REPORT: Final = Policy(roles=frozenset({Role.REPORT}))
ADMIN: Final = Policy(roles=frozenset({Role.ADMIN}))
#: What concerns every tenant.
OPERATOR: Final = Policy(roles=frozenset({Role.ADMIN}), of_operator=True)
#: Figures about every tenant.
OPERATOR_REPORT: Final = Policy(roles=frozenset({Role.REPORT}), of_operator=True)


class Gate:
    """Admits callers. While `open_to_all` without a key too, as `ANYONE`; a key that is sent is checked always."""

    def __init__(
        self,
        keys: KeyManagementService,
        *,
        open_to_all: Callable[[], bool],
        rate: Rate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._open_to_all = open_to_all
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str | None, _Bucket] = {}  # one a key

    async def admit(self, request: web.Request, policy: Policy) -> Caller:
        """Who asks; raises a problem: 401 for no or a bad key, 429 for too many requests, 403 for a missing role."""
        if policy.roles is None:
            return ANYONE
        caller = await self._caller(request)
        rate = caller.rate or self._rate
        if rate is not None:
            self._take(request, caller, rate)
        if not policy.admits(caller):
            raise _forbidden(caller, policy)
        return caller

    async def is_still_admitted(self, request: web.Request) -> bool:
        """Whether the caller of a request that goes on for long would still be let in."""
        try:
            await self._caller(request)
        except Problem:
            return False
        return True

    async def _caller(self, request: web.Request) -> Caller:
        given = request.headers.getall(hdrs.AUTHORIZATION, ())
        found = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
        if found is None:
            if self._open_to_all() and not any(value.lower().startswith("bearer") for value in given):
                return ANYONE
            raise _unauthenticated("Send an API key of this service, as `Authorization: Bearer jsk_…`.", _CHALLENGE)
        caller = await self._keys.find(found[1])
        if caller is None:
            raise _unauthenticated(
                "This API key opens nothing: it is unknown, expired or revoked.", f'{_CHALLENGE}, error="invalid_token"'
            )
        structlog.contextvars.bind_contextvars(tenant=caller.tenant, key_id=caller.key_id)
        return caller

    def _take(self, request: web.Request, caller: Caller, rate: Rate) -> None:
        bucket = self._buckets.get(caller.key_id)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[caller.key_id] = _Bucket(rate, self._clock())
        wait_s = bucket.take(self._clock())
        request[ANSWER_HEADERS].update(bucket.headers())
        if wait_s > 0:
            raise Problem(
                status=HTTPStatus.TOO_MANY_REQUESTS,
                kind="rate-limited",
                detail=f"Too many requests: this caller has {rate.per_s:g} a second, and {rate.burst} at once.",
                headers={hdrs.RETRY_AFTER: str(math.ceil(wait_s))},
            )


class _Bucket:
    """Fills with `rate.per_s` tokens a second up to `rate.burst`; each request takes one."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._tokens = float(rate.burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token: 0, or the seconds until there will be one."""
        self._tokens = min(self.rate.burst, self._tokens + (now - self._at) * self.rate.per_s)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self.rate.per_s
        self._tokens -= 1
        return 0.0

    def headers(self) -> dict[str, str]:
        """The quota, and what is left of it until it is whole again."""
        rate = self.rate
        return {
            "RateLimit-Policy": f'"key";q={rate.burst};w={math.ceil(rate.burst / rate.per_s)}',
            "RateLimit": f'"key";r={int(self._tokens)};t={math.ceil((rate.burst - self._tokens) / rate.per_s)}',
        }


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than `localhost` is taken for the world's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unauthenticated(detail: str, challenge: str) -> Problem:
    return Problem(
        status=HTTPStatus.UNAUTHORIZED,
        kind="unauthenticated",
        detail=detail,
        headers={hdrs.WWW_AUTHENTICATE: challenge},
    )


def _forbidden(caller: Caller, policy: Policy) -> Problem:
    wanted = " or ".join(sorted(policy.roles or ()))
    where = " of the default tenant" if policy.of_operator else ""
    whose = f", of the tenant {caller.tenant}," if policy.of_operator and not caller.is_operator else ""
    held = ", ".join(sorted(caller.roles))
    return Problem(
        status=HTTPStatus.FORBIDDEN,
        kind="forbidden",
        detail=f"This call asks for a key{where} with the role {wanted}; this one{whose} has {held}.",
    )
