"""Following jobs over HTTP: what a follower may ask for, and the two streams of events."""

from __future__ import annotations

from typing import Annotated, Final, NotRequired

from aiohttp import web
from pydantic import Field, with_config
from typing_extensions import TypedDict

from service.api.handlers import Arguments
from service.api.inputs import TEXT, PluginName
from service.api.services import Services
from service.api.streams import stream
from service.models import EventFilter, EventType, Place

_TYPE: Final = f"({'|'.join(EventType)})"
_BEHIND: Final = "Resume behind the event of this id; from the beginning with 0, and without it"

JobEventId = Annotated[str, Field(pattern="^[0-9]{1,9}$", description=_BEHIND)]
PlaceId = Annotated[
    str,
    Field(
        pattern="^[0-9]{1,18}-[0-9]{1,18}$",
        description="Resume behind the event of this id; 0-0 is the beginning, without it only what is to come is sent",
    ),
]


@with_config(TEXT)
class JobEventsQuery(TypedDict):
    """From where on; the header wins."""

    last_event_id: NotRequired[JobEventId]


@with_config(TEXT)
class EventsQuery(TypedDict):
    """Which events, and from where on; the header wins."""

    plugin: NotRequired[PluginName]
    type: NotRequired[
        Annotated[str, Field(pattern=f"^{_TYPE}(,{_TYPE})*$", description="Only events of these types", max_length=500)]
    ]
    last_event_id: NotRequired[PlaceId]


JobEventsHeaders = TypedDict("JobEventsHeaders", {"Last-Event-ID": NotRequired[JobEventId]})
EventsHeaders = TypedDict("EventsHeaders", {"Last-Event-ID": NotRequired[PlaceId]})


async def job_events(services: Services, request: web.Request, arguments: Arguments) -> web.StreamResponse:
    """The events of one job, to its end."""
    after = int(_resumed_behind(arguments) or "0")
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
    behind = _resumed_behind(arguments)
    after = None if behind is None else Place(*map(int, behind.split("-")))
    with services.streams.room_for(arguments.caller):
        async with services.following.all_jobs(wanted, after) as follower:
            return await stream(services, request, follower)


def _resumed_behind(arguments: Arguments) -> str | None:
    behind: str | None = arguments.headers.get("Last-Event-ID", arguments.query.get("last_event_id"))
    return behind
