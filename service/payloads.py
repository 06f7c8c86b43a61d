"""What a plugin accepts, checked from its schema alone, before a job is queued."""

from __future__ import annotations

import binascii
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jsonschema_rs

from service.codec import (
    BYTES_KEY,
    MAX_BYTES_VALUES,
    check_document,
    decode,
    encode,
    escape_pointer,
    off_loop,
    plain_text,
)
from service.errors import NOT_A_FIELD, FieldProblem, NotStorableError

MAX_PROBLEMS: Final = 20
#: Base64 is decoded in pieces of so many characters: the decoder holds the interpreter for each piece.
_PIECE: Final = 1024 * 1024

_MUST_BE_BYTES: Final = 'must be bytes: base64 text, or {"$bytes": base64 text}'

#: Longer chains of references lead in a circle.
_MOST_REFERENCES: Final = 8
#: What a schema says of members beside the named ones.
_OF_ITEMS: Final = ("items", "prefixItems", "additionalProperties")

#: Patterns are ECMA's in JSON Schema: `\w`, `\d` and `\b` know ASCII only, `\Z` is unknown, and a class in a class or
#: an intersection means something else. Too many found is no harm: the worker reads them with the plugin's own engine.
_CLASS_OF_TEXT: Final = re.compile(r"\\[abdswz]", re.IGNORECASE)
_CLASS_OF_CLASSES: Final = re.compile(r"\[\^?\]?[^\]]*(?:\[|&&|--|~~)")
_ESCAPED: Final = re.compile(r"\\.", re.DOTALL)

JSONSchema = Mapping[str, Any]


class InputSchema:
    """A plugin's input schema (2020-12), where `contentEncoding: base64` marks bytes.

    Raises `ValueError` if it is broken, or refers to anything outside itself: a schema is data, and opens nothing.
    """

    def __init__(self, schema: JSONSchema) -> None:
        self._schema = schema
        self._validator = jsonschema_rs.Draft202012Validator(_checkable(schema), retriever=_refuse)
        properties = schema.get("properties", {})
        self._bytes_fields = frozenset(name for name, field in properties.items() if "bytes" in self._kinds_of(field))
        #: Whether bytes may only stand at the top: a document without these fields then has none to decode.
        self._is_flat = _count_bytes(schema) == sum(_count_bytes(properties[name]) for name in self._bytes_fields)
        self.bytes_field: str = next(iter(self._bytes_fields)) if len(self._bytes_fields) == 1 else "image"

    async def accept(self, payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldProblem]]:
        """The payload, `{"$bytes": ...}` and base64 text where bytes belong decoded; and what is wrong with it."""
        if self._is_flat and self._bytes_fields.isdisjoint(payload) and plain_text(payload) is not None:
            return dict(payload), self._problems_of(payload)
        return await off_loop(payload, self._accept, payload)

    def _accept(self, payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldProblem]]:
        problems: list[FieldProblem] = []
        document = self._decoded(dict(payload), self._schema, "", problems)
        try:
            check_document(document)
        except NotStorableError as error:
            problems.append(error.problem)
        if problems:
            return document, problems
        if (held := _bytes_values_in(document)) > MAX_BYTES_VALUES:
            return document, [FieldProblem("", f"holds {held} bytes values, more than {MAX_BYTES_VALUES}")]
        return document, self._problems_of(_stand_in(document))

    def _problems_of(self, stand_in: Mapping[str, Any]) -> list[FieldProblem]:
        if self._validator.is_valid(stand_in):
            return []
        found = (problem for error in self._validator.iter_errors(stand_in) for problem in _problems(error))
        return list(dict.fromkeys(itertools.islice(found, MAX_PROBLEMS)))

    def from_text(self, field: str, text: str) -> Any:
        """`text` as the value of a top-level field: as JSON where the schema wants no text, else as it is."""
        kinds = self._kinds_of(self._schema.get("properties", {}).get(field, {})) - {"null"}
        if not kinds or kinds & {"string", "bytes"}:
            return text
        try:
            return decode(text)
        except ValueError:
            return text

    def _decoded(self, value: Any, schema: JSONSchema, pointer: str, problems: list[FieldProblem]) -> Any:
        if type(value) is bytes:
            return value
        if type(value) is dict and value.keys() == {BYTES_KEY}:
            return _from_base64(value[BYTES_KEY], pointer, problems)
        kinds = self._kinds_of(schema)
        if "bytes" in kinds and "string" not in kinds:
            if type(value) is str:
                return _from_base64(value, pointer, problems)
            if kinds <= {"bytes", "null"} and (value is not None or "null" not in kinds):
                problems.append(FieldProblem(pointer, _MUST_BE_BYTES))
                return b""
        schema = self._resolved(schema, value)
        if type(value) is dict:
            properties, others = schema.get("properties", {}), _schema(schema.get("additionalProperties"))
            return {
                key: self._decoded(item, properties.get(key, others), f"{pointer}/{escape_pointer(key)}", problems)
                for key, item in value.items()
            }
        if type(value) is list:
            first, others = schema.get("prefixItems", ()), _schema(schema.get("items"))
            return [
                self._decoded(item, first[index] if index < len(first) else others, f"{pointer}/{index}", problems)
                for index, item in enumerate(value)
            ]
        return value

    def _referenced(self, schema: JSONSchema) -> JSONSchema:
        """`schema` without a reference at its top."""
        for _ in range(_MOST_REFERENCES):
            if "$ref" not in schema:
                return schema
            schema = self._schema.get("$defs", {}).get(str(schema["$ref"]).removeprefix("#/$defs/"), {})
        return {}

    def _branches(self, schema: Any) -> list[JSONSchema]:
        """What a value of `schema` may be: the branches of its choices, and of the choices in these, each once."""
        found, pending, seen = [], [schema], set[int]()
        for each in pending:
            branch = self._referenced(_schema(each))
            if id(branch) in seen:
                continue
            seen.add(id(branch))
            choice = _choice(branch)
            if choice is None:
                found.append(branch)
            else:
                pending.extend(choice)
        return found

    def _resolved(self, schema: JSONSchema, value: Any) -> JSONSchema:
        """What `schema` says of an object or list: of a choice, what the branches say that `value` may be of.

        A member is then a choice itself, and what a value of different branches is, is left to the worker: this check
        is never stricter than the plugin's types.
        """
        branches = self._branches(schema)
        of_kind = branches if len(branches) == 1 else [branch for branch in branches if _is_of_kind(value, branch)]
        if len(of_kind) == 1:  # even where it does not fit: so its bytes are not told to be wrong, too
            return of_kind[0]
        fitting = [branch for branch in of_kind if self._may_be(value, branch)]
        named = {name: field for branch in fitting for name, field in branch.get("properties", {}).items()}
        members = {
            name: {"anyOf": [_member(branch, name, field) for branch in fitting]} for name, field in named.items()
        }
        rest = {key: branch[key] for branch in fitting for key in _OF_ITEMS if key in branch}
        same = {key: each for key, each in rest.items() if all(branch.get(key) == each for branch in fitting)}
        return {"properties": members, **same}

    def _may_be(self, value: Any, branch: JSONSchema) -> bool:
        """Whether `value`, of the branch's kind, is of the branch, as far as names and constants tell."""
        if type(value) is not dict:
            return True
        constants = {name: field["const"] for name, field in branch.get("properties", {}).items() if "const" in field}
        return value.keys() >= set(branch.get("required", ())) and all(
            value.get(name, constant) == constant for name, constant in constants.items()
        )

    def _kinds_of(self, schema: JSONSchema) -> set[str]:
        """The JSON types a field may have, `bytes` among them."""
        return {kind for branch in self._branches(schema) for kind in _kinds(branch)}


def _is_of_kind(value: Any, branch: JSONSchema) -> bool:
    kind = "object" if type(value) is dict else "array" if type(value) is list else None
    return kind is not None and kind in branch.get("type", kind)


def _kinds(branch: JSONSchema) -> Sequence[str]:
    if branch.get("contentEncoding") == "base64":
        return ["bytes"]
    kinds = branch.get("type", "string")  # what says nothing may be text, among others
    return [kinds] if isinstance(kinds, str) else kinds


def _member(branch: JSONSchema, name: str, unsaid: JSONSchema) -> JSONSchema:
    """What `branch` says of a member of an object; `unsaid` where it would take no notice of it."""
    others = branch.get("additionalProperties", "type" not in branch)
    field: JSONSchema = branch.get("properties", {}).get(name, unsaid if others is False else _schema(others))
    return field


def _choice(schema: JSONSchema) -> Sequence[JSONSchema] | None:
    """The branches of which a value is one."""
    return schema.get("anyOf") or schema.get("oneOf")


def _schema(rule: Any) -> JSONSchema:
    """A rule that may be a plain yes or no, as a schema."""
    return rule if isinstance(rule, dict) else {}


def _refuse(uri: str) -> Any:
    raise ValueError(f"a schema may only refer to itself, not to {uri}")


def _from_base64(text: Any, pointer: str, problems: list[FieldProblem]) -> bytes:
    if isinstance(text, str):
        try:
            if len(text) % 4 == 0:
                pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
                decoded = [binascii.a2b_base64(piece, strict_mode=True) for piece in pieces]
                if all(len(piece) % 3 == 0 for piece in decoded[:-1]):
                    return b"".join(decoded)
        except ValueError:
            pass
    problems.append(FieldProblem(pointer, "is not valid base64 (RFC 4648 §4, with padding)"))
    return b""


def _stand_in(value: Any) -> Any:
    """`value` with each bytes replaced by `{"$bytes": length of its base64}`, which `_checkable` schemas describe."""
    if type(value) is bytes:
        return {BYTES_KEY: 4 * -(-len(value) // 3)}
    if type(value) is dict:
        return {key: _stand_in(item) for key, item in value.items()}
    if type(value) is list:
        return [_stand_in(item) for item in value]
    return value


def _bytes_values_in(value: Any) -> int:
    if type(value) is dict:
        return sum(map(_bytes_values_in, value.values()))
    return sum(map(_bytes_values_in, value)) if type(value) is list else type(value) is bytes


def _count_bytes(schema: Any) -> int:
    """How many places of `schema` are bytes."""
    if isinstance(schema, dict):
        return (schema.get("contentEncoding") == "base64") + sum(map(_count_bytes, schema.values()))
    return sum(map(_count_bytes, schema)) if isinstance(schema, list) else 0


def _checkable(schema: Any) -> Any:
    """`schema` with bytes described as their stand-in, which no other object is, and without doubtful patterns."""
    if isinstance(schema, dict):
        if schema.get("contentEncoding") == "base64":
            bounds = {"minLength": "minimum", "maxLength": "maximum"}
            length = {bounds[name]: limit for name, limit in schema.items() if name in bounds}
            stand_in = {"required": [BYTES_KEY], "properties": {BYTES_KEY: {"type": "integer", **length}}}
            return {"allOf": [{"type": "object"}], **stand_in}  # so it is known that bytes are missing, not an object
        described = {
            key: _checkable(rule) for key, rule in schema.items() if not (key == "pattern" and _is_doubtful(rule))
        }
        if "object" in schema.get("type", ()):
            # The stand-in is an object too, which an object of any fields, or of integers, would let pass as its own.
            described["properties"] = {**described.get("properties", {}), BYTES_KEY: False}
        return described
    if isinstance(schema, list):
        return [_checkable(item) for item in schema]
    return schema


def _is_doubtful(pattern: Any) -> bool:
    """Whether `pattern` is one that this check may read more strictly than the plugin's types do."""
    if not isinstance(pattern, str):
        return False  # a field of that name
    return bool(_CLASS_OF_TEXT.search(pattern) or _CLASS_OF_CLASSES.search(_ESCAPED.sub("", pattern)))


def _problems(error: jsonschema_rs.ValidationError) -> Iterator[FieldProblem]:
    path: Sequence[str | int] = error.instance_path
    kinds = jsonschema_rs.ValidationErrorKind
    is_stand_in = isinstance(error.instance, dict) and BYTES_KEY in error.instance
    match error.kind:
        case kinds.FalseSchema() if path and path[-1] == BYTES_KEY:
            yield FieldProblem(_pointer(*path[:-1]), "must not be bytes here")
        case kinds.AnyOf() | kinds.OneOfNotValid() if is_stand_in:
            yield FieldProblem(_pointer(*path), "must not be bytes here, or not of this length")
        case _ if is_stand_in:
            yield FieldProblem(_pointer(*path), "must not be bytes here")
        case _ if _misses_bytes(error):
            yield FieldProblem(_pointer(*path), _MUST_BE_BYTES)
        case kinds.AnyOf() | kinds.OneOfNotValid():
            yield from _problems_of_choice(error)
        case kinds.Not() if error.kind.schema == {}:
            yield FieldProblem(_pointer(*path), "must not be given: no JSON is a value of it")
        case kinds.Required():
            yield FieldProblem(_pointer(*path, error.kind.property), "is required")
        case kinds.AdditionalProperties():
            for name in error.kind.unexpected:
                yield FieldProblem(_pointer(*path, name), NOT_A_FIELD)
        case _ if path and path[-1] == BYTES_KEY:
            yield FieldProblem(_pointer(*path[:-1]), "is empty, or not of the length the plugin takes")
        case _:
            yield FieldProblem(_pointer(*path), error.message[:500])


def _problems_of_choice(error: jsonschema_rs.ValidationError) -> Iterator[FieldProblem]:
    """What is wrong by the one branch that is meant for such values; where none is, which values there are."""
    kind: Any = error.kind
    branches: Sequence[Sequence[jsonschema_rs.ValidationError]] = kind.context
    path = error.instance_path
    types = [name for found in branches for each in found for name in _types(each, path)]
    constants: list[Any] = [each for found in branches for each in found if _is_constant_in(each, path)]
    fitting = [found for found in branches if not any(_types(each, path) or each in constants for each in found)]
    if len(fitting) == 1:
        for each in fitting[0]:
            yield from _problems(each)
    elif fitting:
        yield FieldProblem(_pointer(*path), error.message[:500])
    elif constants:
        values = dict.fromkeys(encode(each.kind.expected_value) for each in constants)
        yield FieldProblem(_pointer(*constants[0].instance_path), f"must be {' or '.join(values)}")
    else:
        yield FieldProblem(_pointer(*path), f"must be of type {' or '.join(dict.fromkeys(types))}")


def _types(error: jsonschema_rs.ValidationError, path: Sequence[str | int]) -> Sequence[str]:
    """The types, `bytes` among them, that the value at `path` had to have; none where it is of the right one."""
    if error.instance_path != path:
        return []
    if _misses_bytes(error):
        return ["bytes"]
    return error.kind.types if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Type) else []


def _misses_bytes(error: jsonschema_rs.ValidationError) -> bool:
    """Whether the value had to be bytes, going by what `_checkable` makes of them."""
    kinds = jsonschema_rs.ValidationErrorKind
    match error.kind:
        case kinds.Required():
            return error.kind.property == BYTES_KEY
        case kinds.Type():
            return error.schema_path[-3:] == ["allOf", 0, "type"] and error.kind.types == ["object"]
    return False


def _is_constant_in(error: jsonschema_rs.ValidationError, path: Sequence[str | int]) -> bool:
    """Whether a member of the object at `path` tells that the object is another one than `error` speaks of."""
    is_constant = isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Constant)
    return is_constant and bool(error.instance_path) and error.instance_path[:-1] == path


def _pointer(*tokens: str | int) -> str:
    return "".join(f"/{escape_pointer(str(token))}" for token in tokens)
