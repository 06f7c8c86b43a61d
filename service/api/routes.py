"""The route table: every call of the API once; routing, checks and the OpenAPI document are all made from it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

import structlog
from aiohttp import hdrs, web
from pydantic import TypeAdapter

from service.api import bodies, handlers, inputs, submissions, views
from service.api.access import ANY_KEY, OPERATOR_REPORT, PUBLIC, READ, SUBMIT, Policy
from service.api.handlers import Arguments
from service.api.inputs import Submitted
from service.api.problems import unsupported_media_type
from service.api.services import Services

Handler = Callable[[Services, web.Request, Arguments], Awaitable[web.Response]]
#: Stands for every media type that has no entry of its own.
ANY: Final = "*/*"
JSON_TYPE: Final = "application/json"

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A kind of request body: how it is read, and its schema (a type, or JSON Schema as it stands)."""

    read: Callable[[Services, web.Request], Awaitable[Submitted]]
    schema: type | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A success: what it means, and its content by media type (a type, or JSON Schema as it stands)."""

    description: str
    content: Mapping[str, type | Mapping[str, Any]]
    headers: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call. `policy` says whose it is; there is no default.

    `query` None means that the bodies read the query themselves; `problems` are its error statuses.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    handler: Handler
    policy: Policy
    answers: Mapping[int, Answer]
    problems: Sequence[int] = ()
    query: type | None = inputs.NoQuery
    headers: type | None = None
    bodies: Mapping[str, Body] = dataclasses.field(default_factory=dict)

    def endpoint(self, services: Services) -> Callable[[web.Request], Awaitable[web.Response]]:
        """The aiohttp handler of this route."""
        query_adapter = TypeAdapter[Any](self.query) if self.query else None
        header_adapter = TypeAdapter[Any](self.headers) if self.headers else None
        header_names = tuple(self.headers.__annotations__) if self.headers else ()

        async def endpoint(request: web.Request) -> web.Response:
            job_id = request.match_info.get("job_id")
            if job_id and _UUID.fullmatch(job_id):
                structlog.contextvars.bind_contextvars(job_id=job_id)
            caller = await services.gate.admit(request, self.policy)
            query = inputs.check_query(query_adapter, request.query) if query_adapter and request.query_string else {}
            headers = inputs.check_headers(header_adapter, header_names, request.headers) if header_adapter else {}
            submitted = await self._body_of(request).read(services, request) if self.bodies else None
            arguments = Arguments(caller=caller, query=query, headers=headers, submitted=submitted)
            return await self.handler(services, request, arguments)

        return endpoint

    def _body_of(self, request: web.Request) -> Body:
        media_type, charset = _content_type(request.headers.get(hdrs.CONTENT_TYPE, ""))
        body = self.bodies.get(media_type) or self.bodies.get(ANY)
        if body is None:
            raise unsupported_media_type(
                f"{media_type or 'A body without Content-Type'} is not taken here: send {' or '.join(self.bodies)}."
            )
        if media_type == JSON_TYPE and charset not in ("utf-8", "utf8", "us-ascii"):
            raise unsupported_media_type("JSON is taken in UTF-8 only.")
        return body


@functools.lru_cache(maxsize=64)
def _content_type(header: str) -> tuple[str, str]:
    return bodies.media_type(header), bodies.parameters(header).get("charset", "utf-8").lower()


_RAW_BYTES: Final = {"type": "string", "format": "binary"}
_OBJECT: Final = {"type": "object", "additionalProperties": True}
_FORM: Final = {
    "type": "object",
    "required": ["plugin"],
    "properties": {
        "plugin": {"type": "string", "minLength": 1, "maxLength": 200},
        "job": {"$ref": "#/components/schemas/OptionsInput"},
        "payload": _OBJECT,
    },
    "additionalProperties": True,
    "description": "Every part that is not reserved is a field of the payload; files are its bytes.",
}
_JOB: Final = {JSON_TYPE: views.JobView}
_ACCEPTED: Final = Answer(
    description="Recorded; follow `Location`",
    content=_JOB,
    headers=("Location", "Idempotency-Replayed", "Preference-Applied"),
)
_ENDED_IN_TIME: Final = Answer(
    description="It ended within `Prefer: wait=N`",
    content=_JOB,
    headers=("Location", "Idempotency-Replayed", "Preference-Applied"),
)
_DOCUMENT: Final[Mapping[str, type | Mapping[str, Any]]] = {JSON_TYPE: _OBJECT, ANY: _RAW_BYTES}
_SUBMIT_PROBLEMS: Final = (408, 413, 415, 422, 503)

ROUTES: Final[Sequence[Route]] = (
    Route(
        method="POST",
        path="/v1/jobs",
        name="submit_job",
        summary="Submit a job",
        handler=handlers.submit_job,
        policy=SUBMIT,
        headers=inputs.SubmitHeaders,
        bodies={
            JSON_TYPE: Body(read=submissions.from_json, schema=inputs.JobInput),
            "multipart/form-data": Body(read=submissions.from_form, schema=_FORM),
        },
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=_SUBMIT_PROBLEMS,
    ),
    Route(
        method="GET",
        path="/v1/jobs",
        name="list_jobs",
        summary="List jobs, newest first",
        handler=handlers.list_jobs,
        policy=READ,
        query=inputs.ListQuery,
        answers={200: Answer(description="A page", content={JSON_TYPE: views.JobListView}, headers=("Link",))},
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}",
        name="get_job",
        summary="Get a job, at once or when it has ended",
        handler=handlers.get_job,
        policy=READ,
        query=inputs.WaitQuery,
        answers={200: Answer(description="The job, whatever its status", content=_JOB)},
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/result",
        name="get_result",
        summary="Get the result alone; a result with exactly one bytes value is sent raw unless JSON is preferred",
        handler=handlers.get_result,
        policy=READ,
        query=inputs.PointerQuery,
        answers={
            200: Answer(description="The result", content=_DOCUMENT),
            202: Answer(
                description="Not ended yet", content={JSON_TYPE: views.JobSummaryView}, headers=("Retry-After",)
            ),
        },
        problems=(404, 409, 422),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/payload",
        name="get_payload",
        summary="Get the input alone, or one bytes value of it",
        handler=handlers.get_payload,
        policy=READ,
        query=inputs.PointerQuery,
        answers={200: Answer(description="The input", content=_DOCUMENT)},
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/artifacts/{name}",
        name="get_artifact",
        summary="Get a file that the plugin made beside its result",
        handler=handlers.get_artifact,
        policy=READ,
        answers={200: Answer(description="The file", content={ANY: _RAW_BYTES})},
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/attempts",
        name="list_attempts",
        summary="List the executions of a job",
        handler=handlers.list_attempts,
        policy=READ,
        answers={200: Answer(description="Oldest first", content={JSON_TYPE: views.AttemptListView})},
        problems=(404,),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job_id}/cancel",
        name="cancel_job",
        summary="Cancel a job",
        handler=handlers.cancel_job,
        policy=SUBMIT,
        answers={
            200: Answer(description="It is cancelled", content=_JOB),
            202: Answer(description="It is stopping", content=_JOB),
        },
        problems=(404, 409, 503),
    ),
    Route(
        method="GET",
        path="/v1/plugins",
        name="list_plugins",
        summary="List the plugins",
        handler=handlers.list_plugins,
        policy=ANY_KEY,
        answers={200: Answer(description="Every installed plugin", content={JSON_TYPE: views.PluginListView})},
    ),
    Route(
        method="GET",
        path="/v1/plugins/{name}",
        name="get_plugin",
        summary="Get a plugin with its schemas",
        handler=handlers.get_plugin,
        policy=ANY_KEY,
        answers={200: Answer(description="The plugin", content={JSON_TYPE: views.PluginView})},
        problems=(404,),
    ),
    Route(
        method="POST",
        path="/v1/plugins/{name}/jobs",
        name="submit_plugin_job",
        summary="Submit a job whose body is the payload",
        handler=handlers.submit_job,
        policy=SUBMIT,
        query=None,
        headers=inputs.SubmitHeaders,
        bodies={
            JSON_TYPE: Body(read=submissions.payload_from_json, schema=_OBJECT),
            ANY: Body(read=submissions.payload_from_bytes, schema=_RAW_BYTES),
        },
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=(404, *_SUBMIT_PROBLEMS),
    ),
    Route(
        method="GET",
        path="/livez",
        name="livez",
        summary="Whether the process answers",
        handler=handlers.livez,
        policy=PUBLIC,
        answers={200: Answer(description="It does", content={JSON_TYPE: views.StateView})},
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="Whether the process can take and run jobs",
        handler=handlers.readyz,
        policy=PUBLIC,
        answers={200: Answer(description="It can", content={JSON_TYPE: views.StateView})},
        problems=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Metrics of the process",
        handler=handlers.get_metrics,
        policy=OPERATOR_REPORT,
        answers={200: Answer(description="Prometheus' text format", content={"text/plain": {"type": "string"}})},
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="This document",
        handler=handlers.openapi,
        policy=PUBLIC,
        answers={200: Answer(description="OpenAPI 3.1", content={JSON_TYPE: _OBJECT})},
    ),
)
