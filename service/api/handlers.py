"""One function a call: parsed request → one use case of a service → answer."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import orjson
import structlog
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from service.access import Caller
from service.api import files, views
from service.api.bulk_inputs import check_chosen_id
from service.api.connections import for_whoever_waits
from service.api.ended_jobs import Answer
from service.api.inputs import job_query, preferred_wait_s
from service.api.problems import Problem
from service.api.services import Services
from service.codec import is_small
from service.errors import FieldProblem, FileNotInJobError, ServiceError
from service.file_endings import ending_of
from service.models import JSON, JobPart, JobRecord, JobRequest, JobStatus, Submission

#: When to ask again for a result that is not there yet.
RETRY_AFTER_S: Final = 1
_OPAQUE_TAG: Final = re.compile(r'"[^"]*"')

_Made = TypeVar("_Made")


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Arguments:
    """What the route table has checked: who asks, `query` and `headers` as the route types them.

    `submitted` is what the reader of the route's body made of it; None for a call without one.
    """

    caller: Caller
    query: Any
    headers: Mapping[str, Any]
    submitted: Any = None


async def submit_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Record a job; its row is committed before the answer."""
    asked = arguments.submitted.request(idempotency_key=arguments.headers.get("Idempotency-Key"))
    return await _submit(services, request, arguments, asked)


async def put_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Record a job under the id in the path; its row is committed before the answer."""
    job_id = check_chosen_id(request.match_info["job_id"])
    return await _submit(services, request, arguments, arguments.submitted.request(job_id=job_id))


async def _submit(services: Services, request: web.Request, arguments: Arguments, asked: JobRequest) -> web.Response:
    try:
        submission = await services.jobs.submit(asked, tenant=arguments.caller.tenant)
    except ServiceError as error:
        raise arguments.submitted.place(error) from None
    return await accepted(services, request, arguments, submission)


async def accepted(
    services: Services, request: web.Request, arguments: Arguments, submission: Submission
) -> web.Response:
    """A job that was taken: 202, or 200 if it ended within the wait that was asked for."""
    job = submission.record
    structlog.contextvars.bind_contextvars(job_id=job.id)
    headers: dict[str, str] = {hdrs.LOCATION: views.job_url(job.id)}
    if submission.replayed:
        headers["Idempotency-Replayed"] = "true"
    wait_s = preferred_wait_s(arguments.headers.get("Prefer"))
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        with for_whoever_waits(request):
            job = await services.jobs.wait_for(job.id, wait_s, tenant=arguments.caller.tenant, seen=job)
    ended = wait_s is not None and job.status.is_terminal
    return await job_response(job, HTTPStatus.OK if ended else HTTPStatus.ACCEPTED, headers)


async def list_jobs(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A page of jobs, newest first."""
    page = await services.jobs.list_jobs(job_query(arguments.query), tenant=arguments.caller.tenant)
    view: views.JobListView = {"items": [views.job_summary(job) for job in page.items], "next": page.next}
    return json_response(view, headers=next_link(request, page.next))


def next_link(request: web.Request, cursor: str | None) -> dict[str, str]:
    """The header that leads to the page of `cursor`; none where there is none."""
    if cursor is None:
        return {}
    return {hdrs.LINK: f'<{request.rel_url.raw_path}?{urlencode({**request.query, "cursor": cursor})}>; rel="next"'}


async def get_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The record, once the job has ended, is not any more as the client knows it, or the wait is over."""
    job_id, tenant = request.match_info["job_id"], arguments.caller.tenant
    known = arguments.headers.get("If-None-Match", "")
    answer = services.ended_jobs.find(job_id)
    if answer is not None:
        if await services.jobs.is_at(job_id, answer.version, tenant=tenant):
            if _is_known(known, answer.etag):
                return _not_modified(answer.etag)
            return _body(answer.body, headers={hdrs.ETAG: answer.etag})
        services.ended_jobs.forget(job_id)
    with for_whoever_waits(request):
        job = await services.jobs.wait_for(
            job_id, arguments.query.get("wait", 0), tenant=tenant, known=views.version_in(known)
        )
    place = await services.following.queue_place(job)
    etag = views.job_etag(job, place)
    if _is_known(known, etag):
        return _not_modified(etag)
    body = await _beside(lambda: orjson.dumps(views.job_view(job, place)), job.payload, job.result)
    if job.status.is_terminal:
        services.ended_jobs.keep(job.id, Answer(job.version, etag, body))
    return _body(body, headers={hdrs.ETAG: etag})


def _is_known(known: str, etag: str) -> bool:
    """Whether a client that has what `If-None-Match` says needs no other answer; weak tags count like strong ones."""
    return known.strip() == "*" or etag.removeprefix("W/") in _OPAQUE_TAG.findall(known)


def _not_modified(etag: str) -> web.Response:
    return web.Response(status=HTTPStatus.NOT_MODIFIED, headers={hdrs.ETAG: etag})


async def get_result(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The result alone: JSON, or the bytes where it is a file."""
    job = await services.jobs.get_record(request.match_info["job_id"], tenant=arguments.caller.tenant)
    match job.status:
        case JobStatus.PENDING | JobStatus.RUNNING:
            return json_response(views.job_summary(job), HTTPStatus.ACCEPTED, {hdrs.RETRY_AFTER: str(RETRY_AFTER_S)})
        case JobStatus.FAILED:
            error = job.error or {}
            raise Problem(
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                kind="job-failed",
                detail=f"Job {job.id} failed: {error.get('message')}",
                error=views.error_view(error),
            )
        case JobStatus.CANCELLED:
            raise Problem(
                status=HTTPStatus.CONFLICT, kind="job-cancelled", detail=f"Job {job.id} was cancelled: no result."
            )
        case JobStatus.SUCCESS:
            pass
    result = job.result or {}
    pointer = arguments.query.get("pointer")
    if pointer is not None:
        return await _bytes_at(services, job, JobPart.RESULT, result, pointer)
    blob = await _beside(lambda: files.only_blob(result), result)
    if blob and not files.prefers_json(files.accepted(request.headers), blob.media_type):
        data = await services.jobs.read_bytes(job, JobPart.RESULT, blob)
        return files.response(data, blob.media_type, f"{job.plugin}-{job.id}{ending_of(blob.media_type)}")
    return await _document(result, views.job_url(job.id) + "/result")


async def get_payload(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The input alone, or one bytes value of it."""
    job = await services.jobs.get_record(request.match_info["job_id"], tenant=arguments.caller.tenant)
    payload = job.payload or {}
    pointer = arguments.query.get("pointer")
    if pointer is not None:
        return await _bytes_at(services, job, JobPart.PAYLOAD, payload, pointer)
    return await _document(payload, views.job_url(job.id) + "/payload")


async def _bytes_at(
    services: Services, job: JobRecord, part: JobPart, document: Mapping[str, JSON], pointer: str
) -> web.Response:
    blob = files.blob_at(document, pointer)
    if blob is None:
        raise FileNotInJobError(job.id, pointer)
    data = await services.jobs.read_bytes(job, part, blob)
    return files.response(data, blob.media_type, files.name_at(pointer, blob.media_type))


async def get_artifact(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A file that the plugin made beside its result."""
    match = request.match_info
    artifact, data = await services.jobs.read_artifact(
        match["job_id"], match["artifact"], tenant=arguments.caller.tenant
    )
    return files.response(data, artifact.blob.media_type, artifact.name)


async def list_attempts(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Every execution of the job."""
    attempts = await services.jobs.list_attempts(request.match_info["job_id"], tenant=arguments.caller.tenant)
    view: views.AttemptListView = {"items": [views.attempt_view(attempt) for attempt in attempts]}
    return json_response(view)


async def cancel_job(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """200 when the job is cancelled, 202 while it is stopping."""
    job = await services.jobs.cancel_job(request.match_info["job_id"], tenant=arguments.caller.tenant)
    return await job_response(job, HTTPStatus.OK if job.status.is_terminal else HTTPStatus.ACCEPTED)


async def list_plugins(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Every installed plugin."""
    plugins = await services.plugins.list_plugins()
    view: views.PluginListView = {"items": [views.plugin_summary(plugin) for plugin in plugins]}
    return json_response(view)


async def get_plugin(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """One plugin with its schemas."""
    return json_response(views.plugin_view(await services.plugins.get_plugin(request.match_info["name"])))


async def livez(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The process answers."""
    return json_response({"status": "ok"})


async def readyz(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The process can take and run jobs."""
    reasons = await services.health.readiness()
    if reasons:
        raise Problem(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            kind="not-ready",
            detail="; ".join(reasons),
            errors=[FieldProblem("", reason) for reason in reasons],
            headers={hdrs.RETRY_AFTER: str(RETRY_AFTER_S)},
        )
    warnings = list(services.health.warnings)
    return json_response({"status": "ready", "warnings": warnings} if warnings else {"status": "ready"})


async def get_metrics(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The process in Prometheus' text format."""
    return web.Response(body=await services.metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


async def job_response(
    job: JobRecord, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A job as JSON; made beside the event loop where it is large."""
    body = await _beside(lambda: orjson.dumps(views.job_view(job)), job.payload, job.result)
    return _body(body, status, headers)


async def _document(document: Mapping[str, JSON], url: str) -> web.Response:
    body = await _beside(lambda: orjson.dumps(views.referenced(document, url)), document)
    return _body(body)


async def _beside(work: Callable[[], _Made], *documents: Mapping[str, JSON] | None) -> _Made:
    """What `work` makes of `documents`; beside the event loop where they are large."""
    if all(map(is_small, documents)):
        return work()
    return await asyncio.to_thread(work)


def json_response(
    view: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A view as JSON."""
    return _body(orjson.dumps(view), status, headers)


def _body(body: bytes, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
