"""The published schema says what `bind` accepts, so that what is refused is refused before it is queued."""

from __future__ import annotations

import base64
import collections.abc
import datetime
import sys
from subprocess import run as run_command
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

from service.codec import check_document
from service.errors import InputInvalidError
from service.plugins.loading import load
from service.plugins.manifest import PluginSource
from service.plugins.schema import strict

from .conftest import LoadPlugin

BYTES = {"type": "string", "contentEncoding": "base64"}
TEXT = {"type": "string", "minLength": 1}


class Page(BaseModel):
    """One page."""

    scan: bytes
    number: int = 1


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


def everything(
    image: bytes,
    width: Annotated[int, Field(ge=1, le=4096, description="In pixels")] = 256,
    ratio: float = Field(0.5, gt=0, lt=1),
    fit: Literal["contain", "cover"] = "contain",
    pages: list[Page] = [],  # noqa: B006
    parts: dict[str, bytes] | None = None,
    seal: Annotated[bytes, Field(min_length=4, max_length=32)] = b"\x00\x01\x02\x03",
    flag: bool = False,
) -> dict[str, Any]:
    return {}


def test_the_schema_of_typed_arguments(load_plugin: LoadPlugin) -> None:
    assert load_plugin(everything).manifest.input_schema == {
        "type": "object",
        "properties": {
            "image": {**BYTES, "minLength": 1},
            "width": {"type": "integer", "minimum": 1, "maximum": 4096, "default": 256, "description": "In pixels"},
            "ratio": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.5},
            "fit": {"type": "string", "enum": ["contain", "cover"], "default": "contain"},
            "pages": {"type": "array", "items": {"$ref": "#/$defs/Page"}, "default": []},
            "parts": {"anyOf": [{"type": "object", "additionalProperties": BYTES}, {"type": "null"}], "default": None},
            # 4 to 32 bytes, seen as base64 text
            "seal": {**BYTES, "minLength": 8, "maxLength": 44, "default": "AAECAw=="},
            "flag": {"type": "boolean", "default": False},
            "mime_type": TEXT,
        },
        "required": ["image", "mime_type"],
        "additionalProperties": False,
        "$defs": {
            "Page": {
                "type": "object",
                "title": "Page",
                "description": "One page.",
                "properties": {"scan": BYTES, "number": {"type": "integer", "default": 1}},
                "required": ["scan"],
            }
        },
    }


def test_the_schema_of_an_untyped_plugin_is_open_with_the_rule_for_images(load_plugin: LoadPlugin) -> None:
    def run(payload: dict) -> dict:
        return payload

    manifest = load_plugin(run).manifest

    assert manifest.untyped is True
    assert manifest.input_schema == {
        "type": "object",
        "properties": {"image": {**BYTES, "minLength": 1}, "mime_type": TEXT},
        "additionalProperties": True,
        "dependentRequired": {"image": ["mime_type"]},
    }


def test_two_untyped_plugins_share_no_schema(load_plugin: LoadPlugin) -> None:
    def run(payload: dict) -> dict:
        return payload

    first, second = load_plugin(run).manifest, load_plugin(run).manifest

    assert first.input_schema["properties"] is not second.input_schema["properties"]


def test_a_recursive_model_is_described_as_an_object(load_plugin: LoadPlugin) -> None:
    def run(tree):
        return {}

    run.__annotations__["tree"] = Tree
    schema = load_plugin(run).manifest.input_schema

    assert schema["type"] == "object"
    assert jsonschema_rs.is_valid(schema, {"value": 1, "children": [{"value": 2}], "mime_type": "a/b"})
    assert not jsonschema_rs.is_valid(schema, {"value": 1, "children": [{"value": "2"}]})


class Report(BaseModel):
    text: str
    scan: bytes


@pytest.mark.parametrize("annotation", [dict, dict[str, int], None, list[int], bytes, Any, "Report | None"])
def test_a_return_annotation_that_promises_no_fields_has_no_schema(annotation: Any, load_plugin: LoadPlugin) -> None:
    def run(payload: dict):
        return {}

    run.__annotations__["return"] = annotation

    assert load_plugin(run).manifest.output_schema is None


def test_a_return_annotation_with_fields_has_a_schema(load_plugin: LoadPlugin) -> None:
    def run(payload: dict) -> Report: ...

    assert load_plugin(run).manifest.output_schema == {
        "type": "object",
        "title": "Report",
        "properties": {"text": {"type": "string"}, "scan": BYTES},
        "required": ["text", "scan"],
    }


@pytest.mark.parametrize(
    "kind",
    [
        set[str],
        list[frozenset[int]],
        datetime.timedelta,
        complex,
        dict[int, str],
        dict[datetime.date, int],
        collections.abc.Iterable[int],
    ],
)
def test_no_schema_promises_what_is_refused_in_a_result(kind: Any, load_plugin: LoadPlugin) -> None:
    def run(payload: dict):
        return {}

    run.__annotations__["return"] = create_model("Report", field=(kind, ...))

    assert load_plugin(run).manifest.output_schema is None


def sample(
    count: int,
    image: bytes | None = None,
    ratio: float = 0.5,
    flag: bool = False,
    label: str | None = None,
    tags: list[str] = [],  # noqa: B006
    level: Annotated[int, Field(ge=0, le=3)] = 0,
) -> dict[str, Any]:
    return {}


SAMPLE = load(PluginSource(name="s", value=f"{__name__}:sample", distribution="tests", distribution_version="1"))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.sampled_from(["", "5", "true", "image/png"]),
    st.lists(st.sampled_from(["a", 1, True, None]), max_size=2),
    st.dictionaries(st.just("a"), st.just(1)),
    st.sampled_from([b"", b"x"]),
)
optional = ["image", "ratio", "flag", "label", "tags", "level", "mime_type", "other"]
payloads = st.fixed_dictionaries({"count": st.integers(0, 3) | scalars}, optional=dict.fromkeys(optional, scalars))


@given(payloads)
def test_the_schema_and_bind_agree_on_every_payload(payload: dict[str, Any]) -> None:
    # In JSON, bytes are base64 text and text is never bytes: only places where the schema has bytes may hold them.
    if any(type(value) is bytes for name, value in payload.items() if name != "image"):
        return
    if isinstance(payload.get("image"), str):
        return
    as_json = {
        name: base64.b64encode(value).decode() if type(value) is bytes else value for name, value in payload.items()
    }
    try:
        SAMPLE.bind(payload, None)  # type: ignore[arg-type]  # sample asks for no context
    except InputInvalidError:
        is_bound = False
    else:
        is_bound = True

    assert jsonschema_rs.is_valid(SAMPLE.manifest.input_schema, as_json) is is_bound


def test_every_schema_can_be_stored() -> None:
    check_document(SAMPLE.manifest.input_schema)


@pytest.mark.parametrize(
    "annotation", [Page, Literal[1, "a"], Any, None, type(None), Annotated[Page, "note"], tuple[()], "int"]
)
def test_annotations_without_scalars_stay_as_they_are(annotation: Any) -> None:
    assert strict(annotation) == annotation


def test_the_worker_of_an_untyped_plugin_does_not_import_pydantic() -> None:
    script = """
import sys
from service.plugins.loading import load
from service.plugins.manifest import PluginSource
load(PluginSource(name="echo", value="service.plugins.builtin.echo:echo", distribution="x", distribution_version="1"))
print(sorted({"pydantic", "aiohttp", "sqlalchemy", "importlib.metadata"} & sys.modules.keys()))
"""
    done = run_command([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
