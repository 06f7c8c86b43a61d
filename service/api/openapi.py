"""The OpenAPI 3.1 document, made from the route table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from openapi_pydantic import OpenAPI
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

import service
from service.api import inputs
from service.api.problems import MEDIA_TYPE, ProblemView
from service.api.routes import ANY, Route

_REF: Final = "#/components/schemas/{model}"
#: Refusals that every call shares: malformed, of a foreign origin, to a foreign host, and a fault of ours.
_COMMON_PROBLEMS: Final = {"GET": (400, 421, 500), "POST": (400, 403, 421, 500)}
#: What a call may also be answered that is not everybody's.
_GATE_PROBLEMS: Final = (401, 403, 429)
_KEY_SCHEME: Final = "apiKey"
_PATH_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "job_id": {"type": "string", "format": "uuid"},
    "name": {"type": "string", "minLength": 1, "examples": ["echo"]},
}
_RESPONSE_HEADERS: Final[Mapping[str, str]] = {
    "Location": "The job",
    "Idempotency-Replayed": "`true` when the key had made this job before",
    "Preference-Applied": "The wait that was granted",
    "Link": 'The next page, `rel="next"`',
    "Retry-After": "Seconds after which to ask again",
}


def document(routes: Sequence[Route]) -> bytes:
    """The document of `routes` as JSON text."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    schemas.component(inputs.OptionsInput, "validation")
    value = {
        "openapi": "3.1.1",
        "info": {
            "title": "Job service",
            "version": service.__version__,
            "description": "Plugins as durable jobs: submit, follow, fetch the result.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                _KEY_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. A service that only this machine reaches may ask for none.",
                }
            },
        },
    }
    OpenAPI.model_validate(value)
    return orjson.dumps(value)


class _Schemas:
    """Collects the schemas of types under their names."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, shape: type | Mapping[str, Any], mode: JsonSchemaMode) -> dict[str, Any]:
        """A reference to the schema of a type; JSON Schema as it stands."""
        return dict(shape) if isinstance(shape, Mapping) else self.component(shape, mode)

    def component(self, shape: type, mode: JsonSchemaMode) -> dict[str, Any]:
        """A reference to the schema of `shape`, which is added with all it refers to."""
        schema = self.inline(shape, mode)
        self.components[shape.__name__] = schema
        return {"$ref": _REF.format(model=shape.__name__)}

    def inline(self, shape: type, mode: JsonSchemaMode) -> dict[str, Any]:
        """The schema of `shape` itself."""
        schema = TypeAdapter[Any](shape).json_schema(mode=mode, ref_template=_REF)
        self.components |= schema.pop("$defs", {})
        return schema


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*_parameters(route, schemas)],
        "responses": {str(status): _answer(route, status, schemas) for status in sorted(route.answers)},
    }
    problems = {*route.problems, *_COMMON_PROBLEMS[route.method]}
    if route.policy.roles is not None:
        problems.update(_GATE_PROBLEMS)
        operation["security"] = [{_KEY_SCHEME: sorted(route.policy.roles)}, {}]
    problem = schemas.component(ProblemView, "serialization")
    for status in sorted(problems):
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": problem}},
        }
    if route.bodies:
        operation["requestBody"] = {
            "required": ANY not in route.bodies,
            "content": {
                media_type: {"schema": schemas.of(body.schema, "validation")}
                for media_type, body in route.bodies.items()
            },
        }
    return operation


def _answer(route: Route, status: int, schemas: _Schemas) -> dict[str, Any]:
    answer = route.answers[status]
    value: dict[str, Any] = {
        "description": answer.description,
        "content": {
            media_type: {"schema": schemas.of(shape, "serialization")} for media_type, shape in answer.content.items()
        },
    }
    if answer.headers:
        value["headers"] = {
            name: {"description": _RESPONSE_HEADERS[name], "schema": {"type": "string"}} for name in answer.headers
        }
    return value


def _parameters(route: Route, schemas: _Schemas) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": dict(_PATH_PARAMETERS[name])}
    if route.query:
        yield from _fields(route.query, "query", schemas)
    else:
        yield from _fields(inputs.OptionsInput, "query", schemas, prefix=inputs.OPTION_PREFIX)
        yield {
            "name": "fields",
            "in": "query",
            "description": "With a raw body: the other fields of the payload, as text",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    if route.headers:
        yield from _fields(route.headers, "header", schemas)


def _fields(shape: type, place: str, schemas: _Schemas, prefix: str = "") -> Iterable[dict[str, Any]]:
    schema = schemas.inline(shape, "validation")
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        parameter: dict[str, Any] = {"name": prefix + name, "in": place, "required": name in required}
        description = field.pop("description", None)
        if description:
            parameter["description"] = description
        if prefix and field.get("type") == "object":
            parameter["content"] = {"application/json": {"schema": field}}
        else:
            parameter["schema"] = field
        yield parameter
