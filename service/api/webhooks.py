"""Calls about webhooks, one function each: parsed request → one use case of the service → answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from service.api import webhook_views as views
from service.api.handlers import Arguments, json_response, next_link
from service.api.services import Services
from service.webhook_management import WebhookChange
from service.webhook_models import WebhookEvent


async def create_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Record an endpoint; only this answer and the call for it show its secret."""
    asked = arguments.submitted
    webhook, secret = await services.webhooks.create(
        asked["url"],
        tenant=arguments.caller.tenant,
        events=tuple(dict.fromkeys(asked.get("events", WebhookEvent))),
        plugins=_distinct(asked.get("plugins")),
        description=asked.get("description"),
    )
    view: views.NewWebhookView = {**views.webhook_view(webhook), "secret": secret.text}
    return json_response(view, HTTPStatus.CREATED, {hdrs.LOCATION: views.webhook_url(webhook.id)})


async def list_webhooks(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A page of endpoints, newest first."""
    query = arguments.query
    page = await services.webhooks.list_webhooks(
        tenant=arguments.caller.tenant, after=query.get("cursor"), limit=query.get("limit", 50)
    )
    view: views.WebhookListView = {"items": [views.webhook_view(item) for item in page.items], "next": page.next}
    return json_response(view, headers=next_link(request, page.next))


async def get_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """One endpoint."""
    webhook = await services.webhooks.get(request.match_info["webhook_id"], tenant=arguments.caller.tenant)
    return json_response(views.webhook_view(webhook))


async def change_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Change what is named in the body."""
    change: WebhookChange = arguments.submitted.copy()
    if "events" in change:
        change["events"] = tuple(dict.fromkeys(change["events"]))
    if "plugins" in change:
        change["plugins"] = _distinct(change["plugins"])
    webhook = await services.webhooks.change(request.match_info["webhook_id"], change, tenant=arguments.caller.tenant)
    return json_response(views.webhook_view(webhook))


async def delete_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Delete an endpoint with all its deliveries."""
    await services.webhooks.delete(request.match_info["webhook_id"], tenant=arguments.caller.tenant)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def rotate_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Make a new secret."""
    secret = await services.webhooks.rotate(request.match_info["webhook_id"], tenant=arguments.caller.tenant)
    return json_response(views.secret_view(secret))


async def get_webhook_secret(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Show the secret."""
    secret = await services.webhooks.get_secret(request.match_info["webhook_id"], tenant=arguments.caller.tenant)
    return json_response(views.secret_view(secret))


async def ping_webhook(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Send a message that is about no job."""
    delivery = await services.webhooks.ping(request.match_info["webhook_id"], tenant=arguments.caller.tenant)
    return json_response(views.delivery_view(delivery), HTTPStatus.ACCEPTED)


async def list_deliveries(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A page of deliveries with their log, newest first."""
    query = arguments.query
    page = await services.webhooks.list_deliveries(
        request.match_info["webhook_id"],
        tenant=arguments.caller.tenant,
        status=query.get("status"),
        after=query.get("cursor"),
        limit=query.get("limit", 50),
    )
    view: views.DeliveryListView = {"items": [views.delivery_view(item) for item in page.items], "next": page.next}
    return json_response(view, headers=next_link(request, page.next))


async def redeliver(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Send a message once more."""
    match = request.match_info
    delivery = await services.webhooks.redeliver(
        match["webhook_id"], match["delivery_id"], tenant=arguments.caller.tenant
    )
    return json_response(views.delivery_view(delivery), HTTPStatus.ACCEPTED)


def _distinct(values: Any) -> tuple[Any, ...] | None:
    return None if values is None else tuple(dict.fromkeys(values))
