"""KeyManagementService: makes, lists and revokes API keys, and tells whose a key is."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Final

import structlog
from uuid_utils import uuid7

from service.access import PREFIX_CHARS, ApiKey, Caller, Rate, Role, digest, new_secret
from service.db import api_keys
from service.db.api_keys import LAST_USED_S, NewKey, Quota
from service.db.database import Database
from service.errors import InvalidKeyError, KeyNotFoundError, ServiceUnavailableError
from service.models import DEFAULT_TENANT, Timestamp, timestamp

#: So long what was found about a key is believed: a revoked key may open for that time still.
TRUST_S: Final = 5.0
_MOST_KNOWN: Final = 10_000
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@ -]{0,99}")

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    key: ApiKey | None  # None: there was none
    until: float


class KeyManagementService:
    """Owns API keys and tenants. What a key opens is read from the database at most every `TRUST_S`.

    `are_in_use` becomes true with the first key ever made, and never false again: revoking the last key opens nothing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, _Known] = {}  # by hash, the longest known first
        self._asked: dict[str, asyncio.Future[_Known]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._used: set[str] = set()
        self.are_in_use = False

    # --- what operators ask for ---------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        *,
        tenant: str = DEFAULT_TENANT,
        roles: Collection[Role] = (Role.SUBMIT, Role.READ),
        expires_at: Timestamp | None = None,
        rate: Rate | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its secret, which nobody can ever show again; raises `InvalidKeyError`."""
        check_key(name, tenant=tenant, roles=roles, expires_at=expires_at, rate=rate)
        secret = new_secret()
        new = NewKey(
            id=str(uuid7()),
            prefix=secret.prefix,
            sha256=secret.sha256,
            name=name,
            tenant=tenant,
            roles=roles,
            rate=rate,
            expires_at=expires_at,
        )
        return await self._database.writer.write(api_keys.insert, new), secret.text

    async def list_keys(self) -> list[ApiKey]:
        """Every key ever made, oldest first."""
        return await api_keys.list_all(self._database.reader)

    async def revoke(self, prefix: str) -> ApiKey:
        """Make a key worthless, everywhere within `TRUST_S`; again is no error. Raises `KeyNotFoundError`."""
        # Whoever has the whole key at hand may give that.
        revoked = await self._database.writer.write(api_keys.revoke, prefix[:PREFIX_CHARS])
        if revoked is None:
            raise KeyNotFoundError(prefix)
        return revoked

    async def set_quota(self, tenant: str, max_queued: int | None) -> None:
        """How many jobs of a tenant may wait at once; None leaves it to the service. Raises `InvalidKeyError`."""
        if not _NAME.fullmatch(tenant) or (max_queued is not None and not 0 <= max_queued < 2**31):
            raise InvalidKeyError(
                f"{tenant!r} cannot have {max_queued} waiting jobs: give a tenant and 0 to 2147483647."
            )
        await self._database.writer.write(api_keys.set_quota, Quota(tenant=tenant, max_queued=max_queued))

    async def list_quotas(self) -> Mapping[str, int | None]:
        """Every tenant, with its quota."""
        return await api_keys.quotas(self._database.reader)

    # --- what requests ask for ----------------------------------------------------------------------------------

    async def find(self, key: str) -> Caller | None:
        """Whose key that is, or None if it opens nothing; raises `ServiceUnavailableError`."""
        sha256 = digest(key)
        known = self._known.get(sha256)
        if known is None or known.until <= asyncio.get_running_loop().time():
            known = await self._look_up(sha256)
        found = known.key
        if found is None or not found.is_valid(timestamp()):
            return None
        self._used.add(found.id)
        return found.caller

    # --- what the loop asks for ---------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """See whether there are keys now."""
        if not self.are_in_use:
            self.are_in_use = await api_keys.any_made(self._database.reader)

    async def record_use(self) -> None:
        """Write down which keys were used since the last time."""
        used, self._used = self._used, set()
        if used:
            try:
                await self._database.writer.write(api_keys.touch, used)
            except BaseException:
                self._used |= used
                raise

    async def keep(self) -> None:
        """Do both when they are due, until cancelled."""
        loop = asyncio.get_running_loop()
        recorded_at = loop.time()
        while True:
            await asyncio.sleep(TRUST_S)
            try:
                await self.refresh()
                if loop.time() - recorded_at >= LAST_USED_S:
                    recorded_at = loop.time()
                    await self.record_use()
            except ServiceUnavailableError as error:
                log.debug("cannot look after the keys", error=str(error))

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _look_up(self, sha256: str) -> _Known:
        """Ask the database, together with everybody who asks meanwhile.

        One question at a time, however many keys are tried: whoever guesses takes one connection, never all of them.
        """
        answer = self._asked.get(sha256)
        if answer is None:
            answer = self._asked[sha256] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name="API keys")
        return await asyncio.shield(answer)

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            until = asyncio.get_running_loop().time() + TRUST_S
            try:
                found = await api_keys.find(self._database.reader, asked)
            except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # nobody may be left to hear it
                continue
            for sha256, answer in asked.items():
                self._remember(sha256, known := _Known(found.get(sha256), until))
                answer.set_result(known)
        self._asking = None

    def _remember(self, sha256: str, known: _Known) -> None:
        self._known.pop(sha256, None)
        self._known[sha256] = known
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]


def check_key(
    name: str, *, tenant: str, roles: Collection[Role], expires_at: Timestamp | None, rate: Rate | None
) -> None:
    """Raise `InvalidKeyError` for a key that makes no sense."""
    for what, text in (("name", name), ("tenant", tenant)):
        if not _NAME.fullmatch(text):
            raise InvalidKeyError(
                f"The {what} {text!r} must be 1 to 100 letters, digits, spaces or ._@-, and begin with neither "
                "a space nor a mark."
            )
    if not roles:
        raise InvalidKeyError(f"A key without a role opens nothing: give it some of {', '.join(Role)}.")
    if rate is not None and not (rate.per_s > 0 and 1 <= rate.burst < 2**31):
        raise InvalidKeyError("A rate must be above 0 requests a second, and its burst 1 to 2147483647.")
    if expires_at is not None and expires_at <= timestamp():
        raise InvalidKeyError(f"The key would have expired already, {expires_at}.")
