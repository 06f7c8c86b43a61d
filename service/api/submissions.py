"""The ways to send a job: each reads one kind of body into plugin, payload and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from service.api import bodies
from service.api.inputs import (
    OPTION_PREFIX,
    QUERY_ROOT,
    Submitted,
    check_job,
    check_options,
    check_plugin_name,
    split_query,
)
from service.api.problems import bad_request, unacceptable, unsupported_media_type
from service.api.services import Services
from service.codec import escape_pointer
from service.errors import BODY_AND_PARAMETER, FieldProblem
from service.models import JSON, JobOptions
from service.strict_json import MalformedJSONError

_PLUGIN: Final = "plugin"
_JOB: Final = "job"
_PAYLOAD: Final = "payload"
#: What stands before the names of options in the places of a form.
_JOB_ROOT: Final = f"/{_JOB}/"
#: Parts of a form that are not fields of the payload.
RESERVED_PARTS: Final = frozenset({_PLUGIN, _JOB, _PAYLOAD})
#: What a client sends when nobody told it what it sends.
_UNNAMED: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


async def from_json(services: Services, request: web.Request) -> Submitted:
    """`{plugin, payload, ...options}`."""
    _no_query(request)
    return check_job(await bodies.parse_json(await bodies.read(request, services.max_body_bytes)))


async def from_form(services: Services, request: web.Request) -> Submitted:
    """`multipart/form-data`: reserved parts `plugin`, `job`, `payload`; every other part is a payload field."""
    _no_query(request)
    body = await bodies.read(request, services.max_body_bytes)
    parts = {part.name: part for part in await bodies.parse_form(body, request.headers[hdrs.CONTENT_TYPE])}
    if _PLUGIN not in parts:
        raise unacceptable("/plugin: is required", FieldProblem("/plugin", "is required"))
    plugin = check_plugin_name(_text(parts[_PLUGIN]))
    options = JobOptions()
    if _JOB in parts:
        options = check_options(await _json_part(parts[_JOB]), _JOB_ROOT)
    payload: dict[str, JSON] = {}
    if _PAYLOAD in parts:
        payload = _object(await _json_part(parts[_PAYLOAD]), "/payload")
    fields = {
        name: part.data if part.is_file else _text(part) for name, part in parts.items() if name not in RESERVED_PARTS
    }
    for name in fields.keys() & payload.keys():
        raise unacceptable(
            "A field is given twice.", FieldProblem(f"/{escape_pointer(name)}", "also stands in the part 'payload'")
        )

    async def bind() -> Mapping[str, Any]:
        bound = payload | await services.plugins.bind_fields(plugin, fields)
        picture = parts.get(await services.plugins.bytes_field(plugin))
        if picture and picture.is_file and picture.media_type:
            bound.setdefault("mime_type", bodies.media_type(picture.media_type))
        return bound

    types = {name: parts[name].media_type for name in fields if parts[name].is_file}
    sent = {"payload": payload, "fields": fields, "media_types": types}
    return Submitted(
        plugin=plugin,
        payload=sent,
        options=options,
        bind=bind,
        options_root=_JOB_ROOT,
        apart={escape_pointer(name): f"/{_PAYLOAD}" for name in payload},
    )


async def payload_from_json(services: Services, request: web.Request) -> Submitted:
    """The payload itself, as JSON; options are `job.`-prefixed query parameters."""
    fields, options = split_query(request.query)
    for name in fields:
        raise bad_request(
            "A query parameter is not acceptable.",
            FieldProblem(f"/{escape_pointer(name)}", f"is not known here; options begin with {OPTION_PREFIX!r}"),
        )
    value = await bodies.parse_json(await bodies.read(request, services.max_body_bytes))
    return Submitted(
        plugin=request.match_info["name"],
        payload=_object(value, ""),
        options=options,
        plugin_pointer=None,
        options_root=QUERY_ROOT,
    )


async def payload_from_bytes(services: Services, request: web.Request) -> Submitted:
    """The schema's single bytes field, raw; query parameters are the other payload fields and the options."""
    media_type = bodies.media_type(request.headers.get(hdrs.CONTENT_TYPE, ""))
    if media_type in _UNNAMED:
        raise unsupported_media_type(
            f"{media_type} is not taken here: say what the body is, as in -H 'Content-Type: image/png', "
            "or send a form to /v1/jobs."
        )
    plugin = request.match_info["name"]
    texts, options = split_query(request.query)
    data = await bodies.read(request, services.max_body_bytes)

    async def bind() -> Mapping[str, Any]:
        fields: dict[str, str | bytes] = dict(texts)
        if data or media_type:
            name = await services.plugins.bytes_field(plugin)
            if name in fields:
                raise unacceptable(
                    "A field is given twice.",
                    FieldProblem(f"/{escape_pointer(name)}", BODY_AND_PARAMETER),
                )
            fields[name] = data
            if media_type:
                fields.setdefault("mime_type", media_type)
        return await services.plugins.bind_fields(plugin, fields)

    sent = {"fields": texts, "body": data, "media_type": media_type}
    return Submitted(
        plugin=plugin, payload=sent, options=options, bind=bind, plugin_pointer=None, options_root=QUERY_ROOT
    )


def _no_query(request: web.Request) -> None:
    for name in request.query if request.query_string else ():
        raise bad_request(
            "A query parameter is not acceptable.", FieldProblem(f"/{escape_pointer(name)}", "is not known here")
        )


def _text(part: bodies.Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise bad_request(
            "A part is not UTF-8 text.",
            FieldProblem(f"/{escape_pointer(part.name)}", "is neither UTF-8 text nor sent with a file name"),
        ) from None


async def _json_part(part: bodies.Part) -> Any:
    try:
        return await bodies.parse_json(part.data)
    except MalformedJSONError as error:
        place = FieldProblem(f"/{part.name}{error.problem.pointer}", error.problem.message)
        raise bad_request(f"The part {part.name!r} is not acceptable JSON.", place) from error


def _object(value: Any, pointer: str) -> dict[str, JSON]:
    if type(value) is not dict:
        raise unacceptable("The payload must be an object.", FieldProblem(pointer, "must be an object"))
    return value
