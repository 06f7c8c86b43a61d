"""Errors as HTTP shows them: problem details (RFC 9457), and the one table from exception to status."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NotRequired

import orjson
from aiohttp import web
from typing_extensions import TypedDict

from service.api.problem_types import PROBLEM_TYPES, url
from service.errors import (
    BatchNotFoundError,
    BytesGoneError,
    BytesLostError,
    DeliveryNotFoundError,
    EventNotFoundError,
    FieldProblem,
    FileNotInJobError,
    FileNotInScheduleError,
    IdempotencyConflictError,
    JobIdReusedError,
    JobNotFoundError,
    JobStateError,
    NotStorableError,
    PayloadInvalidError,
    PluginLoadError,
    PluginNotFoundError,
    PluginPausedError,
    PluginUnavailableError,
    QueueFullError,
    ReportWindowOpenError,
    ScheduleExistsError,
    ScheduleInvalidError,
    ScheduleNotFoundError,
    ServiceUnavailableError,
    TooManySchedulesError,
    TooManyStreamsError,
    WebhookNotFoundError,
    WebhookStateError,
    WebhookUrlError,
)
from service.models import JSON
from service.strict_json import MalformedJSONError

MEDIA_TYPE: Final = "application/problem+json"


class FieldProblemView(TypedDict):
    """One place of the request and what is wrong with it; `pointer` is a JSON Pointer into what was sent."""

    pointer: str
    message: str


class ErrorView(TypedDict):
    """Why a job failed."""

    type: str
    message: str
    plugin: str | None
    details: dict[str, JSON]
    timestamp: str


class ProblemView(TypedDict):
    """Problem details (RFC 9457); `type` leads to a page about it."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: NotRequired[list[FieldProblemView]]
    error: NotRequired[ErrorView]
    items: NotRequired[list[dict[str, JSON]]]


class ItemProblemView(TypedDict):
    """Why an item of a request that has many was refused; a problem without a request of its own."""

    type: str
    title: str
    status: int
    detail: str
    errors: NotRequired[list[FieldProblemView]]


@dataclasses.dataclass(eq=False, kw_only=True)
class Problem(Exception):  # noqa: N818 - RFC 9457 calls it that
    """An answer that is an error. `kind` is one of `PROBLEM_TYPES`, and ends the type URI.

    `error` is the inner error object behind it, if any. `items` tells what became of each item of a request that has
    many.
    """

    status: HTTPStatus
    kind: str
    detail: str
    errors: Sequence[FieldProblem] = ()
    error: Mapping[str, JSON] | None = None
    items: Sequence[Mapping[str, JSON]] = ()
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    close: bool = False  # the connection is of no more use: its body was not read to the end


def bad_request(detail: str, *errors: FieldProblem) -> Problem:
    """400: the request itself is malformed."""
    return Problem(status=HTTPStatus.BAD_REQUEST, kind="malformed-request", detail=detail, errors=errors)


def unacceptable(detail: str, *errors: FieldProblem) -> Problem:
    """422: well-formed, but its content cannot be accepted."""
    return Problem(status=HTTPStatus.UNPROCESSABLE_ENTITY, kind="invalid-content", detail=detail, errors=errors)


def unsupported_media_type(detail: str) -> Problem:
    """415: a body of this kind is not taken here."""
    return Problem(status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, kind="unsupported-media-type", detail=detail)


def not_acceptable(detail: str) -> Problem:
    """406: there is no answer in a form that the client takes."""
    return Problem(status=HTTPStatus.NOT_ACCEPTABLE, kind="not-acceptable", detail=detail)


def too_large(detail: str) -> Problem:
    """413: told while reading; the connection is closed."""
    return Problem(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, kind="too-large", detail=detail, close=True)


def in_body(error: PluginNotFoundError, pointer: str) -> Problem:
    """422 for a plugin that was named in the body rather than in the path."""
    return Problem(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        kind="unknown-plugin",
        detail=str(error),
        errors=[FieldProblem(pointer, str(error))],
    )


#: What each exception is over HTTP. The first class that fits wins.
STATUS_OF: Final[Sequence[tuple[type[Exception], HTTPStatus, str]]] = (
    (MalformedJSONError, HTTPStatus.BAD_REQUEST, "malformed-json"),
    (JobNotFoundError, HTTPStatus.NOT_FOUND, "unknown-job"),
    (BatchNotFoundError, HTTPStatus.NOT_FOUND, "unknown-batch"),
    (FileNotInJobError, HTTPStatus.NOT_FOUND, "unknown-file"),
    (BytesLostError, HTTPStatus.GONE, "bytes-lost"),
    (BytesGoneError, HTTPStatus.GONE, "bytes-gone"),
    (EventNotFoundError, HTTPStatus.BAD_REQUEST, "unknown-event"),
    (PluginNotFoundError, HTTPStatus.NOT_FOUND, "unknown-plugin"),
    (WebhookNotFoundError, HTTPStatus.NOT_FOUND, "unknown-webhook"),
    (DeliveryNotFoundError, HTTPStatus.NOT_FOUND, "unknown-delivery"),
    (JobStateError, HTTPStatus.CONFLICT, "wrong-state"),
    (WebhookStateError, HTTPStatus.CONFLICT, "wrong-state"),
    (FileNotInScheduleError, HTTPStatus.NOT_FOUND, "unknown-file"),
    (ScheduleNotFoundError, HTTPStatus.NOT_FOUND, "unknown-schedule"),
    (PluginPausedError, HTTPStatus.CONFLICT, "plugin-paused"),
    (ReportWindowOpenError, HTTPStatus.CONFLICT, "report-window-open"),
    (ScheduleExistsError, HTTPStatus.CONFLICT, "schedule-exists"),
    (TooManySchedulesError, HTTPStatus.CONFLICT, "too-many-schedules"),
    (ScheduleInvalidError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-content"),
    (PayloadInvalidError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-payload"),
    (NotStorableError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-content"),
    (WebhookUrlError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-content"),
    (IdempotencyConflictError, HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-key-reused"),
    (JobIdReusedError, HTTPStatus.UNPROCESSABLE_ENTITY, "job-id-reused"),
    (QueueFullError, HTTPStatus.TOO_MANY_REQUESTS, "queue-full"),
    (TooManyStreamsError, HTTPStatus.TOO_MANY_REQUESTS, "too-many-streams"),
    (PluginLoadError, HTTPStatus.SERVICE_UNAVAILABLE, "plugin-unavailable"),
    (PluginUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "plugin-unavailable"),
    (ServiceUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    (web.RequestPayloadError, HTTPStatus.BAD_REQUEST, "malformed-request"),
)

#: The kinds of aiohttp's own refusals; any other one is of a malformed request.
KIND_OF_HTTP: Final[Mapping[int, str]] = {404: "unknown-route", 405: "wrong-method", 413: "too-large"}


def problem_of(error: Exception) -> Problem | None:
    """`error` as a problem, or None when nobody foresaw it (a fault of ours)."""
    if isinstance(error, Problem):
        return error
    for kind, status, slug in STATUS_OF:
        if isinstance(error, kind):
            return Problem(
                status=status,
                kind=slug,
                detail=str(error) or slug,
                errors=_places(error),
                headers=_retry_after(error),
                close=isinstance(error, web.RequestPayloadError),
            )
    return None


def problem_of_http(error: web.HTTPException, method: str, path: str) -> Problem:
    """A refusal of aiohttp's own, to a call of `method` and `path`, as a problem."""
    status = HTTPStatus(error.status)
    match error:
        case web.HTTPNotFound():
            detail = f"There is no {method} {path} here; /docs shows what there is."
        case web.HTTPMethodNotAllowed():
            detail = f"There is no {method} {path} here, but {_listed(sorted(error.allowed_methods))}."
        case _:
            detail = status.description or status.phrase
    headers = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
    kind = KIND_OF_HTTP.get(status, "malformed-request")
    return Problem(status=status, kind=kind, detail=detail, headers=headers)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _places(error: Exception) -> Sequence[FieldProblem]:
    match error:
        case PayloadInvalidError():
            return error.problems
        case (
            NotStorableError()
            | MalformedJSONError()
            | WebhookUrlError()
            | ScheduleInvalidError()
            | ReportWindowOpenError()
        ):
            return (error.problem,)
        case _:
            return ()


def _retry_after(error: Exception) -> Mapping[str, str]:
    match error:
        case TooManyStreamsError() | ReportWindowOpenError():
            return {"Retry-After": str(error.retry_after_s)}
        case QueueFullError() | PluginUnavailableError() | ServiceUnavailableError() if error.retry_after_s is not None:
            return {"Retry-After": str(error.retry_after_s)}
        case _:
            return {}


def response_of(problem: Problem, request_id: str) -> web.Response:
    """`problem` as the answer to the request of that id."""
    body: dict[str, Any] = {**_head(problem), "request_id": request_id}
    if problem.errors:
        body["errors"] = _places_view(problem)
    if problem.error:
        body["error"] = problem.error
    if problem.items:
        body["items"] = problem.items
    response = web.Response(
        body=orjson.dumps(body), status=problem.status, content_type=MEDIA_TYPE, headers=problem.headers
    )
    if problem.close:
        response.force_close()
    return response


def item_view(problem: Problem) -> ItemProblemView:
    """`problem` as what became of an item."""
    view = _head(problem)
    if problem.errors:
        view["errors"] = _places_view(problem)
    return view


def _head(problem: Problem) -> ItemProblemView:
    return {
        "type": url(problem.kind),
        "title": PROBLEM_TYPES[problem.kind].title,
        "status": problem.status.value,
        "detail": _encodable(problem.detail),
    }


def _places_view(problem: Problem) -> list[FieldProblemView]:
    return [{"pointer": _encodable(place.pointer), "message": _encodable(place.message)} for place in problem.errors]


def _encodable(text: str) -> str:
    # Header values keep foreign bytes as lone surrogates, and a detail may quote them.
    return text if text.isascii() else text.encode(errors="replace").decode()
