"""The OpenAPI 3.1 document, made from the route table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

import service
from service.api import bulk_inputs, inputs, views
from service.api.problem_types import PROBLEM_TYPES
from service.api.problems import MEDIA_TYPE, ProblemView
from service.api.resources import FILE_NAMES
from service.api.route import ANY, Answer, Route, Schema

_REF: Final = "#/components/schemas/{model}"
#: The query parameter that stands for every field of a payload; a plugin's own call has its fields in its place.
FIELDS: Final = "fields"
#: Begins the description of an object in a query. (As `content` it could have a schema, but the forms of browsers fill
#: such a parameter in, asked or not.)
AS_JSON: Final = "As JSON."
_KEY_SCHEME: Final = "apiKey"

#: Refusals that every call shares: malformed, to a foreign host, and a fault of ours.
_ANYBODYS_PROBLEMS: Final = (400, 421, 500)
#: What a call that changes something may also be answered: it came from a page of a foreign origin.
_CHANGING_PROBLEMS: Final = (403,)
#: What a call may also be answered that is not everybody's; 503: keys and jobs are in a database that may be away.
_GATE_PROBLEMS: Final = (401, 403, 429, 503)
_PATH_PROBLEMS: Final = (404,)
_BODY_PROBLEMS: Final = (408, 413, 415, 422)

#: Path parameters that are neither ids (`…_id`, UUIDs) nor just some text.
_PATH_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "name": {"type": "string", "minLength": 1, "examples": ["echo"]},
    "kind": {"type": "string", "enum": [*PROBLEM_TYPES]},
    "file": {"type": "string", "enum": [*FILE_NAMES]},
}
_HEADERS: Final[Mapping[str, str]] = {
    "Location": "Where it lives",
    "Idempotency-Replayed": "`true` when the key had made this before",
    "Preference-Applied": "The wait that was granted",
    "Link": 'The next page, `rel="next"`',
    "Retry-After": "Seconds after which to ask again",
    "Content-Disposition": "`attachment`, and the name of the file",
    "ETag": "The version of what was sent, for `If-None-Match`",
    "Report-As-Of": "As of when the reports are",
    "Report-Until": "Where the window ends that was asked for",
    "WWW-Authenticate": "The scheme of the key that is asked for",
    "RateLimit-Policy": "What a limited key may do in which time",
    "RateLimit": "What remains of it to a limited key, and when it is whole again",
    "X-Request-Id": "The id of the request, as the log has it: the client's own if it sent one",
}
#: On every answer to a limited key.
_LIMITED: Final = ("RateLimit-Policy", "RateLimit")
_PROBLEM_HEADERS: Final[Mapping[int, Sequence[str]]] = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After", *_LIMITED),
    503: ("Retry-After",),
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document of `routes`; raises `ValueError` where it would not be OpenAPI."""
    components = _Components()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, routes, components)
    components.schema(inputs.OptionsInput, "validation")
    components.schema(bulk_inputs.BatchItemInput, "validation")
    components.schema(views.BytesView, "serialization")
    problems = sorted({status for route in routes for status in _problems(route)})
    value = {
        "openapi": "3.1.1",
        "info": {
            "title": "Job service",
            "version": service.__version__,
            "description": "Plugins as durable jobs: submit, follow, fetch the result.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(map(_tag, routes))],
        "paths": paths,
        "components": {
            "responses": {_problem_name(status): _problem(status, components) for status in problems},
            "headers": {
                name: {"description": description, "schema": {"type": "string"}}
                for name, description in _HEADERS.items()
            },
            "securitySchemes": {
                _KEY_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. A service that only this machine reaches may ask for none.",
                }
            },
            "parameters": components.parameters,
            "schemas": components.schemas,
        },
    }
    # Its types take a tenth of a second to import, which no start and no command should pay for.
    from openapi_pydantic import OpenAPI

    OpenAPI.model_validate(value)
    return value


class _Components:
    """Collects what is told once and referred to: the schemas of types, and parameters that calls share."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self.parameters: dict[str, Any] = {}

    def of(self, shape: Schema, mode: JsonSchemaMode) -> dict[str, Any]:
        """A reference to the schema of a type; JSON Schema as it stands."""
        return dict(shape) if isinstance(shape, Mapping) else self.schema(shape, mode)

    def schema(self, shape: type, mode: JsonSchemaMode) -> dict[str, Any]:
        """A reference to the schema of `shape`, which is added with all it refers to."""
        self._add(shape.__name__, self.inline(shape, mode))
        return {"$ref": _REF.format(model=shape.__name__)}

    def inline(self, shape: type, mode: JsonSchemaMode) -> dict[str, Any]:
        """The schema of `shape` itself."""
        schema = TypeAdapter[Any](shape).json_schema(mode=mode, ref_template=_REF)
        for name, definition in schema.pop("$defs", {}).items():
            self._add(name, definition)
        return schema

    def _add(self, name: str, schema: Mapping[str, Any]) -> None:
        if self.schemas.setdefault(name, schema) != schema:
            raise ValueError(f"two shapes have the name {name}")

    def resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """`schema`, or the one that it refers to."""
        name = schema.get("$ref", "").rpartition("/")[2]
        found: Mapping[str, Any] = self.schemas.get(name, schema)
        return found

    def parameter(self, parameter: Mapping[str, Any]) -> dict[str, Any]:
        """A reference to `parameter`, which means the same wherever it has that name."""
        name = parameter["name"]
        if self.parameters.setdefault(name, parameter) != parameter:
            raise ValueError(f"two parameters have the name {name}")
        return {"$ref": f"#/components/parameters/{name}"}


def _operation(route: Route, routes: Sequence[Route], components: _Components) -> dict[str, Any]:
    everywhere = () if route.policy.roles is None else _LIMITED
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [_tag(route)],
        "summary": route.summary,
        "description": "\n\n".join(filter(None, [route.description, _needs(route)])),
        "parameters": [*_parameters(route, components)],
        "responses": {
            **{
                str(status): _answer(answer, everywhere, routes, components)
                for status, answer in sorted(route.answers.items())
            },
            **{str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"} for status in _problems(route)},
        },
    }
    if route.policy.roles is not None:
        operation["security"] = [{_KEY_SCHEME: sorted(route.policy.roles)}, {}]
    if route.bodies:
        operation["requestBody"] = {
            "required": ANY not in route.bodies and not route.body_optional,
            "content": {
                media_type: {
                    "schema": components.of(body.schema, "validation"),
                    "examples": {name: {"value": value} for name, value in body.examples.items()},
                }
                for media_type, body in route.bodies.items()
            },
        }
    return operation


def _tag(route: Route) -> str:
    """The kind of thing a call is about: `jobs` of `/v1/jobs/…`; what is not under `/v1` is about the process."""
    _, version, *rest = route.path.split("/")
    return rest[0] if version == "v1" else "process"


def _needs(route: Route) -> str:
    policy = route.policy
    if policy.roles is None:
        return "Needs no key."
    roles = " or ".join(f"`{role}`" for role in sorted(policy.roles))
    return f"Needs a key{' of the default tenant' if policy.of_operator else ''} with the role {roles}."


def _problems(route: Route) -> list[int]:
    """Every error status of a call."""
    statuses = {*_ANYBODYS_PROBLEMS, *route.problems}
    for applies, more in (
        (route.method != "GET", _CHANGING_PROBLEMS),
        (route.policy.roles is not None, _GATE_PROBLEMS),
        (route.path_parameters, _PATH_PROBLEMS),
        (route.bodies, _BODY_PROBLEMS),
    ):
        statuses.update(more if applies else ())
    return sorted(statuses)


def _problem_name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _problem(status: int, components: _Components) -> dict[str, Any]:
    types = [problem for problem in PROBLEM_TYPES.values() if status in problem.statuses]
    return {
        "description": "; ".join(problem.title for problem in types),
        "headers": _headers(_PROBLEM_HEADERS.get(status, ())),
        "content": {
            MEDIA_TYPE: {
                "schema": components.schema(ProblemView, "serialization"),
                "examples": {problem.kind: {"value": {**problem.example, "status": status}} for problem in types},
            }
        },
    }


def _answer(
    answer: Answer, everywhere: Sequence[str], routes: Sequence[Route], components: _Components
) -> dict[str, Any]:
    headers = _headers((*answer.headers, *everywhere))
    value: dict[str, Any] = {"description": answer.description, "headers": headers}
    if answer.content:
        value["content"] = {
            media_type: {"schema": components.of(shape, "serialization")}
            for media_type, shape in answer.content.items()
        }
    if answer.leads_to:
        value["links"] = dict(_links(answer.leads_to, routes))
    return value


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, "X-Request-Id")}


def _links(leads_to: Mapping[str, str], routes: Sequence[Route]) -> Iterator[tuple[str, Any]]:
    """A link to every call whose path parameters are all found by `leads_to`."""
    for route in routes:
        found = {
            name: leads_to[resource]
            for name in route.path_parameters
            if (resource := route.path.partition(f"{{{name}}}")[0] + f"{{{name}}}") in leads_to
        }
        if found and len(found) == len(route.path_parameters):
            yield route.name, {"operationId": route.name, "parameters": found}


def _parameters(route: Route, components: _Components) -> Iterator[dict[str, Any]]:
    for name in route.path_parameters:
        yield {"name": name, "in": "path", "required": True, "schema": _path_parameter(name)}
    if route.query:
        yield from _fields(route.query, "query", components)
    else:
        yield from _fields(inputs.OptionsInput, "query", components, prefix=inputs.OPTION_PREFIX)
        yield {
            "name": FIELDS,
            "in": "query",
            "description": "With a raw body: the other fields of the payload, as text",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            # Forms of browsers make fields up otherwise, which beside a JSON body are refused.
            "example": {},
        }
    if route.headers:
        yield from _fields(route.headers, "header", components)


def _path_parameter(name: str) -> dict[str, Any]:
    if name.endswith("_id"):
        return {"type": "string", "format": "uuid"}
    return dict(_PATH_PARAMETERS.get(name, {"type": "string", "minLength": 1}))


def _fields(shape: type, place: str, components: _Components, prefix: str = "") -> Iterator[dict[str, Any]]:
    schema = components.inline(shape, "validation")
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        parameter: dict[str, Any] = {"name": prefix + name, "in": place, "required": name in required}
        description = field.pop("description", components.resolved(field).get("description"))
        if prefix and components.resolved(field).get("type") == "object":
            description, field = f"{AS_JSON} {description}", {"type": "string"}
        if description:
            parameter["description"] = description
        parameter["schema"] = field
        # Options and headers mean the same to every call that takes them.
        yield components.parameter(parameter) if prefix or place == "header" else parameter
