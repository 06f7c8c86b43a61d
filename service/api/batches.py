"""Calls about batches: many jobs in one request, how far they are, and what became of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from service.api import bodies, bulk_views
from service.api.bulk_inputs import MAX_BATCH, MAX_BATCH_VALUES, check_batch
from service.api.connections import for_whoever_waits, taken
from service.api.handlers import Arguments, json_response
from service.api.inputs import Submitted
from service.api.problems import Problem, item_view, problem_of
from service.api.route import NDJSON_TYPE
from service.api.services import Services
from service.errors import PluginUnavailableError, ServiceError
from service.intake import Accepted, BatchSubmission
from service.models import JobOutcome


async def read_array(services: Services, request: web.Request) -> list[Submitted | Problem]:
    """A JSON array of jobs."""
    body = await bodies.read(request, services.max_body_bytes)
    return await asyncio.to_thread(check_batch, await bodies.parse_json(body, MAX_BATCH_VALUES))


async def read_lines(services: Services, request: web.Request) -> list[Submitted | Problem]:
    """A job a line."""
    body = await bodies.read(request, services.max_body_bytes)
    return await asyncio.to_thread(check_batch, await bodies.parse_lines(body, MAX_BATCH, MAX_BATCH_VALUES))


async def submit_batch(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Record the acceptable jobs of a batch in one transaction; an outcome for each item."""
    items: list[Submitted | Problem] = arguments.submitted
    key = arguments.headers.get("Idempotency-Key")
    requests = {index: item.request() for index, item in enumerate(items) if isinstance(item, Submitted)}
    submission = await services.jobs.intake.submit_batch(requests, arguments.caller.tenant, idempotency_key=key)
    return await asyncio.to_thread(_submitted, items, submission)  # thousands of outcomes are not for the event loop


def _submitted(items: Sequence[Submitted | Problem], submission: BatchSubmission) -> web.Response:
    shown = [_item_view(index, item, submission.outcomes.get(index)) for index, item in enumerate(items)]
    accepted = [outcome for outcome in submission.outcomes.values() if isinstance(outcome, Accepted)]
    if not accepted:
        for outcome in submission.outcomes.values():
            if isinstance(outcome, PluginUnavailableError) and outcome.retry_after_s is not None:
                raise outcome  # the same batch may be taken soon: no refusal for good
        raise Problem(
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            kind="batch-refused",
            detail="No job of the batch is acceptable: `items` say why.",
            items=shown,
        )
    batch_id = submission.batch_id
    view: bulk_views.BatchSubmissionView = {
        "batch_id": batch_id,
        "accepted": len(accepted),
        "refused": len(items) - len(accepted),
        "items": shown,
        "links": {} if batch_id is None else bulk_views.batch_links(batch_id),
    }
    headers: dict[str, str] = {} if batch_id is None else {hdrs.LOCATION: bulk_views.batch_url(batch_id)}
    if all(outcome.replayed for outcome in accepted):
        headers["Idempotency-Replayed"] = "true"
    return json_response(view, HTTPStatus.ACCEPTED, headers)


def _item_view(index: int, item: Submitted | Problem, outcome: Accepted | ServiceError | None) -> Any:
    match outcome:
        case Accepted():
            return {"index": index, "id": outcome.id, "replayed": outcome.replayed}
        case ServiceError() if isinstance(item, Submitted):
            problem = problem_of(item.place(outcome))
        case _:
            problem = item if isinstance(item, Problem) else None
    if problem is None:
        raise TypeError(f"item {index} of a batch has no outcome")
    return {"index": index, "problem": item_view(problem)}


async def get_batch(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """How far a batch is, once all its jobs have ended or the wait is over."""
    with for_whoever_waits(request):
        batch = await services.batches.wait_for(
            request.match_info["batch_id"], arguments.query.get("wait", 0), tenant=arguments.caller.tenant
        )
    return json_response(bulk_views.batch_view(batch))


async def get_results(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """What became of each job of a batch, a line each, read as fast as the client takes it."""
    pages = await services.batches.outcomes(request.match_info["batch_id"], tenant=arguments.caller.tenant)
    return web.Response(body=taken(request, _lines(pages), services.metrics), content_type=NDJSON_TYPE)


async def _lines(pages: AsyncIterator[Sequence[JobOutcome]]) -> AsyncIterator[bytes]:
    async for page in pages:
        yield await asyncio.to_thread(_rendered, page)


def _rendered(page: Sequence[JobOutcome]) -> bytes:
    return b"".join(map(bulk_views.outcome_line, page))
