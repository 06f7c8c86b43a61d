"""The rules that every payload keeps, typed or not: what `image` and `mime_type` are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from service.errors import FieldProblem, InputInvalidError, PluginDefinitionError

BYTES_SCHEMA: Final[Mapping[str, Any]] = MappingProxyType({"type": "string", "contentEncoding": "base64"})


class Input(Protocol):
    """What a plugin accepts: `schema` to publish, `arguments` to turn a payload into named arguments of `run`."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of the payload."""

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name; raises `InputInvalidError`."""


@dataclasses.dataclass(frozen=True, slots=True)
class UntypedInput:
    """The whole payload, as it comes, for one parameter. Anything is accepted that keeps the rules of this module."""

    parameter: str
    schema: dict[str, Any] = dataclasses.field(
        default_factory=lambda: with_image_rule(
            {"type": "object", "properties": {"image": dict(BYTES_SCHEMA)}, "additionalProperties": True}
        )
    )

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the payload; raises `InputInvalidError` where `image` or `mime_type` breaks the rules."""
        problems = list(image_problems(payload))
        if problems:
            raise InputInvalidError(problems)
        return {self.parameter: dict(payload)}


def image_problems(payload: Mapping[str, Any], *, declared: Collection[str] = ()) -> Iterator[FieldProblem]:
    """What is wrong with `image` and `mime_type`: `image` is non-empty bytes and comes with a non-empty `mime_type`.

    `declared` are the names whose types the plugin gave: for those, None is for its annotations to judge.
    """
    has_image = "image" in payload and not ("image" in declared and payload["image"] is None)
    if has_image and not (type(payload["image"]) is bytes and payload["image"]):
        yield FieldProblem("/image", "must be bytes and not empty")
    if "mime_type" in payload:
        mime_type = payload["mime_type"]
        is_for_annotations = mime_type is None and "mime_type" in declared and not has_image
        if not (is_for_annotations or (isinstance(mime_type, str) and mime_type)):
            yield FieldProblem("/mime_type", "must be text and not empty")
    elif has_image:
        yield FieldProblem("/mime_type", "is required where image is given")


def with_image_rule(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, of an object, with the rules of `image_problems` written into it as far as JSON Schema can say them.

    Raises `PluginDefinitionError` where `image` is declared as something else than bytes, or `mime_type` than text.
    """
    properties = schema.setdefault("properties", {})
    mime_type = properties.setdefault("mime_type", {"type": "string"})
    if mime_type.get("type") == "string":
        mime_type.setdefault("minLength", 1)
    if all(_is_no_text(branch) for branch in mime_type.get("anyOf", [mime_type])):
        raise PluginDefinitionError(
            "an argument named mime_type is text (or text | None): give other types another name"
        )
    image = properties.get("image")
    if image is None:
        return schema
    branches = image.get("anyOf", [image])
    bytes_branches = [branch for branch in branches if branch.get("contentEncoding") == "base64"]
    if not bytes_branches:
        raise PluginDefinitionError("an argument named image is bytes (or bytes | None): give other types another name")
    for branch in bytes_branches:
        branch.setdefault("minLength", 1)
    required = schema.get("required", [])
    if "image" in required:
        schema["required"] = [*required, *({"mime_type"} - set(required))]
    elif len(branches) == 1:
        schema["dependentRequired"] = {"image": ["mime_type"]}
    else:
        schema["if"] = {"properties": {"image": {"not": {"type": "null"}}}, "required": ["image"]}
        schema["then"] = {"required": ["mime_type"]}
    return schema


def _is_no_text(branch: Mapping[str, Any]) -> bool:
    return branch.get("type", "string") != "string" or "contentEncoding" in branch
