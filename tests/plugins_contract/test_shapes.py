"""Every form a plugin may have is loaded, described and given its arguments; what is no plugin is told why."""

from __future__ import annotations

import asyncio
import collections.abc
import dataclasses
import datetime
import enum
import functools
import inspect
import types
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import AfterValidator, Base64Bytes, Base64UrlBytes, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from service.errors import InputInvalidError, PluginDefinitionError
from service.payloads import InputSchema
from service.plugins.context import Context
from service.plugins.loading import LoadedPlugin, load
from service.plugins.manifest import PluginSource

from .conftest import LoadPlugin

if TYPE_CHECKING:
    from nowhere import OnlyForTypeCheckers

PNG = {"image": b"\x89PNG", "mime_type": "image/png"}


class Numbers(BaseModel):
    a: int
    b: int = 2


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Named(TypedDict):
    title: str


class OpenModel(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


def bare(a: int, b: int = 2) -> dict[str, int]:
    """Adds.

    More about adding.
    """
    return {"sum": a + b}


async def bare_async(a: int, b: int = 2) -> dict[str, int]:
    return {"sum": a + b}


class Typed:
    def run(self, a: int, b: int = 2) -> dict[str, int]:
        return {"sum": a + b}


class AsyncTyped:
    async def run(self, a: int, b: int = 2) -> dict[str, int]:
        return {"sum": a + b}


class WithContext:
    def run(self, a: int, context: OnlyForTypeCheckers, b: int = 2) -> dict[str, Any]:
        return {"sum": a + b, "job": context.job_id}


class PayloadDict:
    def run(self, payload: dict) -> dict:
        return {"sum": payload["a"] + payload.get("b", 2)}


class PayloadDictAny:
    def run(self, anything: dict[str, Any], context: Any = None) -> dict[str, Any]:
        return {"sum": anything["a"] + anything.get("b", 2)}


class PayloadUnannotated:
    def run(self, payload):
        return {"sum": payload["a"] + payload.get("b", 2)}


class Model:
    def run(self, numbers: Numbers) -> dict[str, int]:
        return {"sum": numbers.a + numbers.b}


class Static:
    @staticmethod
    def run(a: int, b: int = 2) -> dict[str, int]:
        return {"sum": a + b}


class PositionalOnly:
    def run(self, a: int, b: int = 2, /) -> dict[str, int]:
        return {"sum": a + b}


class Callable:
    def __call__(self, a: int, b: int = 2) -> dict[str, int]:
        return {"sum": a + b}


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


MODULE = types.ModuleType("module_plugin")
MODULE.run = bare  # type: ignore[attr-defined]

FORMS = {
    "a class with typed arguments": Typed,
    "an async run": AsyncTyped,
    "a context asked for, its annotation not importable": WithContext,
    "the payload dict": PayloadDict,
    "the payload dict under another name": PayloadDictAny,
    "a payload without annotation": PayloadUnannotated,
    "a pydantic model": Model,
    "a static method": Static,
    "positional-only arguments": PositionalOnly,
    "an instance": Typed(),
    "a callable object": Callable(),
    "a bare function": bare,
    "a bare coroutine function": bare_async,
    "a decorated function": decorated(bare),
    "a partial function": functools.partial(bare, b=2),
    "a module": MODULE,
}


@pytest.mark.parametrize("target", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_run_gets_its_arguments(target: Any, load_plugin: LoadPlugin, context: Context) -> None:
    plugin = load_plugin(target)

    args, kwargs = plugin.bind({"a": 40}, context)
    result = plugin.run(*args, **kwargs)
    if inspect.isawaitable(result):
        result = asyncio.run(_outcome(result))

    assert result["sum"] == 42
    assert result.get("job", context.job_id) == context.job_id


async def _outcome(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize("target", FORMS.values(), ids=FORMS.keys())
def test_mime_type_is_always_accepted_and_passed_only_where_it_is_asked_for(
    target: Any, load_plugin: LoadPlugin, context: Context
) -> None:
    plugin = load_plugin(target)

    args, kwargs = plugin.bind({"a": 40, "mime_type": "image/png"}, context)

    assert plugin.manifest.input_schema["properties"]["mime_type"]["type"] == "string"
    if plugin.manifest.untyped:
        assert [*args, *kwargs.values()][0] == {"a": 40, "mime_type": "image/png"}
    else:
        assert "mime_type" not in kwargs


@pytest.mark.parametrize(
    ("annotation", "fields"),
    [(dict[str, int], {"a": 1}), (dict[str, str], {"a": "b"}), (dict[str, bytes], {"a": b"b"})],
)
def test_a_payload_of_one_type_of_fields_comes_without_mime_type(
    annotation: Any, fields: dict[str, Any], load_plugin: LoadPlugin, context: Context
) -> None:
    def run(payload):
        return {}

    run.__annotations__["payload"] = annotation

    assert load_plugin(run).bind({**fields, "mime_type": "image/png"}, context)[1] == {"payload": fields}


def test_mime_type_reaches_a_plugin_that_takes_it(load_plugin: LoadPlugin, context: Context) -> None:
    def run(image: bytes, mime_type: str) -> dict[str, Any]:
        return {}

    assert load_plugin(run).bind(PNG, context) == ((), PNG)


def test_a_payload_is_copied_so_that_a_plugin_cannot_change_the_callers(
    load_plugin: LoadPlugin, context: Context
) -> None:
    payload = {"a": 1}

    _, kwargs = load_plugin(PayloadDict).bind(payload, context)

    assert kwargs["payload"] == payload
    assert kwargs["payload"] is not payload


@pytest.mark.parametrize(("annotation", "payload"), [(Point, {"x": 1, "y": 2}), (Named, {"title": "t"})])
def test_a_parameter_called_payload_may_be_a_dataclass_or_typed_dict(
    annotation: Any, payload: dict[str, Any], load_plugin: LoadPlugin, context: Context
) -> None:
    def run(payload):
        return {}

    run.__annotations__["payload"] = annotation
    plugin = load_plugin(run)

    assert plugin.bind(payload, context)[1] == {"payload": Point(**payload) if annotation is Point else payload}
    assert plugin.manifest.input_schema["additionalProperties"] is False


def test_an_open_model_takes_unknown_fields(load_plugin: LoadPlugin, context: Context) -> None:
    def run(inputs: OpenModel) -> dict[str, Any]:
        return {}

    _, kwargs = load_plugin(run).bind({"a": 1, "extra": True, "mime_type": "text/plain"}, context)

    assert kwargs["inputs"].model_extra == {"extra": True, "mime_type": "text/plain"}


def test_names_that_pydantic_keeps_for_itself_are_good_arguments(load_plugin: LoadPlugin, context: Context) -> None:
    def run(copy: int, model_config: str, _private: bool, json: int = 3) -> dict[str, Any]:
        return {}

    _, kwargs = load_plugin(run).bind({"copy": 1, "model_config": "x", "_private": True}, context)

    assert kwargs == {"copy": 1, "model_config": "x", "_private": True, "json": 3}


def test_what_a_plugin_does_not_say_comes_from_its_distribution_and_its_docstring(load_plugin: LoadPlugin) -> None:
    manifest = load_plugin(bare).manifest

    assert (manifest.name, manifest.version, manifest.description) == ("sample", "7.8.9", "Adds.")
    assert (manifest.timeout_s, manifest.memory_mb, manifest.concurrency, manifest.short) == (None, None, None, False)


def test_a_function_with_some_arguments_given_is_described_by_its_own_docstring(load_plugin: LoadPlugin) -> None:
    assert load_plugin(functools.partial(bare, b=3)).manifest.description == "Adds."


def test_every_attribute_stands_in_the_manifest(load_plugin: LoadPlugin) -> None:
    class Full:
        name = "sample"
        version = "1.2.0"
        description = "Does it all."
        timeout_s = np.float64(30)
        setup_timeout_s = 90.5
        memory_mb = 512
        concurrency = 4
        short = True
        stateful = False

        def setup(self) -> None: ...

        def run(self) -> dict[str, Any]:
            return {}

        def teardown(self) -> None: ...

    plugin = load_plugin(Full)

    told = dataclasses.asdict(plugin.manifest)
    assert type(told["timeout_s"]) is float
    assert {name: told[name] for name in ("version", "description", "timeout_s", "setup_timeout_s", "memory_mb")} == {
        "version": "1.2.0",
        "description": "Does it all.",
        "timeout_s": 30,
        "setup_timeout_s": 90.5,
        "memory_mb": 512,
    }
    assert (told["concurrency"], told["short"]) == (4, True)
    assert plugin.setup is not None
    assert plugin.teardown is not None


def with_attributes(**attributes: Any) -> Any:
    return type("Sample", (), {"run": lambda self, payload: {}, **attributes})


def needs_arguments(self: Any, model: str) -> None: ...


def generator(payload: dict) -> Any:
    yield {}


async def async_generator(payload: dict) -> Any:
    yield {}


def unannotated(image, width: int):
    return {}


def variadic(*images: bytes) -> dict[str, Any]:
    return {}


def keywords(**options: int) -> dict[str, Any]:
    return {}


def unresolvable(image: OnlyForTypeCheckers) -> dict[str, Any]:
    return {}


class Foreign:
    """A type that JSON knows nothing of."""


def foreign(thing: Foreign) -> dict[str, Any]:
    return {}


def callback(number: int, then: collections.abc.Callable[[int], int]) -> dict[str, Any]:
    return {}


def callback_payload(payload: collections.abc.Callable) -> dict[str, Any]:
    return {}


def wrong_pattern(number: int, code: Annotated[str, Field(pattern="[a-")]) -> dict[str, Any]:
    return {}


def wrong_step(step: Annotated[int, Field(multiple_of=0)]) -> dict[str, Any]:
    return {}


def text_image(image: str) -> dict[str, Any]:
    return {}


def number_mime_type(mime_type: int) -> dict[str, Any]:
    return {}


def bytes_mime_type(mime_type: bytes | None) -> dict[str, Any]:
    return {}


class Pair(enum.Enum):
    ONE_TWO = (1, 2)


class Kind(enum.Enum):
    CAT = "cat"
    DOG = "dog"


class Cat(BaseModel):
    kind: Literal[Kind.CAT]


class Dog(BaseModel):
    kind: Literal[Kind.DOG]


def pair(pair: Pair | Literal[Kind.CAT]) -> dict[str, Any]:
    return {}


def pet(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> dict[str, Any]:
    return {}


def pet_payload(payload: Cat) -> dict[str, Any]:
    return {}


def choice_payload(payload: Cat | Dog) -> dict[str, Any]:
    return {}


def list_payload(payload: list[int]) -> dict[str, Any]:
    return {}


def not_json_default(scale: float = float("nan")) -> dict[str, Any]:
    return {}


BREACHES = [
    (with_attributes(name="other"), "entry point is called 'sample'"),
    (with_attributes(name=5), "attribute name must be text"),
    (with_attributes(version=""), "attribute version"),
    (with_attributes(description=1), "attribute description"),
    (with_attributes(timeout_s=0), "attribute timeout_s must be a number of seconds above 0, not 0"),
    (with_attributes(timeout_s="30"), "attribute timeout_s"),
    (with_attributes(setup_timeout_s=float("inf")), "attribute setup_timeout_s"),
    (with_attributes(memory_mb=True), "attribute memory_mb"),
    (with_attributes(concurrency=1.5), "attribute concurrency must be a whole number"),
    (with_attributes(short=1), "attribute short must be True or False"),
    (with_attributes(stateful=True), "any worker may get the next job"),
    (with_attributes(setup="no"), "setup must be a method without arguments"),
    (with_attributes(setup=needs_arguments), "setup must be a method without arguments"),
    (with_attributes(teardown=needs_arguments), "teardown must be a method without arguments"),
    (with_attributes(__init__=needs_arguments), "constructor of Sample must not need arguments"),
    (with_attributes(run=None), "neither a function nor has it a method run"),
    (with_attributes(run="text"), "neither a function nor has it a method run"),
    (types.ModuleType("empty"), "neither a function nor has it a method run"),
    (42, "neither a function nor has it a method run"),
    (generator, "return"),
    (async_generator, "return"),
    (unannotated, "argument image of run has no annotation"),
    (variadic, "name every argument"),
    (keywords, "name every argument"),
    (unresolvable, "OnlyForTypeCheckers"),
    (foreign, r"argument thing is [\w.]+\.Foreign, which has no form in JSON: give it another type$"),
    (callback, r"argument then is [\w.]*Callable\[\[int\], int\], which has no form in JSON: give it another type$"),
    (callback_payload, r"argument payload is [\w.]*Callable, which has no form in JSON: give it another type$"),
    (wrong_pattern, r"^the pattern '\[a-' of argument code cannot be used: unclosed character class$"),
    (wrong_step, r"^argument step: 'multiple_of' must be a finite number greater than 0$"),
    (text_image, "image is bytes"),
    (number_mime_type, "mime_type is text"),
    (bytes_mime_type, "mime_type is text"),
    (pair, "no JSON is a value of pair, .* StrEnum"),
    (pet, "no JSON is a value of pet, "),
    (pet_payload, "no JSON is a value of kind, "),
    (list_payload, "a payload is a JSON object"),
    (choice_payload, "choice of types .* another name than payload"),
    (not_json_default, "/properties/scale/default"),
    (dict.update, "annotation|signature"),
]


@pytest.mark.parametrize(("target", "message"), BREACHES)
def test_a_breach_of_the_contract_says_what_to_change(target: Any, message: str, load_plugin: LoadPlugin) -> None:
    with pytest.raises(PluginDefinitionError, match=message):
        load_plugin(target)


def source(value: str) -> PluginSource:
    return PluginSource(name="sample", value=value, distribution="tests", distribution_version="1")


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(PluginDefinitionError, match="no attribute 'nothing_here'"):
        load(source(f"{__name__}:nothing_here"))


def test_a_missing_module_raises_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load(source("no_such_module:run"))


def test_an_entry_point_may_name_extras_and_nested_attributes() -> None:
    assert load(source(f"{__name__} : Static.run [gpu]")).manifest.untyped is False


def test_what_a_constructor_raises_gets_out_unchanged(load_plugin: LoadPlugin) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ZeroDivisionError

        def run(self, payload: dict) -> dict:
            return payload

    with pytest.raises(ZeroDivisionError):
        load_plugin(Broken)


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


class Inner(BaseModel):
    values: list[int]


def checked(
    count: Annotated[int, Field(ge=0, le=10), AfterValidator(even)],
    flag: bool = False,
    ratio: float = 0.5,
    label: str | None = None,
    inner: Inner | None = None,
    boxes: list[tuple[int, int]] = [],  # noqa: B006
    data: bytes = b"",
) -> dict[str, Any]:
    return {}


REFUSED = [
    ({}, [("/count", "Field required")]),
    ({"count": "5"}, [("/count", "valid integer")]),
    ({"count": True}, [("/count", "valid integer")]),
    ({"count": 2.5}, [("/count", "valid integer")]),
    ({"count": 12}, [("/count", "less than or equal to 10")]),
    ({"count": 3}, [("/count", "must be even")]),
    ({"count": 2, "flag": 1}, [("/flag", "valid boolean")]),
    ({"count": 2, "ratio": "0.5"}, [("/ratio", "valid number")]),
    ({"count": 2, "label": b"x"}, [("/label", "valid string")]),
    ({"count": 2, "data": "x"}, [("/data", "valid bytes")]),
    ({"count": 2, "boxes": [[1, 2], [1, "2"]]}, [("/boxes/1/1", "valid integer")]),
    ({"count": 2, "inner": {"values": [1, "x"]}}, [("/inner/values/1", "valid integer")]),
    ({"count": 2, "inner": {}}, [("/inner/values", "Field required")]),
    ({"count": 2, "what/is~this": 1}, [("/what~1is~0this", "is not a field of this plugin")]),
    ({"flag": 1, "other": 1}, [("/other", "is not a field"), ("/count", "required"), ("/flag", "boolean")]),
    ({"count": 2, "mime_type": ""}, [("/mime_type", "not empty")]),
]


@pytest.mark.parametrize(("payload", "expected"), REFUSED)
def test_bad_input_is_refused_with_the_place_and_the_reason(
    payload: dict[str, Any], expected: list[tuple[str, str]], load_plugin: LoadPlugin, context: Context
) -> None:
    plugin = load_plugin(checked)

    with pytest.raises(InputInvalidError) as refusal:
        plugin.bind(payload, context)

    problems = refusal.value.problems
    assert [problem.pointer for problem in problems] == [pointer for pointer, _ in expected]
    for problem, (_, reason) in zip(problems, expected, strict=True):
        assert reason in problem.message


def test_an_integral_float_is_an_int(load_plugin: LoadPlugin, context: Context) -> None:
    _, kwargs = load_plugin(checked).bind({"count": 4.0, "ratio": 1, "boxes": [[1.0, 2]]}, context)

    assert (kwargs["count"], type(kwargs["count"])) == (4, int)
    assert (kwargs["ratio"], type(kwargs["ratio"])) == (1.0, float)
    assert kwargs["boxes"] == [(1, 2)]


class Colour(enum.Enum):
    RED = "red"


class StrictModel(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime.datetime
    key: uuid.UUID
    colour: Colour
    size: tuple[int, int]
    tags: set[str]


STRICT = {
    "at": "2026-01-31T12:00:00",
    "key": "00000000-0000-0000-0000-000000000001",
    "colour": "red",
    "size": [1, 2],
    "tags": ["a"],
}


def strict_whole(model: StrictModel) -> dict[str, Any]:
    return {}


def strict_beside_bytes(model: StrictModel, image: bytes, day: Annotated[datetime.date, Field(strict=True)]) -> dict:
    return {}


@pytest.mark.parametrize(
    ("target", "payload"),
    [(strict_whole, STRICT), (strict_beside_bytes, {"model": STRICT, "day": "2026-01-31", **PNG})],
)
def test_a_strict_model_is_read_from_json(
    target: Any, payload: dict[str, Any], load_plugin: LoadPlugin, context: Context
) -> None:
    _, kwargs = load_plugin(target).bind(payload, context)

    assert kwargs["model"] == StrictModel(
        at=datetime.datetime(2026, 1, 31, 12),  # noqa: DTZ001  # as it came
        key=uuid.UUID(int=1),
        colour=Colour.RED,
        size=(1, 2),
        tags={"a"},
    )
    assert kwargs.get("day", datetime.date(2026, 1, 31)) == datetime.date(2026, 1, 31)


def test_bytes_in_a_field_for_anything_get_there(load_plugin: LoadPlugin, context: Context) -> None:
    def run(thing: Any, text: str) -> dict[str, Any]:
        return {}

    assert load_plugin(run).bind({"thing": [b"x"], "text": "t"}, context)[1] == {"thing": [b"x"], "text": "t"}


def taking(annotation: Any, load_plugin: LoadPlugin) -> LoadedPlugin:
    """A plugin with one argument, `thing`."""

    def run(thing):
        return {}

    run.__annotations__["thing"] = annotation
    return load_plugin(run)


async def bound(plugin: LoadedPlugin, given: Any, context: Context) -> Any:
    """What `thing` is to the plugin where that is sent, and nothing is wrong with it."""
    document, problems = await InputSchema(plugin.manifest.input_schema).accept({"thing": given})
    assert problems == []
    arguments = plugin.bind(document, context)[1]
    assert arguments.keys() == {"thing"}
    return arguments["thing"]


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


@pytest.mark.parametrize(
    ("annotation", "given", "taken"),
    [
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (collections.abc.Mapping[float, int], {"1.5": 2}, {1.5: 2}),
        (dict[int, bytes], {"1": b"a"}, {1: b"a"}),
        (dict[Literal[1, 2], str], {"1": "a"}, {1: "a"}),
        (dict[Size, str], {"2": "a"}, {Size.LARGE: "a"}),
    ],
)
async def test_a_key_becomes_the_number_it_is_the_text_of(
    annotation: Any, given: Any, taken: Any, load_plugin: LoadPlugin, context: Context
) -> None:
    plugin = taking(annotation, load_plugin)
    assert await bound(plugin, given, context) == taken
    with pytest.raises(InputInvalidError):
        plugin.bind({"thing": {"one": given.popitem()[1]}}, context)


class Seal(enum.Enum):
    ROUND = b"()"
    NONE = "none"


class Forgiving(enum.Enum):
    ONE_TWO = (1, 2)

    @classmethod
    def _missing_(cls, value: object) -> Forgiving | None:
        return cls(tuple(value)) if isinstance(value, list) else None


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Letter(BaseModel):
    text: Base64Bytes
    scan: bytes = b""


@pytest.mark.parametrize(
    ("annotation", "given", "taken"),
    [
        (Rights, 3, Rights.READ | Rights.WRITE),
        (Seal, {"$bytes": "KCk="}, Seal.ROUND),
        (Seal, "none", Seal.NONE),
        (Literal[b"()"], "KCk=", b"()"),
        (Forgiving, [1, 2], Forgiving.ONE_TWO),
        (Literal[Kind.CAT] | None, None, None),
        (Base64Bytes, "aGVsbG8=", b"hello"),
        (Base64Bytes, "YUdrPQ==", b"aGk="),  # base64 of base64
        (Base64UrlBytes | None, "_w==", b"\xff"),
        (Letter | None, {"text": "aGk=", "scan": "aGk="}, Letter.model_construct(text=b"hi", scan=b"hi")),
    ],
)
async def test_what_the_annotation_takes_is_taken_as_it_was_sent(
    annotation: Any, given: Any, taken: Any, load_plugin: LoadPlugin, context: Context
) -> None:
    assert await bound(taking(annotation, load_plugin), given, context) == taken


@pytest.mark.parametrize(
    ("annotation", "default", "given"),
    [(Pair, Pair.ONE_TWO, [1, 2]), (Literal[Kind.CAT], Kind.CAT, "cat"), (list[Literal[Kind.CAT]], [], ["cat"])],
)
async def test_what_no_json_is_a_value_of_is_refused_before_it_is_queued(
    annotation: Any, default: Any, given: Any, load_plugin: LoadPlugin, context: Context
) -> None:
    def run(thing=default):
        return {}

    run.__annotations__["thing"] = annotation
    plugin = load_plugin(run)
    schema = InputSchema(plugin.manifest.input_schema)

    _, problems = await schema.accept({"thing": given})

    assert [problem.message for problem in problems] == ["must not be given: no JSON is a value of it"]
    assert (await schema.accept({}))[1] == []
    assert plugin.bind({}, context)[1] == {"thing": default}


def test_the_reason_of_a_refusal_can_be_stored(load_plugin: LoadPlugin, context: Context) -> None:
    def complain(value: int) -> int:
        raise ValueError("no\0t this" + "!" * 5000)

    def run(a):
        return {}

    run.__annotations__["a"] = Annotated[int, AfterValidator(complain)]

    with pytest.raises(InputInvalidError) as refusal:
        load_plugin(run).bind({"a": 1}, context)
    [problem] = refusal.value.problems
    assert problem.message.startswith("not this!")
    assert len(problem.message) == 1000


def test_what_a_validator_raises_beside_value_errors_gets_out(load_plugin: LoadPlugin, context: Context) -> None:
    def explode(value: int) -> int:
        raise ZeroDivisionError

    def run(a):
        return {}

    run.__annotations__["a"] = Annotated[int, AfterValidator(explode)]

    with pytest.raises(ZeroDivisionError):
        load_plugin(run).bind({"a": 1}, context)


def image_required(image: bytes) -> dict[str, Any]:
    return {}


def image_optional(image: bytes | None = None, note: str = "") -> dict[str, Any]:
    return {}


MIME = "/mime_type"
IMAGES = [
    ({}, {image_required: ["/image"], image_optional: [], PayloadDict: []}),
    (PNG, {image_required: [], image_optional: [], PayloadDict: []}),
    ({"image": b"x"}, {image_required: [MIME], image_optional: [MIME], PayloadDict: [MIME]}),
    ({"image": b"x", "mime_type": ""}, {image_required: [MIME], image_optional: [MIME], PayloadDict: [MIME]}),
    ({"image": b"x", "mime_type": 5}, {image_required: [MIME], image_optional: [MIME], PayloadDict: [MIME]}),
    (
        {"image": b"", "mime_type": "a/b"},
        {image_required: ["/image"], image_optional: ["/image"], PayloadDict: ["/image"]},
    ),
    (
        {"image": "text", "mime_type": "a/b"},
        {image_required: ["/image"], image_optional: ["/image"], PayloadDict: ["/image"]},
    ),
    ({"image": None}, {image_required: ["/image"], image_optional: [], PayloadDict: ["/image", MIME]}),
]


@pytest.mark.parametrize(
    ("payload", "target", "pointers"),
    [(payload, target, pointers) for payload, cases in IMAGES for target, pointers in cases.items()],
)
def test_an_image_is_bytes_with_a_mime_type(
    payload: dict[str, Any], target: Any, pointers: list[str], load_plugin: LoadPlugin, context: Context
) -> None:
    bind = load_plugin(target).bind

    assert refused_pointers(bind, payload, context) == pointers


def refused_pointers(bind: Any, payload: dict[str, Any], context: Context) -> list[str]:
    try:
        bind(payload, context)
    except InputInvalidError as error:
        return [problem.pointer for problem in error.problems]
    return []
