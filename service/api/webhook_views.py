"""Webhooks as HTTP shows them, and the messages that their receivers get."""

from __future__ import annotations

from typing import Final

import orjson
from typing_extensions import TypedDict

from service.api.views import JobSummaryView, job_summary, job_url, referenced
from service.models import JSON, JobRecord, Timestamp
from service.webhook_models import (
    ClaimedDelivery,
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    Webhook,
    WebhookEvent,
    WebhookSecret,
)

#: A result whose JSON is larger is left out of the message: receivers fetch it.
MAX_RESULT_BYTES: Final = 65_536


class WebhookLinksView(TypedDict):
    """Where to go from here."""

    self: str
    secret: str
    deliveries: str
    ping: str
    rotate: str


class WebhookView(TypedDict):
    """An endpoint; one `of_jobs` hears only of jobs that name it. `disabled_reason` is null while it is enabled.

    `failing_since`: no attempt has succeeded since then.
    """

    id: str
    url: str
    of_jobs: bool
    events: list[WebhookEvent]
    plugins: list[str] | None
    description: str | None
    enabled: bool
    disabled_reason: str | None
    failing_since: Timestamp | None
    created_at: Timestamp
    links: WebhookLinksView


class NewWebhookView(WebhookView):
    """An endpoint just made, with the secret that signs what it hears."""

    secret: str


class WebhookListView(TypedDict):
    """A page of endpoints, newest first; `next` is the cursor of the page behind it."""

    items: list[WebhookView]
    next: str | None


class WebhookSecretView(TypedDict):
    """What signs; until `old_until` the old secret signs beside the new one."""

    secret: str
    old_until: Timestamp | None


class DeliveryAttemptView(TypedDict):
    """One attempt: what was answered, or why nothing was."""

    attempt: int
    at: Timestamp
    status_code: int | None
    error: str | None
    took_s: float


class DeliveryView(TypedDict):
    """A message to an endpoint; its id is the `webhook-id`. `next_at` is null unless it is PENDING."""

    id: str
    webhook_id: str
    job_id: str | None
    type: str
    status: DeliveryStatus
    next_at: Timestamp | None
    last_status_code: int | None
    last_error: str | None
    created_at: Timestamp
    finished_at: Timestamp | None
    attempts: list[DeliveryAttemptView]
    links: dict[str, str]


class DeliveryListView(TypedDict):
    """A page of deliveries, newest first; `next` is the cursor of the page behind it."""

    items: list[DeliveryView]
    next: str | None


class EndedJobView(JobSummaryView):
    """A job that has ended, without its input. A large result is left out: `links.result` has it."""

    result: dict[str, JSON] | None
    result_omitted: bool


def webhook_url(webhook_id: str) -> str:
    """Where an endpoint lives."""
    return f"/v1/webhooks/{webhook_id}"


def webhook_view(webhook: Webhook) -> WebhookView:
    """`webhook` without its secret."""
    url = webhook_url(webhook.id)
    return {
        "id": webhook.id,
        "url": webhook.url,
        "of_jobs": webhook.of_jobs,
        "events": list(webhook.events),
        "plugins": None if webhook.plugins is None else list(webhook.plugins),
        "description": webhook.description,
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason,
        "failing_since": webhook.failing_since,
        "created_at": webhook.created_at,
        "links": {
            "self": url,
            "secret": url + "/secret",
            "deliveries": url + "/deliveries",
            "ping": url + "/ping",
            "rotate": url + "/rotate",
        },
    }


def secret_view(secret: WebhookSecret) -> WebhookSecretView:
    """The newest secret, and how long the one before is valid."""
    return {"secret": secret.text, "old_until": secret.old_until}


def delivery_view(delivery: Delivery) -> DeliveryView:
    """`delivery` with its log."""
    links = {"redeliver": f"{webhook_url(delivery.endpoint_id)}/deliveries/{delivery.id}/redeliver"}
    if delivery.job_id is not None:
        links["job"] = job_url(delivery.job_id)
    return {
        "id": delivery.id,
        "webhook_id": delivery.endpoint_id,
        "job_id": delivery.job_id,
        "type": delivery.type,
        "status": delivery.status,
        "next_at": delivery.next_at,
        "last_status_code": delivery.last_status_code,
        "last_error": delivery.last_error,
        "created_at": delivery.created_at,
        "finished_at": delivery.finished_at,
        "attempts": [_attempt_view(attempt) for attempt in delivery.attempts],
        "links": links,
    }


def _attempt_view(attempt: DeliveryAttempt) -> DeliveryAttemptView:
    return {
        "attempt": attempt.attempt,
        "at": attempt.at,
        "status_code": attempt.status_code,
        "error": attempt.error,
        "took_s": attempt.took_s,
    }


def message(delivery: ClaimedDelivery, job: JobRecord | None) -> bytes:
    """What a receiver gets, the same bytes at every attempt: an ended job never changes."""
    if job is None:
        data: object = {"webhook_id": delivery.endpoint_id}
    else:
        data = _ended_job(job)
    return orjson.dumps({"type": delivery.type, "timestamp": delivery.created_at, "data": data})


def _ended_job(job: JobRecord) -> EndedJobView:
    result = None if job.result is None else referenced(job.result, job_url(job.id) + "/result")
    omitted = result is not None and len(orjson.dumps(result)) > MAX_RESULT_BYTES
    return {**job_summary(job), "result": None if omitted else result, "result_omitted": omitted}
