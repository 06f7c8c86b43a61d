"""JSON Schema from annotations, and payloads made into the values that the annotations promise.

Imported only for plugins with typed input or output: the worker of an untyped one starts without pydantic.
"""

from __future__ import annotations

import base64
import collections.abc
import contextlib
import dataclasses
import enum
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    EncodedBytes,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic.errors import (
    PydanticInvalidForJsonSchema,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    PydanticUserError,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import ErrorDetails, SchemaError, core_schema

from service.codec import check_document, encode, escape_pointer, storable_text
from service.errors import NOT_A_FIELD, FieldProblem, InputInvalidError, NotStorableError, PluginDefinitionError
from service.plugins.payload import BYTES_SCHEMA, image_problems, with_image_rule

MAX_PROBLEMS: Final = 20
MAX_PROBLEM_CHARS: Final = 1_000

_CANNOT_DESCRIBE: Final = (PydanticUserError, PydanticUndefinedAnnotation, SchemaError)
_NOT_JSON: Final = (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError)
#: The pattern in what the regular expressions of pydantic say of it.
_PATTERN: Final = re.compile(r"regex parse error:\n\s+(.*)\n")
_CONTAINERS: Final = frozenset({list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set})
_MAPPINGS: Final = frozenset({dict, collections.abc.Mapping})
_STRICT_SCALARS: Final = frozenset({bool, float, str, bytes})
#: What a member of an enumeration, or a value of a `Literal`, can be to be equal to something that was sent.
_SENT: Final = (str, int, float, bytes, list, dict, types.NoneType)
#: What pydantic makes text of where it is a key, and a result does not.
_NO_KEYS: Final = frozenset({"bool", "bytes", "date", "datetime", "decimal", "float", "int", "time", "tuple", "uuid"})
_WHY_NOT: Final = (
    "where it takes only tuples, dates or the like, or only the members of an enumeration that a Literal names: "
    "give the values as text or numbers, and derive such an enumeration from StrEnum or IntEnum"
)


class TypedInput:
    """What a plugin with annotations accepts. `schema` is closed unless the plugin's own model is open."""

    def __init__(self, annotation: Any, readers: Mapping[str, _Reader]) -> None:
        """`annotation` is of the whole payload; `readers` make the arguments of `run`, by name."""
        schema = _object_schema(TypeAdapter(annotation), "validation")
        if schema is None:
            raise PluginDefinitionError(
                "a payload is a JSON object: run must take one type that is made from one. A choice of types is for a "
                "field of it: give the argument another name than payload"
            )
        self._readers = readers
        for name in schema.get("required", ()):
            if _fits_nothing(schema["properties"][name], schema.get("$defs", {})):
                raise PluginDefinitionError(f"no JSON is a value of {name}, {_WHY_NOT}")
        others = schema.setdefault("additionalProperties", False)
        self._is_closed = others is False
        self._declared = frozenset(schema["properties"])
        # A type for all other fields (`dict[str, int]`) does not ask for this one; a model open to any field does.
        self._takes_mime_type = others is True or "mime_type" in self._declared
        self.schema = with_image_rule(schema)
        try:
            check_document(self.schema)
        except NotStorableError as error:
            raise PluginDefinitionError(f"the schema of the arguments is not JSON: {error}") from error

    @classmethod
    def of_parameters(cls, parameters: Sequence[Parameter], hints: Mapping[str, Any]) -> TypedInput:
        """Named arguments; raises `PluginDefinitionError` where one cannot be described in JSON Schema."""
        # The fields get names of ours: `copy` and `model_config` are good arguments, but no names for a model's fields.
        fields = {f"field_{index}": parameter for index, parameter in enumerate(parameters)}
        definitions: dict[str, Any] = {
            field: (
                Annotated[strict(hints[parameter.name]), Field(alias=parameter.name)],
                ... if parameter.default is Parameter.empty else parameter.default,
            )
            for field, parameter in fields.items()
        }
        try:
            readers = {
                parameter.name: _Reader(create_model("Payload", **{field: definitions[field]}), parameter.name, field)
                for field, parameter in fields.items()
            }
            made = cls(create_model("Payload", **definitions), readers)
        except _CANNOT_DESCRIBE as error:
            for field, parameter in fields.items():
                _check_argument(parameter.name, hints[parameter.name], definitions[field])
            raise PluginDefinitionError(f"the arguments of run: {_reason(error)}") from error
        made.schema.pop("title", None)
        return made

    @classmethod
    def of_payload(cls, parameter: Parameter, hint: Any) -> TypedInput:
        """One argument that is the whole payload: a pydantic model, a dataclass, a TypedDict."""
        try:
            return cls(hint, {parameter.name: _Reader(hint)})
        except _CANNOT_DESCRIBE as error:
            _check_argument(parameter.name, hint, (hint, ...))
            raise PluginDefinitionError(f"argument {parameter.name}: {_reason(error)}") from error

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, `mime_type` among them only where the plugin takes it; raises `InputInvalidError`."""
        problems = list(image_problems(payload, declared=self._declared))
        document = dict(payload)
        if not self._takes_mime_type:
            document.pop("mime_type", None)
        if self._is_closed:
            unknown = [key for key in document if key not in self._declared]
            problems += [FieldProblem(f"/{escape_pointer(key)}", NOT_A_FIELD) for key in unknown]
        told = {problem.pointer for problem in problems}
        values: dict[str, Any] = {}
        for name, reader in self._readers.items():
            try:
                values[name] = reader.read(document)
            except ValidationError as error:
                problems += [problem for problem in _problems(error, document) if problem.pointer not in told]
        if problems:
            raise InputInvalidError(problems[:MAX_PROBLEMS])
        return values


class _Reader:
    """Makes one argument of `run`: of the whole payload, or `field` of a model of what the payload has as `name`.

    What has no place for bytes is read as the JSON it came as: of that, strict models take text for a date, say. In
    JSON any text would do for bytes, so the rest is read as Python objects.
    """

    def __init__(self, annotation: Any, name: str | None = None, field: str | None = None) -> None:
        self._name, self._field = name, field
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        self._is_json = not _has_bytes(self._adapter.json_schema(schema_generator=_Generator))

    def read(self, payload: Mapping[str, Any]) -> Any:
        """The argument; raises `ValidationError`."""
        if self._name is not None:
            payload = {self._name: payload[self._name]} if self._name in payload else {}
        text = None
        if self._is_json:
            with contextlib.suppress(TypeError):  # bytes, where anything may stand: nothing else stops the encoder
                text = encode(payload)
        value = self._adapter.validate_python(payload) if text is None else self._adapter.validate_json(text)
        return value if self._field is None else getattr(value, self._field)


def _has_bytes(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("contentEncoding") == "base64" or any(map(_has_bytes, schema.values()))
    return isinstance(schema, list) and any(map(_has_bytes, schema))


def _check_argument(name: str, hint: Any, definition: Any) -> None:
    """Raise `PluginDefinitionError` where the argument cannot be described, saying what is wrong with it."""
    try:
        TypeAdapter(create_model("Argument", value=definition)).json_schema(schema_generator=_Generator)
    except _NOT_JSON as error:
        kind = inspect.formatannotation(hint)
        raise PluginDefinitionError(
            f"argument {name} is {kind}, which has no form in JSON: give it another type"
        ) from error
    except _CANNOT_DESCRIBE as error:
        pattern = _PATTERN.search(str(error))
        what = f"the pattern {pattern[1]!r} of argument {name} cannot be used" if pattern else f"argument {name}"
        raise PluginDefinitionError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The line in which pydantic says what is wrong; around it are its own names, and addresses of its pages."""
    if isinstance(error, SchemaError):
        return str(error).splitlines()[-1].partition(": ")[2]
    return str(getattr(error, "message", error)).partition("\n")[0]


def output_schema(annotation: Any) -> dict[str, Any] | None:
    """The schema of the JSON that a pydantic model, dataclass or TypedDict becomes; None for other annotations.

    None also where a field cannot be described: what `run` returns is judged by its value, not by its annotation.
    """
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if not (is_model or dataclasses.is_dataclass(annotation) or typing.is_typeddict(annotation)):
        return None
    try:
        schema = _object_schema(TypeAdapter(annotation), "serialization", _OutputGenerator)
        check_document(schema)
    except (*_CANNOT_DESCRIBE, NotStorableError):
        return None
    return schema


def strict(annotation: Any) -> Any:
    """`annotation` with its scalars as strict as JSON Schema: no `"5"` for an int, no `1` for a bool; 5.0 is an int.

    Models, dataclasses and TypedDicts inside keep the rules they were written with.
    """
    if annotation is int:
        return Annotated[int, Strict(), BeforeValidator(_integral)]
    if isinstance(annotation, type) and annotation in _STRICT_SCALARS:
        return Annotated[annotation, Strict()]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *metadata = arguments
        # Around a plain int the validator goes last: constraints after a validator miss the published schema.
        if base is int:
            return Annotated[(int, Strict(), *metadata, BeforeValidator(_integral))]
        return Annotated[(strict(base), *metadata)]
    if origin is Union or origin is types.UnionType:
        return Union[tuple(map(strict, arguments))]  # noqa: UP007 - the members are known at run time only
    if origin in _MAPPINGS:
        key, item = arguments
        return origin[_key(key), strict(item)]
    if origin in _CONTAINERS:
        return origin[tuple(map(strict, arguments))]
    return annotation


def _key(annotation: Any) -> Any:
    """`annotation` of a key, which in JSON is text whatever it becomes; pydantic reads numbers, but no constants."""
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum) and not issubclass(annotation, enum.Flag):
        values = tuple(member.value for member in annotation)
    else:
        return annotation
    of_text = {str(int(value)): value for value in values if isinstance(value, int) and not isinstance(value, bool)}
    if not of_text or len(of_text) < len(values):
        return annotation
    published = WithJsonSchema({"type": "string", "enum": [*of_text]})
    return Annotated[annotation, BeforeValidator(lambda key: of_text.get(key, key)), published]


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Generator(GenerateJsonSchema):
    """Bytes are base64 text, of whose length the limits then speak; titles only where somebody wrote one."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """Keep quiet: a default that is no JSON stays out of the schema, which is what the warning would say."""

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        published: JsonSchemaValue = dict(BYTES_SCHEMA)
        for keyword, length in (("minLength", schema.get("min_length")), ("maxLength", schema.get("max_length"))):
            if length is not None:
                published[keyword] = 4 * math.ceil(length / 3)
        return published

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        is_decoder = isinstance(getattr(schema["function"]["function"], "__self__", None), EncodedBytes)
        if is_decoder and self.mode == "validation":
            return {"type": "string"}  # `Base64Bytes`, which decodes the text itself: it must not be decoded before
        return super().function_after_schema(schema)

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        if issubclass(schema["cls"], enum.Flag):
            published = super().enum_schema(schema)
            published.pop("enum", None)  # the members alone, of which values are sums
            return published
        reads_itself = schema["cls"]._missing_.__func__ is not vars(enum.Enum)["_missing_"].__func__
        return self._one_of(
            [member for member in schema["members"] if reads_itself or self._is_sent(member.value)],
            lambda member: isinstance(member.value, bytes),
            lambda members: super(_Generator, self).enum_schema({**schema, "members": members}),
        )

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return self._one_of(
            list(filter(self._is_sent, schema["expected"])),
            lambda value: isinstance(value, bytes),
            lambda values: super(_Generator, self).literal_schema({**schema, "expected": values}),
        )

    def _is_sent(self, value: Any) -> bool:
        return self.mode == "serialization" or isinstance(value, _SENT)

    def _one_of(
        self, values: list[Any], is_bytes: Callable[[Any], bool], describe: Callable[[list[Any]], JsonSchemaValue]
    ) -> JsonSchemaValue:
        """Which bytes they are, JSON Schema cannot say."""
        others = [value for value in values if not is_bytes(value)]
        choices = [describe(others)] if others else []
        if len(others) < len(values):
            choices.append(dict(BYTES_SCHEMA))
        if len(choices) == 1:
            return choices[0]
        return {"anyOf": choices} if choices else {"not": {}}

    def encode_default(self, dft: Any) -> Any:
        return base64.b64encode(dft).decode() if isinstance(dft, bytes) else super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _OutputGenerator(_Generator):
    """Cannot describe what `output.plain` refuses, whatever pydantic would make of it."""

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a set")

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a set")

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a duration")

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a complex number")

    def generator_schema(self, schema: core_schema.GeneratorSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a generator")

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        if schema.get("keys_schema", {}).get("type") in _NO_KEYS:
            return self.handle_invalid_for_json_schema(schema, "an object whose keys are not text")
        return super().dict_schema(schema)


def _object_schema(
    adapter: TypeAdapter[Any], mode: JsonSchemaMode, generator: type[_Generator] = _Generator
) -> dict[str, Any] | None:
    """The adapter's schema with references at its top and in `image` resolved; None where it is not an object's."""
    schema = adapter.json_schema(mode=mode, schema_generator=generator)
    definitions = schema.get("$defs", {})
    if "$ref" in schema:
        schema = {**_definition(schema, definitions), "$defs": definitions}
    if schema.get("type") != "object":
        return None
    properties = schema.setdefault("properties", {})
    if "$ref" in properties.get("image", {}):
        properties["image"] = {**_definition(properties["image"], definitions)}
    return schema


def _fits_nothing(schema: JsonSchemaValue, definitions: Mapping[str, Any]) -> bool:
    """Whether no value fits, going by what must be there; a model that needs itself is not looked for."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        others = {key: each for key, each in definitions.items() if key != name}
        return name in definitions and _fits_nothing(definitions[name], others)
    if choice := schema.get("anyOf") or schema.get("oneOf"):
        return all(_fits_nothing(each, definitions) for each in choice)
    needed = (schema.get("properties", {}).get(name, {}) for name in schema.get("required", ()))
    return schema.get("not") == {} or any(_fits_nothing(each, definitions) for each in needed)


def _definition(reference: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[reference["$ref"].removeprefix("#/$defs/")]  # type: ignore[no-any-return]  # plain JSON


def _problems(error: ValidationError, payload: Mapping[str, Any]) -> Iterator[FieldProblem]:
    for details in error.errors(include_url=False, include_input=False):
        yield FieldProblem(_pointer(details, payload), _message(details))


def _pointer(details: ErrorDetails, payload: Any) -> str:
    """Where in `payload` the error is. Pydantic's location also names branches of unions, which no document has."""
    tokens, place = [], payload
    for token in details["loc"]:
        if token in (place if isinstance(place, Mapping) else range(len(place)) if isinstance(place, list) else ()):
            place = place[token]
            tokens.append(token)
    if details["type"] == "missing":
        tokens += details["loc"][-1:]
    return "".join(f"/{escape_pointer(str(token))}" for token in tokens)


def _message(details: ErrorDetails) -> str:
    """The text for people; what a validator raised without pydantic's prefix."""
    raised = details.get("ctx", {}).get("error")
    text = str(raised) if isinstance(raised, Exception) else ""
    return storable_text(text or details["msg"])[:MAX_PROBLEM_CHARS]
