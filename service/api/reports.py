"""Calls about reports: which there are, and the rows of one as JSON, CSV, NDJSON or Parquet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from service.api import report_views as views
from service.api.access import ADMIN, OPERATOR_REPORT, REPORT, Policy
from service.api.connections import taken
from service.api.files import accepted, content_disposition, preferred
from service.api.handlers import Arguments, json_response, next_link
from service.api.problems import not_acceptable
from service.api.report_formats import CSV_TYPE, FORMATS, PARQUET_TYPE, Encoder, Format, row_object
from service.api.report_inputs import DEFAULT_ROWS, MAX_ROWS, cursor, input_of, report_query
from service.api.route import FILE, JSON_TYPE, NDJSON_TYPE, Answer, Handler, Route
from service.api.services import Services
from service.report_models import REPORTS, Report, ReportPage
from service.reports import Reading

#: Of reports that are not for everybody with the role `report`: the process' own, and addresses that may hold secrets.
POLICIES: Final[Mapping[str, Policy]] = {"workers": OPERATOR_REPORT, "storage": OPERATOR_REPORT, "webhooks": ADMIN}
#: As of when the reports are, and where the window of this one ends.
AS_OF: Final = "Report-As-Of"
UNTIL: Final = "Report-Until"
_MEDIA_TYPES: Final = {form.media_type: form for form in FORMATS.values()}
_LINES: Final = {"type": "string", "description": "A row a line"}


def policy_of(report: Report) -> Policy:
    """Who may read a report."""
    return POLICIES.get(report.name, REPORT)


async def list_reports(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The reports that the caller may read."""
    view: views.ReportListView = {
        "items": [
            views.report_view(report) for report in REPORTS.values() if policy_of(report).admits(arguments.caller)
        ]
    }
    return json_response(view)


def _reading(report: Report) -> Handler:
    async def get_report(services: Services, request: web.Request, arguments: Arguments) -> web.StreamResponse:
        """The rows of the caller's tenant; of all that is asked for, or a page of JSON."""
        form = _form(arguments.query.get("format"), accepted(request.headers))
        query = report_query(report, arguments.caller.tenant, arguments.query)
        encoder = await _encoder(form, query.columns) if form.encoder else None
        reading = await services.reports.begin(query)
        if encoder is None:
            return await _page(services, request, reading)
        return await _file(services, request, reading, form, encoder)

    return get_report


def _form(named: str | None, accept: str) -> Format:
    if named is not None:
        return FORMATS[named]
    media_type = preferred(accept, list(_MEDIA_TYPES))
    if media_type is None:
        *others, last = _MEDIA_TYPES
        raise not_acceptable(f"Reports come as {', '.join(others)} or {last}.")
    return _MEDIA_TYPES[media_type]


async def _encoder(form: Format, columns: Sequence[Any]) -> Encoder:
    assert form.encoder is not None  # noqa: S101 - for the type checker
    try:
        return await asyncio.to_thread(form.encoder, columns)
    except ImportError:
        raise not_acceptable(
            "Parquet needs an extra that is not installed here: pip install 'jobservice[parquet]'"
        ) from None


async def _page(services: Services, request: web.Request, reading: Reading) -> web.Response:
    query = reading.query
    page = await services.reports.read(reading, min(query.limit or DEFAULT_ROWS, MAX_ROWS))
    behind = None if page.next is None else cursor(query, page.next)
    headers = _headers(reading) | next_link(request, behind)

    def rendered() -> bytes:
        view = {
            "items": [row_object(query.columns, row) for row in page.rows],
            "next": behind,
            "as_of": reading.as_of,
            "schema_version": reading.version,
        }
        if query.report.times:
            view["until"] = query.until
        return orjson.dumps(view)

    body = await asyncio.to_thread(rendered)
    return web.Response(body=body, headers=headers, content_type=JSON_TYPE)


async def _file(
    services: Services, request: web.Request, reading: Reading, form: Format, encoder: Encoder
) -> web.Response:
    pages = services.reports.pages(reading)
    first = await anext(pages)  # what is wrong with it is told before anything is sent
    body = taken(request, _encoded(first, pages, encoder), services.metrics)
    response = web.Response(body=body, headers=_headers(reading))
    response.headers[hdrs.CONTENT_TYPE] = (
        f"{CSV_TYPE}; charset=utf-8" if form.media_type == CSV_TYPE else form.media_type
    )
    response.headers[hdrs.CONTENT_DISPOSITION] = content_disposition(f"{reading.query.report.name}.{form.name}")
    return response


async def _encoded(first: ReportPage, pages: AsyncIterator[ReportPage], encoder: Encoder) -> AsyncIterator[bytes]:
    """The file as it is made."""
    page: ReportPage | None = first
    while page is not None:
        yield await asyncio.to_thread(encoder.page, page.rows)
        page = await anext(pages, None)
    yield await asyncio.to_thread(encoder.end)


def _headers(reading: Reading) -> dict[str, str]:
    told = {AS_OF: reading.as_of, UNTIL: reading.query.until}
    return {name: value for name, value in told.items() if value is not None}


def _route(report: Report) -> Route:
    return Route(
        method="GET",
        path=views.report_url(report.name),
        name=f"report_{report.name}",
        summary=f"{report.about}: the view `{report.view}`",
        description="JSON comes in pages, everything else as one file that is made while it is read."
        + (" A window of time is complete." if report.is_of_jobs else ""),
        handler=_reading(report),
        policy=policy_of(report),
        query=input_of(report),
        answers={
            200: Answer(
                description="Rows in the order of their key",
                content={
                    JSON_TYPE: views.page_schema(report),
                    CSV_TYPE: {"type": "string", "description": "With a header row"},
                    NDJSON_TYPE: _LINES,
                    PARQUET_TYPE: {"type": "string", "format": "binary"},
                },
                headers=("Link", AS_OF, UNTIL, *FILE),
            )
        },
        problems=(406, 409) if report.is_of_jobs else (406,),
    )


ROUTES: Final[Sequence[Route]] = (
    Route(
        method="GET",
        path="/v1/reports",
        name="list_reports",
        summary="List the reports that you may read, with their columns",
        handler=list_reports,
        policy=REPORT,
        answers={200: Answer(description="Every report", content={JSON_TYPE: views.ReportListView})},
    ),
    *map(_route, REPORTS.values()),
)
