"""Around every request: ids, the browser's fences, every error as a problem, one log line."""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import structlog
import uuid_utils
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from service.api.access import ANSWER_HEADERS
from service.api.problems import Problem, bad_request, problem_of, problem_of_http, response_of
from service.metrics import Metrics
from service.settings import Settings

REQUEST_ID: Final = "X-Request-Id"
_SANE_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_READING: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: So much of a path is said again.
_SHOWN_CHARS: Final = 200

#: Asked before a line is made: at thousands of requests a second even the unwritten ones cost.
_levels: Final = logging.getLogger(__name__)
_log: Final = structlog.get_logger(__name__)


def guard(settings: Settings, metrics: Metrics) -> Middleware:
    """The one middleware; one, because each costs every request some percent."""
    is_ours = _host_check(settings.host)
    # Finding a counter by its labels takes longer than counting; there are few.
    count = functools.cache(metrics.requests.labels)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        given = request.headers.get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else str(uuid_utils.uuid7())
        request[ANSWER_HEADERS] = {REQUEST_ID: request_id}
        match = request.match_info
        job_id = match.get("job_id", "")
        ids = {"request_id": request_id}
        if _UUID.fullmatch(job_id):
            ids["job_id"] = job_id
        structlog.contextvars.bind_contextvars(**ids)
        try:
            _refuse_foreign(request, is_ours)
            response = await handler(request)
        except ConnectionError:
            raise  # nobody is left to answer
        except web.HTTPException as error:
            path = request.rel_url.raw_path[:_SHOWN_CHARS]
            response = response_of(problem_of_http(error, request.method, path), request_id)
        except Exception as error:  # noqa: BLE001 - the one place where every error becomes an answer
            response = response_of(problem_of(error) or _fault(error), request_id)
        if not response.prepared:
            finish(request, response)
        resource = match.route.resource
        count(request.method, resource.canonical if resource else "unknown", response.status).inc()
        level = logging.DEBUG if response.status < HTTPStatus.BAD_REQUEST else logging.INFO
        if _levels.isEnabledFor(level):
            _log.log(
                level,
                "request",
                method=request.method,
                path=request.rel_url.raw_path,
                status=response.status,
                ms=round((time.perf_counter() - started) * 1000, 2),
            )
        return response

    return middleware


_PROTECTION: Final = CIMultiDict({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})


def finish(request: web.Request, response: web.StreamResponse) -> None:
    """Give `response` all it needs beside what its handler knows; for streams, before they begin."""
    given = request[ANSWER_HEADERS]
    protect(response, given)


def protect(response: web.StreamResponse, given: Mapping[str, str]) -> None:
    """Give `response` the headers that every answer carries, and those `given` beside them."""
    headers = response.headers
    headers.update(given)
    headers.update(_PROTECTION)
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")


def _fault(error: Exception) -> Problem:
    _log.error("unexpected error", exc_info=error)
    return Problem(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        kind="internal-error",
        detail="This is a fault of the service; its log tells more under the request id.",
    )


def _refuse_foreign(request: web.Request, is_ours: Callable[[str], bool]) -> None:
    hosts = request.headers.getall(hdrs.HOST, ())
    if len(hosts) != 1:
        raise bad_request("Exactly one Host header is needed.")
    if not is_ours(hosts[0]):
        raise Problem(
            status=HTTPStatus.MISDIRECTED_REQUEST,
            kind="foreign-host",
            detail=f"This service does not answer for the host {hosts[0]!r}.",
        )
    origin = request.headers.get(hdrs.ORIGIN)
    # Without CORS headers no foreign page reads an answer; what it must not do either is cause anything.
    if origin is not None and request.method not in _READING and _host_of(origin) != hosts[0].lower():
        raise Problem(
            status=HTTPStatus.FORBIDDEN,
            kind="foreign-origin",
            detail=f"Pages of {origin!r} may not send {request.method} requests here.",
        )


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_check(bound: str) -> Callable[[str], bool]:
    names = set(_LOOPBACK)
    wildcard = bound in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
    names.add(f"[{bound}]" if ":" in bound else bound.lower())
    if wildcard:
        names.add(socket.gethostname().lower())

    @functools.lru_cache(maxsize=64)
    def is_ours(host: str) -> bool:
        name = _PORT.sub("", host).lower()
        return name in names or (wildcard and _is_address(name))

    return is_ours


_PORT: Final = re.compile(r":\d{1,5}\Z", re.ASCII)


def _is_address(name: str) -> bool:
    # An address needs no name server: no foreign page can be made to answer under it.
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
