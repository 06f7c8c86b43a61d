"""Calls that act on jobs that are there: retry and delete one, or cancel, retry and delete many."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from service.api import bodies, bulk_views, handlers
from service.api.bulk_inputs import ActionInput, check_action
from service.api.handlers import Arguments
from service.api.inputs import filter_query
from service.api.route import Handler
from service.api.services import Services
from service.job_actions import MAX_JOBS, Action


async def retry_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A new job in place of one that has ended; its row is committed before the answer."""
    submission = await services.actions.retry(
        request.match_info["job_id"],
        tenant=arguments.caller.tenant,
        idempotency_key=arguments.headers.get("Idempotency-Key"),
    )
    return await handlers.accepted(services, request, arguments, submission)


async def delete_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A job that has ended is gone, with its attempts and events."""
    await services.actions.delete(request.match_info["job_id"], tenant=arguments.caller.tenant)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def read_action(services: Services, request: web.Request) -> ActionInput:
    """The jobs that are meant."""
    return check_action(await bodies.parse_json(await bodies.read(request, services.max_body_bytes)))


def acting(action: Action) -> Handler:
    """The handler that does `action` to many jobs; an outcome for each."""

    async def act(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
        asked: ActionInput = arguments.submitted
        tenant, dry_run = arguments.caller.tenant, asked.get("dry_run", False)
        key = arguments.headers.get("Idempotency-Key")
        if "ids" in asked:
            report = await services.actions.act_on(
                action, asked["ids"], tenant=tenant, dry_run=dry_run, idempotency_key=key
            )
        else:
            query = filter_query(asked["filter"], asked.get("limit", MAX_JOBS))
            report = await services.actions.act_where(
                action, query, tenant=tenant, dry_run=dry_run, idempotency_key=key
            )
        view = bulk_views.action_view(action, report, dry_run=dry_run)
        return handlers.json_response(view)

    return act
