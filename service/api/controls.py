"""The calls by which operators control plugins: what they take, a function each, and their rows of the route table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, NotRequired

from aiohttp import web
from pydantic import Field, with_config
from typing_extensions import TypedDict

from service.api import handlers, views
from service.api.access import OPERATOR
from service.api.handlers import Arguments
from service.api.inputs import STRICT, WHOLE
from service.api.problems import unacceptable
from service.api.route import JSON_TYPE, Answer, Route, json_body
from service.api.services import Services
from service.api.text_forms import NO_NUL
from service.errors import FieldProblem
from service.plugin_management import PluginInfo


@with_config(STRICT)
class PauseInput(TypedDict):
    """How a plugin is paused."""

    intake: NotRequired[Annotated[bool, Field(description="Refuse new jobs as well", default=False)]]
    reason: NotRequired[
        Annotated[str, Field(min_length=1, max_length=500, description="Shown to whoever is refused"), NO_NUL]
    ]


@with_config(STRICT)
class LimitsInput(TypedDict):
    """Limits of a plugin over all processes; what is null or left out is no limit."""

    concurrency: NotRequired[
        Annotated[int | None, Field(ge=1, le=1_000_000, description="Jobs that may run at once"), WHOLE]
    ]
    rate_per_s: NotRequired[
        Annotated[float | None, Field(ge=1e-6, le=1e6, description="Jobs that may start a second, in the long run")]
    ]
    burst: NotRequired[
        Annotated[
            int | None,
            Field(ge=1, le=1_000_000, description="Jobs that may start at once; default: `rate_per_s`, up"),
            WHOLE,
        ]
    ]


async def pause_plugin(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Start no more of its jobs."""
    given: PauseInput = {} if arguments.submitted is None else arguments.submitted
    plugin = await services.controls.pause(
        request.match_info["name"], refuses_jobs=given.get("intake", False), reason=given.get("reason")
    )
    return _plugin(plugin)


async def resume_plugin(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Start its jobs again."""
    return _plugin(await services.controls.resume(request.match_info["name"]))


async def limit_plugin(services: Services, request: web.Request, arguments: Arguments) -> web.Response:
    """Set all its limits anew."""
    given: LimitsInput = arguments.submitted
    burst, rate_per_s = given.get("burst"), given.get("rate_per_s")
    if burst is not None and rate_per_s is None:
        raise unacceptable("/burst: needs rate_per_s", FieldProblem("/burst", "needs rate_per_s"))
    plugin = await services.controls.set_limits(
        request.match_info["name"], concurrency=given.get("concurrency"), rate_per_s=rate_per_s, burst=burst
    )
    return _plugin(plugin)


def _plugin(plugin: PluginInfo) -> web.Response:
    return handlers.json_response(views.plugin_view(plugin))


_PATH: Final = "/v1/plugins/{name}"


def _answers(description: str) -> dict[int, Answer]:
    return {
        200: Answer(
            description=description, content={JSON_TYPE: views.PluginView}, leads_to={_PATH: "$response.body#/name"}
        )
    }


ROUTES: Final[Sequence[Route]] = (
    Route(
        method="POST",
        path=_PATH + "/pause",
        name="pause_plugin",
        summary="Start no more jobs of a plugin, in any process; running ones run on",
        handler=pause_plugin,
        policy=OPERATOR,
        bodies={JSON_TYPE: json_body(PauseInput, because={"intake": True, "reason": "its model is being replaced"})},
        body_optional=True,
        answers=_answers("It is paused"),
    ),
    Route(
        method="POST",
        path=_PATH + "/resume",
        name="resume_plugin",
        summary="Start jobs of a plugin again",
        handler=resume_plugin,
        policy=OPERATOR,
        answers=_answers("It is not paused"),
    ),
    Route(
        method="PUT",
        path=_PATH + "/limits",
        name="limit_plugin",
        summary="Set how many jobs of a plugin may run at once and start a second, over all processes",
        handler=limit_plugin,
        policy=OPERATOR,
        bodies={JSON_TYPE: json_body(LimitsInput, slow={"concurrency": 2, "rate_per_s": 0.5})},
        answers=_answers("Its limits are these"),
    ),
)
