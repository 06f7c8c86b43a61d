"""Who asks, and what they may: roles, the caller of a request, the form of an API key."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import secrets
from typing import Final, NamedTuple

from service.models import DEFAULT_TENANT, Timestamp

KEY_PREFIX: Final = "jsk_"
_PUBLIC_BYTES: Final = 6
_SECRET_BYTES: Final = 32
PREFIX_CHARS: Final = len(KEY_PREFIX) + 2 * _PUBLIC_BYTES


class Role(enum.StrEnum):
    """What a key may do. ADMIN may all that the others may."""

    SUBMIT = "submit"  # make and change jobs
    READ = "read"  # see jobs and their files
    REPORT = "report"  # see figures over many jobs
    ADMIN = "admin"  # delete, and see what is for administrators


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A token bucket: `per_s` requests a second in the long run, `burst` at once."""

    per_s: float
    burst: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request. Everything a caller sees or makes belongs to `tenant`.

    `key_id` is None for somebody without a key, where none is asked for. `rate` None leaves it to the service.
    """

    tenant: str = DEFAULT_TENANT
    roles: frozenset[Role] = frozenset(Role)
    key_id: str | None = None
    rate: Rate | None = None

    def has_any(self, roles: frozenset[Role]) -> bool:
        """Whether one of `roles`, or ADMIN, is the caller's."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    @property
    def is_operator(self) -> bool:
        """Whether what concerns all tenants may be this caller's: the default tenant runs the service."""
        return self.tenant == DEFAULT_TENANT


#: The caller where no key is asked for.
ANYONE: Final = Caller()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: never its secret. `prefix` is the part that may be shown."""

    id: str
    prefix: str
    name: str
    tenant: str
    roles: frozenset[Role]
    rate: Rate | None
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    last_used_at: Timestamp | None

    def is_valid(self, now: Timestamp) -> bool:
        """Whether it opens anything at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def state(self, now: Timestamp) -> str:
        """`valid`, `expired` or `revoked`."""
        return "revoked" if self.revoked_at else "valid" if self.is_valid(now) else "expired"

    @property
    def caller(self) -> Caller:
        """Whoever holds it."""
        return Caller(tenant=self.tenant, roles=self.roles, key_id=self.id, rate=self.rate)


class NewSecret(NamedTuple):
    """A key just made: what its holder is given, the part that may be shown, and what is kept."""

    text: str
    prefix: str
    sha256: str


def new_secret() -> NewSecret:
    """A random key, `jsk_<12 hexadecimal digits>_<43 characters>`; the last part holds 256 bits from the system."""
    prefix = KEY_PREFIX + secrets.token_hex(_PUBLIC_BYTES)
    text = f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return NewSecret(text=text, prefix=prefix, sha256=digest(text))


def digest(key: str) -> str:
    """What is kept of a key. A fast hash is right: 256 random bits cannot be guessed, however fast each guess is."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
