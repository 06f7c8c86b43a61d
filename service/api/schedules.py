"""The calls on schedules: a function each, and their rows of the route table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web

from service.api import files, handlers, inputs, views
from service.api.access import READ, SUBMIT
from service.api.handlers import Arguments
from service.api.problems import in_body
from service.api.route import ANY, FILE, JSON_TYPE, Answer, Route, json_body
from service.api.schedule_inputs import ScheduleInput, definition
from service.api.schedule_views import (
    ScheduleListView,
    ScheduleView,
    schedule_summary,
    schedule_url,
    schedule_view,
)
from service.api.services import Services
from service.errors import (
    FieldProblem,
    FileNotInScheduleError,
    NotStorableError,
    PayloadInvalidError,
    PluginNotFoundError,
)
from service.schedule_models import ScheduleRecord

_BELOW: Final = "/payload"


async def create_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Record a schedule; its row is committed before the answer."""
    with _placed_in_body():
        schedule = await services.schedules.create(definition(arguments.submitted), tenant=arguments.caller.tenant)
    return _schedule(schedule, HTTPStatus.CREATED, {hdrs.LOCATION: schedule_url(schedule.id)})


async def list_schedules(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Every schedule of the tenant, by name."""
    found = await services.schedules.list_all(tenant=arguments.caller.tenant)
    view: ScheduleListView = {"items": [schedule_summary(schedule) for schedule in found]}
    return handlers.json_response(view)


async def get_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """One schedule."""
    return _schedule(await services.schedules.get(_id(request), tenant=arguments.caller.tenant))


async def get_schedule_payload(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """The input of its jobs alone, or one bytes value of it."""
    schedule = await services.schedules.get(_id(request), tenant=arguments.caller.tenant)
    payload, pointer = schedule.payload or {}, arguments.query.get("pointer")
    if pointer is None:
        return handlers.json_response(views.referenced(payload, schedule_url(schedule.id) + _BELOW))
    blob = files.blob_at(payload, pointer)
    if blob is None:
        raise FileNotInScheduleError(schedule.id, pointer)
    data = await services.schedules.read_bytes(blob)
    return files.response(data, blob.media_type, files.name_at(pointer, blob.media_type))


async def replace_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Make a schedule be what the body says."""
    with _placed_in_body():
        schedule = await services.schedules.replace(
            _id(request), definition(arguments.submitted), tenant=arguments.caller.tenant
        )
    return _schedule(schedule)


async def delete_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Forget a schedule."""
    await services.schedules.delete(_id(request), tenant=arguments.caller.tenant)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def pause_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Let it tick no more."""
    return _schedule(await services.schedules.pause(_id(request), tenant=arguments.caller.tenant))


async def resume_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Let it tick again."""
    return _schedule(await services.schedules.resume(_id(request), tenant=arguments.caller.tenant))


async def run_schedule(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Make one job now; its row is committed before the answer."""
    inputs.refuse_key(request.headers, "each run of a schedule makes a job")
    tenant = arguments.caller.tenant
    job_id = await services.schedules.run_now(_id(request), tenant=tenant)
    structlog.contextvars.bind_contextvars(job_id=job_id)
    job = await services.jobs.get_record(job_id, tenant=tenant)
    return await handlers.job_response(job, HTTPStatus.ACCEPTED, {hdrs.LOCATION: views.job_url(job_id)})


def _id(request: web.Request) -> str:
    return request.match_info["schedule_id"]


def _schedule(
    schedule: ScheduleRecord, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    return handlers.json_response(schedule_view(schedule), status, headers)


@contextlib.contextmanager
def _placed_in_body() -> Iterator[None]:
    """Faults of plugin and payload by their places in the body."""
    try:
        yield
    except PluginNotFoundError as error:
        raise in_body(error, "/plugin") from None
    except PayloadInvalidError as error:
        places = [FieldProblem(_BELOW + place.pointer, place.message) for place in error.problems]
        raise PayloadInvalidError(error.plugin, places) from None
    except NotStorableError as error:
        raise NotStorableError(_BELOW + error.problem.pointer, error.problem.message) from None


_EXAMPLE: Final = {
    "name": "nightly",
    "plugin": "echo",
    "payload": {"text": "hello"},
    "cron": "30 2 * * MON-FRI",
    "timezone": "Europe/Berlin",
}
_BODY: Final = {JSON_TYPE: json_body(ScheduleInput, nightly=_EXAMPLE)}
_PATH: Final = "/v1/schedules/{schedule_id}"
_TO_SCHEDULE: Final = {_PATH: "$response.body#/id", "/v1/plugins/{name}": "$response.body#/plugin"}
_TO_JOB: Final = {"/v1/jobs/{job_id}": "$response.body#/id"}


def _answer(description: str, headers: Sequence[str] = ()) -> Answer:
    return Answer(description=description, content={JSON_TYPE: ScheduleView}, headers=headers, leads_to=_TO_SCHEDULE)


ROUTES: Final[Sequence[Route]] = (
    Route(
        method="POST",
        path="/v1/schedules",
        name="create_schedule",
        summary="Create a schedule",
        handler=create_schedule,
        policy=SUBMIT,
        bodies=_BODY,
        answers={201: _answer("It ticks from now on", ("Location",))},
        problems=(409,),
    ),
    Route(
        method="GET",
        path="/v1/schedules",
        name="list_schedules",
        summary="List the schedules by name",
        handler=list_schedules,
        policy=READ,
        answers={
            200: Answer(
                description="All of them, at most 1000",
                content={JSON_TYPE: ScheduleListView},
                leads_to={_PATH: "$response.body#/items/0/id"},
            )
        },
    ),
    Route(
        method="GET",
        path=_PATH,
        name="get_schedule",
        summary="Get a schedule",
        handler=get_schedule,
        policy=READ,
        answers={200: _answer("The schedule")},
    ),
    Route(
        method="PUT",
        path=_PATH,
        name="replace_schedule",
        summary="Make a schedule be what the body says, from now on; a paused one stays paused",
        handler=replace_schedule,
        policy=SUBMIT,
        bodies=_BODY,
        answers={200: _answer("The schedule as it is now")},
        problems=(409,),
    ),
    Route(
        method="DELETE",
        path=_PATH,
        name="delete_schedule",
        summary="Delete a schedule; the jobs that it made stay",
        handler=delete_schedule,
        policy=SUBMIT,
        answers={204: Answer(description="It is gone")},
    ),
    Route(
        method="GET",
        path=_PATH + "/payload",
        name="get_schedule_payload",
        summary="Get the input of its jobs alone, or one bytes value of it",
        handler=get_schedule_payload,
        policy=READ,
        query=inputs.PointerQuery,
        answers={
            200: Answer(
                description="The input",
                content={
                    JSON_TYPE: {"type": "object", "additionalProperties": True},
                    ANY: {"type": "string", "format": "binary"},
                },
                headers=FILE,
            )
        },
        problems=(410,),
    ),
    Route(
        method="POST",
        path=_PATH + "/pause",
        name="pause_schedule",
        summary="Let a schedule tick no more",
        handler=pause_schedule,
        policy=SUBMIT,
        answers={200: _answer("It is paused")},
    ),
    Route(
        method="POST",
        path=_PATH + "/resume",
        name="resume_schedule",
        summary="Let a schedule tick again; what passed meanwhile is not made up",
        handler=resume_schedule,
        policy=SUBMIT,
        answers={200: _answer("It ticks")},
    ),
    Route(
        method="POST",
        path=_PATH + "/run",
        name="run_schedule",
        summary="Make one job of a schedule now, beside its ticks",
        description="Each run makes a job: an `Idempotency-Key` is refused.",
        handler=run_schedule,
        policy=SUBMIT,
        answers={
            202: Answer(
                description="Recorded; follow `Location`",
                content={JSON_TYPE: views.JobView},
                headers=("Location",),
                leads_to=_TO_JOB,
            )
        },
        problems=(409,),
    ),
)
