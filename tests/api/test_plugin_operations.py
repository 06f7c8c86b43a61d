"""Plugins of every shape in the OpenAPI document."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.api import openapi
from service.api.plugin_operations import with_plugins
from service.api.routes import ROUTES
from service.plugins.manifest import PluginManifest

BYTES = {"type": "string", "contentEncoding": "base64"}
TREE = {
    "type": "object",
    "properties": {
        "root": {"$ref": "#/$defs/Node"},
        "$ref": {"type": "string"},
        "again": {"$ref": "#"},
        "kind": {"const": {"$ref": "#/$defs/Node"}},
        "maybe": True,
    },
    "$defs": {
        "Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    },
}


def described(*manifests: tuple[str, dict[str, Any], dict[str, Any] | None]) -> dict[str, Any]:
    """A valid document with plugins of these names and schemas."""
    plugins = {
        name: PluginManifest(
            name=name, version="1", description="", input_schema=taken, output_schema=given, untyped=False
        )
        for name, taken, given in manifests
    }
    document: dict[str, Any] = with_plugins(openapi.document(ROUTES), ROUTES, plugins)
    validate(document, cls=OpenAPIV31SpecValidator)
    return document


def schemas(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def test_definitions_become_components_and_references_follow_them() -> None:
    document = described(("tree", TREE, TREE))
    told = schemas(document)["TreePayload"]["properties"]
    assert told["root"] == {"$ref": "#/components/schemas/TreePayload.Node"}
    assert told["again"] == {"$ref": "#/components/schemas/TreePayload"}
    assert told["$ref"] == {"type": "string"}  # a field of that name
    assert told["kind"] == {"const": {"$ref": "#/$defs/Node"}}  # data
    assert told["maybe"] is True
    assert schemas(document)["TreeResult.Node"]["properties"]["next"]["anyOf"][0] == {
        "$ref": "#/components/schemas/TreeResult.Node"
    }
    validator = jsonschema_rs.Draft202012Validator(
        {"$ref": "#/components/schemas/TreePayload", "components": document["components"]}
    )
    assert validator.is_valid({"root": {"next": {"next": None}}})
    assert not validator.is_valid({"root": {"next": {"next": 1}}})


def test_bytes_are_base64_on_the_way_in_and_references_on_the_way_out() -> None:
    shape = {"type": "object", "properties": {"pages": {"type": "array", "items": BYTES}, "cover": BYTES}}
    document = described(("book", shape, shape))
    assert schemas(document)["BookPayload"]["properties"] == shape["properties"]
    bytes_view = {"$ref": "#/components/schemas/BytesView"}
    assert schemas(document)["BookResult"]["properties"] == {
        "pages": {"type": "array", "items": bytes_view},
        "cover": bytes_view,
    }


def test_fields_beside_a_raw_body_are_query_parameters() -> None:
    fields = {
        "image": BYTES,
        "width": {"type": "integer", "default": 256, "description": "In pixels"},
        "crop": {"type": "array", "items": {"type": "integer"}},
        "fit": {"$ref": "#/$defs/Fit"},
        "place": {"$ref": "#/$defs/Place"},
        "job.tags": {"type": "string"},
    }
    definitions = {"Fit": {"enum": ["cover"], "type": "string"}, "Place": {"type": "object"}}
    shape = {"type": "object", "properties": fields, "$defs": definitions}
    document = described(("cut", shape, None), ("plain", {"type": "object"}, None))
    cut, plain = (document["paths"][f"/v1/plugins/{name}/jobs"]["post"] for name in ("cut", "plain"))
    own = {one["name"]: one for one in cut["parameters"] if "name" in one}
    assert own.keys() == {"width", "crop", "fit", "place"}
    assert own["width"]["description"] == "With a raw body. Default: `256`. In pixels"
    assert own["width"]["schema"] == {"type": "integer", "description": "In pixels"}
    assert own["fit"]["schema"] == {"$ref": "#/components/schemas/CutPayload.Fit"}
    assert [own[name]["description"] for name in ("crop", "place")] == ["With a raw body. As JSON."] * 2
    assert {*cut["requestBody"]["content"]} == {"application/json", "*/*"}
    assert {*plain["requestBody"]["content"]} == {"application/json"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "$id": "https://elsewhere.example/schema"},
        {"type": "object", "properties": {"a": {"$dynamicRef": "#node"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://elsewhere.example/schema"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {}}},
        {"type": "no type"},
    ],
    ids=["address", "dynamic", "foreign", "place", "broken"],
)
def test_a_schema_that_cannot_be_told_in_a_document_is_any_object(schema: dict[str, Any]) -> None:
    document = described(("odd", schema, schema))
    assert (
        schemas(document)["OddPayload"]
        == schemas(document)["OddResult"]
        == {
            "type": "object",
            "additionalProperties": True,
        }
    )


def test_names_are_spelled_as_code_can_and_never_clash() -> None:
    names = ["my-plugin", "my.plugin", "MyPlugin", "plugin", "örtlich/{x}", "job", "---", "1st"]
    document = described(*((name, {"type": "object"}, None) for name in names))
    own = {
        operation["post"]["operationId"]
        for path, operation in document["paths"].items()
        if path not in {route.path for route in ROUTES}
    }
    assert len(own) == len(names)
    assert {"submit_job_job", "submit_plugin_2_job"} <= own  # `submit_plugin_job` is the call of any plugin
    assert {"submit_my_plugin_job", "submit_my_plugin_2_job", "submit_my_plugin_3_job"} <= own
    assert all(name.isidentifier() for name in own)
    assert "/v1/plugins/%C3%B6rtlich%2F%7Bx%7D/jobs" in document["paths"]
