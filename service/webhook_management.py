"""WebhookManagementService: owns webhook endpoints and their deliveries, and hands out what is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, TypeVar

from uuid_utils import uuid7

from service.db import job_queries, webhook_deliveries, webhook_endpoints
from service.db.database import Database
from service.db.webhook_deliveries import GIVE_UP_PAGE, DeliveryClaim, Redelivery
from service.db.webhook_endpoints import MAX_ENDPOINTS, EndpointChange, NewEndpoint, OwnEndpoint, Rotation
from service.errors import DeliveryNotFoundError, WebhookNotFoundError, WebhookStateError
from service.models import DEFAULT_TENANT, JobRecord, canonical_uuid, timestamp
from service.webhook_models import (
    ClaimedDelivery,
    Delivery,
    DeliveryOutcome,
    DeliveryPage,
    DeliveryStatus,
    DueEndpoint,
    Webhook,
    WebhookEvent,
    WebhookPage,
    WebhookSecret,
    new_webhook_secret,
)
from service.webhook_urls import WebhookRules

#: How long an old secret signs beside a new one.
OVERLAP_S: Final = 24 * 3600.0
_BY_HAND: Final = "Disabled by request."

_T = TypeVar("_T")


class WebhookChange(TypedDict, total=False):
    """What to change of an endpoint; what is not there stays as it is."""

    url: str
    events: Sequence[WebhookEvent]
    plugins: Sequence[str] | None
    description: str | None
    enabled: bool


class WebhookManagementService:
    """Owns webhooks. Deliveries are recorded where jobs end (`db.webhook_outbox`); here they are seen and sent on."""

    def __init__(self, database: Database, rules: WebhookRules | None = None) -> None:
        self._database = database
        self._rules = rules or WebhookRules()

    # --- what administrators ask for ----------------------------------------------------------------------------

    async def create(
        self,
        url: str,
        *,
        tenant: str = DEFAULT_TENANT,
        events: Sequence[WebhookEvent] = tuple(WebhookEvent),
        plugins: Sequence[str] | None = None,
        description: str | None = None,
    ) -> tuple[Webhook, WebhookSecret]:
        """A new endpoint, which hears of the tenant's jobs from now on, and the secret that signs what it hears.

        Raises `WebhookUrlError`, and `WebhookStateError` when the tenant has `MAX_ENDPOINTS`.
        """
        self._rules.check_url(url)
        secret = new_webhook_secret()
        new = NewEndpoint(
            id=str(uuid7()),
            tenant=tenant,
            url=url,
            secret=secret,
            events=events,
            plugins=plugins,
            description=description,
        )
        made = await self._database.writer.write(webhook_endpoints.insert_endpoints, new)
        if made is None:
            raise WebhookStateError(f"There are {MAX_ENDPOINTS} webhooks, and no more may be: delete one first.")
        return made, WebhookSecret(text=secret)

    async def get(self, webhook_id: str, *, tenant: str = DEFAULT_TENANT) -> Webhook:
        """The endpoint; raises `WebhookNotFoundError`, for another tenant's too."""
        found = await webhook_endpoints.get(self._database.reader, _canonical(webhook_id), tenant)
        return _found(found, webhook_id)

    async def list_webhooks(
        self, *, tenant: str = DEFAULT_TENANT, after: str | None = None, limit: int = 50
    ) -> WebhookPage:
        """The tenant's endpoints, those that jobs have named too, newest first."""
        return await webhook_endpoints.list_page(self._database.reader, tenant, after=after, limit=limit)

    async def change(self, webhook_id: str, change: WebhookChange, *, tenant: str = DEFAULT_TENANT) -> Webhook:
        """Change an endpoint; its record then. Enabling it forgets how it failed before.

        Raises `WebhookNotFoundError`, `WebhookUrlError`, and `WebhookStateError` for the URL or the plugins of an
        endpoint that is there because jobs name it.
        """
        webhook = await self.get(webhook_id, tenant=tenant)
        if webhook.of_jobs and change.keys() & {"url", "plugins"}:
            raise WebhookStateError("Jobs name this webhook by its URL: neither that nor its plugins can be changed.")
        if "url" in change:
            self._rules.check_url(change["url"])
        values: dict[str, Any] = {**change}
        if "enabled" in change:
            values |= {"disabled_reason": None if change["enabled"] else _BY_HAND, "failing_since": None}
        item = EndpointChange(id=webhook.id, tenant=tenant, values=values)
        return _found(await self._database.writer.write(webhook_endpoints.update_endpoints, item), webhook_id)

    async def delete(self, webhook_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Delete an endpoint with its deliveries and their log; raises `WebhookNotFoundError`."""
        own = OwnEndpoint(id=_canonical(webhook_id), tenant=tenant)
        gone: bool | None = False
        while gone is False:
            gone = await self._database.writer.write(webhook_endpoints.delete_endpoints, own)
        _found(gone, webhook_id)

    async def rotate(self, webhook_id: str, *, tenant: str = DEFAULT_TENANT) -> WebhookSecret:
        """A new secret, beside which the old one signs for `OVERLAP_S`; raises `WebhookNotFoundError`."""
        rotation = Rotation(
            endpoint_id=_canonical(webhook_id), tenant=tenant, secret=new_webhook_secret(), overlap_s=OVERLAP_S
        )
        return _found(await self._database.writer.write(webhook_endpoints.rotate, rotation), webhook_id)

    async def get_secret(self, webhook_id: str, *, tenant: str = DEFAULT_TENANT) -> WebhookSecret:
        """The secrets of an endpoint; raises `WebhookNotFoundError`."""
        found = await webhook_endpoints.get_secret(self._database.reader, _canonical(webhook_id), tenant)
        return _found(found, webhook_id)

    async def ping(self, webhook_id: str, *, tenant: str = DEFAULT_TENANT) -> Delivery:
        """Send a message that is about no job; raises `WebhookNotFoundError`, and `WebhookStateError` if disabled."""
        webhook = await self._enabled(webhook_id, tenant)
        delivery_id = await self._database.writer.write(webhook_deliveries.ping, webhook.id)
        return await self._delivery(webhook.id, delivery_id)

    async def list_deliveries(
        self,
        webhook_id: str,
        *,
        tenant: str = DEFAULT_TENANT,
        status: DeliveryStatus | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> DeliveryPage:
        """What was sent or is to be sent to an endpoint, newest first; raises `WebhookNotFoundError`."""
        webhook = await self.get(webhook_id, tenant=tenant)
        return await webhook_deliveries.list_page(
            self._database.reader, webhook.id, status=status, after=after, limit=limit
        )

    async def redeliver(self, webhook_id: str, delivery_id: str, *, tenant: str = DEFAULT_TENANT) -> Delivery:
        """Send a message once more, with the same id and content; one that waits does not wait any longer.

        Raises `WebhookNotFoundError`, `DeliveryNotFoundError`, and `WebhookStateError` if the endpoint is disabled.
        """
        webhook = await self.get(webhook_id, tenant=tenant)
        canonical = canonical_uuid(delivery_id)
        if canonical is None:
            raise DeliveryNotFoundError(delivery_id[:100])
        delivery = await self._delivery(webhook.id, canonical)
        await self._enabled(webhook_id, tenant)
        again = Redelivery(delivery_id=delivery.id, endpoint_id=webhook.id)
        await self._database.writer.write(webhook_deliveries.redeliver, again)
        return await self._delivery(webhook.id, delivery.id)

    # --- what the loop asks for ---------------------------------------------------------------------------------

    async def find_due(self) -> Sequence[DueEndpoint]:
        """Endpoints that have something to be sent to them; those that were disabled are given up and left out."""
        due = await webhook_deliveries.find_due(self._database.reader, timestamp())
        for endpoint in due:
            while not endpoint.enabled:
                if await self._database.writer.write(webhook_deliveries.give_up, endpoint.id) < GIVE_UP_PAGE:
                    break
        return [endpoint for endpoint in due if endpoint.enabled]

    async def claim(self, rooms: Mapping[str, int], lease_s: float) -> Sequence[ClaimedDelivery]:
        """Due deliveries, up to `rooms[endpoint]` to each, which nobody else gets before the lease ends."""
        return await self._database.writer.write(
            webhook_deliveries.claim_deliveries, DeliveryClaim(rooms=rooms, lease_s=lease_s)
        )

    async def subject(self, delivery: ClaimedDelivery) -> JobRecord | None:
        """The job that a delivery is about, without its payload; None for a ping, and when it was deleted."""
        if delivery.job_id is None:
            return None
        return await job_queries.get_outcome(self._database.reader, delivery.job_id)

    async def record(self, outcome: DeliveryOutcome) -> bool:
        """Record how an attempt went; False when the delivery is not this claim's any more."""
        return await self._database.writer.write(webhook_deliveries.record_attempts, outcome)

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _enabled(self, webhook_id: str, tenant: str) -> Webhook:
        webhook = await self.get(webhook_id, tenant=tenant)
        if not webhook.enabled:
            raise WebhookStateError(f"The webhook is disabled, so that nothing is sent: {webhook.disabled_reason}")
        return webhook

    async def _delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        delivery = await webhook_deliveries.get(self._database.reader, webhook_id, delivery_id)
        if delivery is None:
            raise DeliveryNotFoundError(delivery_id)
        return delivery


def _canonical(webhook_id: str) -> str:
    """The one spelling of a UUID; raises `WebhookNotFoundError` for what is none: there is no such webhook."""
    return _found(canonical_uuid(webhook_id), webhook_id)


def _found(found: _T | None, webhook_id: str) -> _T:
    if found is None:
        raise WebhookNotFoundError(webhook_id[:100])
    return found
