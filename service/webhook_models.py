"""Webhooks as values: endpoints, deliveries and their attempts, and the secrets that sign them."""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

from service.models import Timestamp

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret begins with
_SECRET_BYTES: Final = 32


class WebhookEvent(enum.StrEnum):
    """What an endpoint may hear of: the ends of jobs."""

    SUCCESS = "job.success"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"


#: The type of a message that is sent to try an endpoint.
PING: Final = "webhook.ping"


class DeliveryStatus(enum.StrEnum):
    """Where a delivery is. EXHAUSTED: it was given up, and can be asked for again."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    EXHAUSTED = "EXHAUSTED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An endpoint without its secrets. `plugins` None hears of all; `of_jobs` hears only of jobs that name it.

    `disabled_reason` is set iff it is not `enabled`. `failing_since`: no attempt has succeeded since then.
    """

    id: str
    tenant: str
    url: str
    of_jobs: bool
    events: Sequence[WebhookEvent]
    plugins: Sequence[str] | None
    description: str | None
    enabled: bool
    disabled_reason: str | None
    failing_since: Timestamp | None
    created_at: Timestamp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """What signs an endpoint's messages; while it is being rotated the old secret signs beside the new one."""

    text: str = dataclasses.field(repr=False)
    old_text: str | None = dataclasses.field(default=None, repr=False)
    old_until: Timestamp | None = None

    def texts(self, now: Timestamp) -> list[str]:
        """Those that sign at `now`, the newest first."""
        old = self.old_text is not None and self.old_until is not None and now < self.old_until
        return [self.text, self.old_text] if old and self.old_text else [self.text]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One line of the log of a delivery: what was answered, or why there was no answer."""

    attempt: int
    at: Timestamp
    status_code: int | None
    error: str | None
    took_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message to one endpoint. Its id is the `webhook-id`, whatever number of times it is sent.

    `job_id` is None for a ping. `next_at` is set iff it is PENDING. Numbers of `attempts` may be missing: of an attempt
    whose process was lost nobody knows the outcome.
    """

    id: str
    endpoint_id: str
    job_id: str | None
    type: str
    status: DeliveryStatus
    attempt: int
    next_at: Timestamp | None
    last_status_code: int | None
    last_error: str | None
    created_at: Timestamp
    finished_at: Timestamp | None
    attempts: Sequence[DeliveryAttempt]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedDelivery:
    """A delivery that this process has leased; what it records about it names `attempt`, which only ever rises."""

    id: str
    endpoint_id: str
    job_id: str | None
    type: str
    attempt: int
    failures: int
    created_at: Timestamp
    url: str
    secret: WebhookSecret


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DueEndpoint:
    """An endpoint to which something may be sent now; or, when it is not `enabled`, is to be given up."""

    id: str
    enabled: bool
    is_failing: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """How an attempt went. A delivery that is still PENDING is tried again after `retry_in_s`.

    `disable` says why nothing may be sent to the endpoint any more.
    """

    delivery: ClaimedDelivery
    status: DeliveryStatus
    at: Timestamp
    took_s: float
    status_code: int | None = None
    error: str | None = None
    retry_in_s: float | None = None
    disable: str | None = None
    disable_after_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPage:
    """A page of endpoints, newest first; `next` is the cursor of the page behind it."""

    items: Sequence[Webhook]
    next: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPage:
    """A page of deliveries, newest first; `next` is the cursor of the page behind it."""

    items: Sequence[Delivery]
    next: str | None


def new_webhook_secret() -> str:
    """`whsec_` and 256 random bits in base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, sent_at: int, body: bytes) -> str:
    """The signature of Standard Webhooks, `v1,<base64>`: HMAC-SHA256 over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, b"%b.%d.%b" % (message_id.encode(), sent_at, body), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
