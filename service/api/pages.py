"""Calls for people: the description of the API, its interactive documentation, and the pages of the problem types."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from service.api import problem_pages, resources
from service.api.handlers import Arguments
from service.api.problem_types import PROBLEM_TYPES
from service.api.resources import Resource
from service.api.services import Services

_HTML: Final = "text/html"
#: The documentation loads its own files, asks this service, and nothing else; its pictures stand in its style sheet.
_DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CSP: Final = "Content-Security-Policy"
_INDEX: Final = Resource.of(problem_pages.index().encode(), _HTML)
_PAGES: Final = {
    kind: Resource.of(problem_pages.page(problem).encode(), _HTML) for kind, problem in PROBLEM_TYPES.items()
}


async def openapi(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The document of this API; the plugins are told to those alone who may list them."""
    description = services.description
    may_list = await services.gate.is_still_admitted(request)
    resource = await (description.of_routes_and_plugins() if may_list else description.of_routes())
    return resources.response(request, resource, {hdrs.VARY: hdrs.AUTHORIZATION})


async def root(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The way to the interactive documentation, for whoever opens the bare address."""
    return web.Response(status=HTTPStatus.FOUND, headers={hdrs.LOCATION: "/docs"})


async def docs(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The page of the interactive documentation."""
    return resources.response(request, services.files["docs.html"], {_CSP: _DOCS_POLICY})


async def docs_file(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """A file that the pages load."""
    resource = services.files.get(request.match_info["file"])
    if resource is None:
        raise web.HTTPNotFound
    return resources.response(request, resource)


async def list_problems(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The page that leads to those of every kind of problem."""
    return resources.response(request, _INDEX, {_CSP: problem_pages.POLICY})


async def get_problem(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The page of one kind of problem."""
    resource = _PAGES.get(request.match_info["kind"])
    if resource is None:
        raise web.HTTPNotFound
    return resources.response(request, resource, {_CSP: problem_pages.POLICY})
