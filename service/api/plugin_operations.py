"""Each available plugin as a call of its own in the OpenAPI document: what it takes and gives, typed."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import jsonschema_rs
import orjson

from service.api.inputs import OPTION_PREFIX
from service.api.openapi import AS_JSON, FIELDS
from service.api.route import ANY, JSON_TYPE, Route
from service.plugins.manifest import PluginManifest

JSONSchema = dict[str, Any]

#: The call that every plugin's own call is a case of.
GENERIC: Final = "submit_plugin_job"
_BYTES: Final = {"$ref": "#/components/schemas/BytesView"}
_UNKNOWN: Final = {"type": "object", "additionalProperties": True}
_COMPONENTS: Final = "#/components/schemas/"
#: What a plugin has of its own: the names of its schemas end so.
_PARTS: Final = ("Payload", "Result", "Job")

#: Where schemas stand in a schema: one, a list of them, or one a name. All else is data.
_ONE: Final = frozenset(("items", "contains", "propertyNames", "not", "if", "then", "else", "contentSchema")) | {
    f"{rest}{kind}" for rest in ("additional", "unevaluated") for kind in ("Items", "Properties")
}
_LIST: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED: Final = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs"))
#: What gives a schema an address of its own: it cannot be told elsewhere in the same words.
_ADDRESSED: Final = frozenset(("$id", "$anchor", "$dynamicAnchor", "$dynamicRef"))


def with_plugins(document: Mapping[str, Any], routes: tuple[Route, ...], plugins: Mapping[str, PluginManifest]) -> Any:
    """`document` with a path for each of `plugins` beside the one that has the plugin's name as a parameter."""
    path = next(route.path for route in routes if route.name == GENERIC)
    generic = document["paths"][path]["post"]
    components = dict(document["components"]["schemas"])
    paths = dict(document["paths"])
    identifiers = {operation["operationId"] for item in paths.values() for operation in item.values()}
    for name, manifest in plugins.items():
        stem = _free_stem(name, components, identifiers)
        own = _schemas(stem, manifest)
        components |= own
        operation = _operation(generic, stem, manifest, own)
        identifiers.add(operation["operationId"])
        paths[path.replace("{name}", quote(name, safe=""))] = {"post": operation}
    return {**document, "paths": paths, "components": {**document["components"], "schemas": components}}


def _free_stem(name: str, components: Mapping[str, Any], identifiers: set[str]) -> str:
    """`name` as code may spell it, in lower case with underlines, and unlike what is there."""
    stem = re.sub(r"[^0-9a-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_") or "plugin"
    number, found = 1, stem
    while _operation_id(found) in identifiers or any(_type_name(found, part) in components for part in _PARTS):
        number, found = number + 1, f"{stem}_{number + 1}"
    return found


def _operation_id(stem: str) -> str:
    return f"submit_{stem}_job"


def _type_name(stem: str, part: str) -> str:
    return "".join(word.capitalize() for word in stem.split("_")) + part


def _schemas(stem: str, manifest: PluginManifest) -> dict[str, JSONSchema]:
    payload, result, job = (_type_name(stem, part) for part in _PARTS)
    own = _told(payload, manifest.input_schema, {})
    known: JSONSchema = {"plugin": {"const": manifest.name}}
    if manifest.output_schema is not None:
        own |= _told(result, manifest.output_schema, _BYTES)
        known["result"] = {"anyOf": [{"$ref": _COMPONENTS + result}, {"type": "null"}]}
    own[job] = {"allOf": [{"$ref": _COMPONENTS + "JobView"}, {"type": "object", "properties": known}]}
    return own


def _told(name: str, schema: JSONSchema, in_place_of_bytes: JSONSchema) -> dict[str, JSONSchema]:
    """`schema` as the component `name`, its definitions as components beside it; an object if it cannot be told."""
    try:
        jsonschema_rs.Draft202012Validator(schema)
        moved = _Moved(name, in_place_of_bytes)
        definitions = schema.get("$defs", {})
        rest = {key: value for key, value in schema.items() if key not in ("$defs", "$schema")}
        return {
            name: moved.schema(rest),
            **{moved.definition(key): moved.schema(definition) for key, definition in definitions.items()},
        }
    except ValueError:
        return {name: dict(_UNKNOWN)}


class _Moved:
    """Schemas under another address: their references follow, and what marks bytes may be replaced."""

    def __init__(self, name: str, in_place_of_bytes: JSONSchema) -> None:
        self._name = name
        self._in_place_of_bytes = in_place_of_bytes

    def definition(self, key: str) -> str:
        """The component that the definition `key` becomes."""
        return f"{self._name}.{re.sub(r'[^0-9A-Za-z_.-]', '_', key)}"

    def schema(self, schema: Any) -> Any:
        """`schema`, moved; raises `ValueError` where it has an address of its own, or refers to one elsewhere."""
        if not isinstance(schema, dict):
            return schema  # true and false are schemas
        if not _ADDRESSED.isdisjoint(schema):
            raise ValueError("it has an address of its own")
        if self._in_place_of_bytes and schema.get("contentEncoding") == "base64":
            return dict(self._in_place_of_bytes)
        return {key: self._value(key, value) for key, value in schema.items()}

    def _value(self, key: str, value: Any) -> Any:
        if key == "$ref":
            return self._reference(value)
        if key in _ONE:
            return self.schema(value)
        if key in _LIST:
            return [self.schema(item) for item in value]
        if key in _NAMED:
            return {name: self.schema(item) for name, item in value.items()}
        return copy.deepcopy(value)

    def _reference(self, target: str) -> str:
        if target == "#":
            return _COMPONENTS + self._name
        place, _, key = target.rpartition("/")
        if place != "#/$defs":
            raise ValueError("it refers to something else than its definitions")
        return _COMPONENTS + self.definition(key.replace("~1", "/").replace("~0", "~"))


def _operation(generic: Any, stem: str, manifest: PluginManifest, own: Mapping[str, JSONSchema]) -> dict[str, Any]:
    operation: dict[str, Any] = copy.deepcopy(generic)
    payload = _type_name(stem, "Payload")
    operation["operationId"] = _operation_id(stem)
    operation["summary"] = f"Submit a job to {manifest.name}"
    operation["description"] = "\n\n".join(filter(None, [manifest.description, generic["description"]]))
    content = operation["requestBody"]["content"]
    content[JSON_TYPE] = {"schema": {"$ref": _COMPONENTS + payload}}
    operation["parameters"] = [
        parameter
        for parameter in generic["parameters"]
        if parameter.get("in") != "path" and parameter.get("name") != FIELDS
    ]
    properties = own[payload].get("properties", {})
    if manifest.untyped or any(map(_is_bytes, properties.values())):
        operation["parameters"] += [
            _query_parameter(name, schema, own)
            for name, schema in properties.items()
            if not _is_bytes(schema) and not name.startswith(OPTION_PREFIX)
        ]
    else:
        del content[ANY]
        operation["requestBody"]["required"] = "required" in own[payload]
    for answer in operation["responses"].values():
        if "content" in answer:
            answer["content"] = {JSON_TYPE: {"schema": {"$ref": _COMPONENTS + _type_name(stem, "Job")}}}
    return operation


def _is_bytes(schema: Any) -> bool:
    branches = schema.get("anyOf", [schema]) if isinstance(schema, dict) else ()
    return any(isinstance(branch, dict) and branch.get("contentEncoding") == "base64" for branch in branches)


def _query_parameter(name: str, schema: Any, own: Mapping[str, JSONSchema]) -> dict[str, Any]:
    """A field of the payload beside a raw body; what is neither text nor a plain value is written as JSON.

    Its default is told in words: forms of browsers fill in one that the schema names, and no JSON body could be sent.
    """
    kinds = _kinds(schema, own)
    is_plain = not kinds or "string" in kinds or kinds <= {"integer", "number", "boolean", "null"}
    words = [
        "With a raw body.",
        "" if is_plain else AS_JSON,
        f"Default: `{orjson.dumps(schema['default']).decode()}`." if _has_default(schema) else "",
        schema.get("description", "") if isinstance(schema, dict) else "",
    ]
    if _has_default(schema):
        schema = {key: value for key, value in schema.items() if key != "default"}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": " ".join(filter(None, words)),
        "schema": schema if is_plain else {"type": "string"},
    }


def _has_default(schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema


def _kinds(schema: Any, own: Mapping[str, JSONSchema]) -> set[str]:
    """The JSON types that `schema` says it may be of; none if it does not say."""
    kinds: set[str] = set()
    for branch in schema.get("anyOf", [schema]) if isinstance(schema, dict) else ():
        found = own.get(branch["$ref"].removeprefix(_COMPONENTS), {}) if "$ref" in branch else branch
        kind = found.get("type", ())
        kinds.update([kind] if isinstance(kind, str) else kind)
    return kinds
