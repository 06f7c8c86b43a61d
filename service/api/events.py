"""Following jobs over HTTP: what a follower may ask for, and the two streams of events."""

from __future__ import annotations

import re
from typing import Annotated, Final, NotRequired

from aiohttp import web
from pydantic import AfterValidator, Field, TypeAdapter, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from service.api.handlers import Arguments
from service.api.inputs import TEXT, PluginName
from service.api.problems import bad_request
from service.api.services import Services
from service.api.streams import stream
from service.api.text_forms import TextForm
from service.errors import FieldProblem
from service.models import JSON, EventFilter, EventType, Place

_TYPE: Final = f"({'|'.join(EventType)})"
#: Of the events of one job, and of all: neither is longer than the database's numbers.
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_PLACE: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


def _types(text: str) -> str:
    if not frozenset(text.split(",")) <= frozenset(EventType):
        raise PydanticCustomError(
            "event_types", f"must be one of {', '.join(EventType)}; several have commas between them"
        )
    return text


EventName = Annotated[str, Field(json_schema_extra={"enum": [*EventType]})]
EventId = Annotated[
    str,
    Field(
        description="Resume behind the event of this id. The beginning is 0 of one job, 0-0 of all",
    ),
    TextForm("[0-9]{1,18}(-[0-9]{1,18})?", "must be the id of an event, such as 7 of one job or 120-7 of all"),
]


@with_config(TEXT)
class JobEventsQuery(TypedDict):
    """From where on; the header wins."""

    last_event_id: NotRequired[EventId]


@with_config(TEXT)
class EventsQuery(TypedDict):
    """Which events, and from where on; the header wins."""

    plugin: NotRequired[PluginName]
    type: NotRequired[
        Annotated[
            str,
            Field(
                max_length=500,
                description="Only events of these types",
                json_schema_extra={"pattern": f"^{_TYPE}(,{_TYPE})*$"},
            ),
            AfterValidator(_types),
        ]
    ]
    last_event_id: NotRequired[EventId]


class EventView(TypedDict):
    """Something that happened to a job: its `n`-th event, counted from 1."""

    job_id: str
    plugin: str
    n: int
    type: EventName
    at: str
    data: dict[str, JSON]


class MessageView(TypedDict):
    """A server-sent event; `data` is an `EventView` as JSON."""

    id: str
    event: EventName
    data: Annotated[
        str,
        Field(
            json_schema_extra={
                "contentMediaType": "application/json",
                "contentSchema": TypeAdapter(EventView).json_schema(mode="serialization"),
            }
        ),
    ]


ResumeHeaders = TypedDict("ResumeHeaders", {"Last-Event-ID": NotRequired[EventId]})


async def job_events(services: Services, request: web.Request, arguments: Arguments) -> web.StreamResponse:
    """The events of one job, to its end."""
    found = _resumed_behind(arguments, _NUMBER)
    after = int(found[0]) if found else 0
    with (
        services.streams.room_for(arguments.caller),
        services.following.job(request.match_info["job_id"], arguments.caller.tenant, after) as follower,
    ):
        return await stream(services, request, follower)


async def all_events(services: Services, request: web.Request, arguments: Arguments) -> web.StreamResponse:
    """The events of all of the tenant's jobs."""
    types: str | None = arguments.query.get("type")
    wanted = EventFilter(
        tenant=arguments.caller.tenant,
        plugin=arguments.query.get("plugin"),
        types=None if types is None else frozenset(map(EventType, types.split(","))),
    )
    found = _resumed_behind(arguments, _PLACE)
    after = Place(int(found[1]), int(found[2])) if found else None
    with services.streams.room_for(arguments.caller):
        async with services.following.all_jobs(wanted, after) as follower:
            return await stream(services, request, follower)


def _resumed_behind(arguments: Arguments, form: re.Pattern[str]) -> re.Match[str] | None:
    for name, given in (("Last-Event-ID", arguments.headers), ("last_event_id", arguments.query)):
        if (event_id := given.get(name)) is not None:
            if found := form.fullmatch(event_id):
                return found
            raise bad_request(
                "The id is not one of this stream's.", FieldProblem(f"/{name}", "is not an id that this stream sends")
            )
    return None
