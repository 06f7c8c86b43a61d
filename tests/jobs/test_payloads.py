from __future__ import annotations

import base64
import socket

import pytest

from service.codec import MAX_BYTES_VALUES
from service.payloads import InputSchema

TYPED = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "contentEncoding": "base64", "minLength": 1},
        "mime_type": {"type": "string", "minLength": 1},
        "width": {"type": "integer", "minimum": 1, "maximum": 4096},
        "title": {"type": "string"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "pages": {"type": "array", "items": {"$ref": "#/$defs/Page"}},
        "flag": {"type": "boolean"},
        "mask": {"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]},
    },
    "required": ["image", "mime_type"],
    "additionalProperties": False,
    "$defs": {
        "Page": {
            "type": "object",
            "properties": {"scan": {"type": "string", "contentEncoding": "base64"}},
            "required": ["scan"],
        }
    },
}
GOOD = {"image": b"abc", "mime_type": "image/png"}
B64 = base64.b64encode(b"abc").decode()


@pytest.fixture
def schema() -> InputSchema:
    return InputSchema(TYPED)


@pytest.mark.parametrize(
    ("payload", "accepted"),
    [
        (GOOD, GOOD),
        ({**GOOD, "image": B64}, GOOD),
        ({**GOOD, "image": {"$bytes": B64}}, GOOD),
        ({**GOOD, "pages": [{"scan": B64}, {"scan": {"$bytes": B64}}]}, {**GOOD, "pages": [{"scan": b"abc"}] * 2}),
        ({**GOOD, "mask": None, "maybe": None, "width": 5}, {**GOOD, "mask": None, "maybe": None, "width": 5}),
        ({**GOOD, "mask": B64, "title": B64}, {**GOOD, "mask": b"abc", "title": B64}),
        ({**GOOD, "image": "A" * 4_000_000}, {**GOOD, "image": b"\0" * 3_000_000}),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bytes_are_decoded_wherever_the_schema_has_them(schema, payload, accepted):
    assert await schema.accept(payload) == (accepted, [])


@pytest.mark.parametrize(
    ("change", "pointer", "message"),
    [
        ({"image": "not base64!"}, "/image", "base64"),
        ({"image": "QUJ"}, "/image", "base64"),
        ({"image": "QQ==QUJD"}, "/image", "base64"),
        ({"image": {"$bytes": 5}}, "/image", "base64"),
        ({"image": 5}, "/image", "bytes"),
        ({"image": None}, "/image", "bytes"),
        ({"image": ["QUJD"]}, "/image", "bytes"),
        ({"image": ""}, "/image", "empty"),
        ({"image": b""}, "/image", "empty"),
        ({"mime_type": ""}, "/mime_type", "shorter"),
        ({"width": "5"}, "/width", "integer"),
        ({"width": True}, "/width", "integer"),
        ({"width": 0}, "/width", "minimum"),
        ({"title": b"abc"}, "/title", "bytes"),
        ({"title": {"$bytes": B64}}, "/title", "bytes"),
        ({"unknown/field": 1}, "/unknown~1field", "not a field"),
        ({"pages": [{}]}, "/pages/0/scan", "required"),
        ({"pages": [{"scan": B64}, {"scan": "?"}]}, "/pages/1/scan", "base64"),
        ({"title": "a\0b"}, "/title", "U+0000"),
        ({"width": float("nan")}, "/width", "finite"),
    ],
    ids=str,
)
async def test_each_fault_is_named_with_its_place(schema, change, pointer, message):
    _, problems = await schema.accept({**GOOD, **change})
    assert pointer in [problem.pointer for problem in problems]
    assert message in " ".join(problem.message for problem in problems)


async def test_every_missing_and_unknown_field_is_named(schema):
    _, problems = await schema.accept({"x": 1, "y": 2})
    assert {problem.pointer for problem in problems} == {"/image", "/mime_type", "/x", "/y"}


async def test_faults_are_told_up_to_a_limit(schema):
    _, problems = await schema.accept({**GOOD, **{f"x{n}": 1 for n in range(1_000)}})
    assert len(problems) == 20


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("width", "7", 7),
        ("width", "seven", "seven"),
        ("flag", "true", True),
        ("maybe", "null", None),
        ("title", "7", "7"),
        ("pages", "[]", []),
        ("image", "7", "7"),
        ("unknown", "7", "7"),
    ],
)
def test_text_becomes_what_the_schema_says(schema, field, text, value):
    assert schema.from_text(field, text) == value


def test_the_single_bytes_field_takes_a_raw_body():
    one = {"type": "object", "properties": {"scan": {"type": "string", "contentEncoding": "base64"}}}
    assert InputSchema(one).bytes_field == "scan"
    assert InputSchema({"type": "object"}).bytes_field == "image"
    assert InputSchema(TYPED).bytes_field == "image"


def test_a_broken_schema_is_a_value_error():
    with pytest.raises(ValueError, match="nonsense"):
        InputSchema({"type": "nonsense"})


async def test_an_integer_beyond_64_bits_is_refused_in_a_document_without_bytes_too():
    schema = InputSchema({"type": "object", "properties": {"text": {"type": "string"}}})
    _, problems = await schema.accept({"text": "a", "count": 2**63})
    assert [problem.pointer for problem in problems] == ["/count"]


@pytest.mark.parametrize("place", ["file://{path}", "http://127.0.0.1:{port}/x.json", "other.json"])
def test_a_schema_opens_nothing_outside_itself(tmp_path, place):
    (tmp_path / "x.json").write_text('{"type": "integer"}')
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        uri = place.format(path=tmp_path / "x.json", port=server.getsockname()[1])
        with pytest.raises(ValueError, match=r"other\.json|may only refer to itself"):
            InputSchema({"type": "object", "properties": {"n": {"allOf": [{"$ref": uri}]}}})
        with pytest.raises(TimeoutError):
            server.accept()


BYTES = {"type": "string", "contentEncoding": "base64"}
TEXT = {"type": "string"}


def model(data, **constants):
    fields = {name: {"const": value} for name, value in constants.items()}
    return {"type": "object", "properties": {"data": data, **fields}, "required": [*fields, "data"]}


def item(schema, **more):
    return {"type": "object", "properties": {"item": schema}, **more}


@pytest.mark.parametrize(
    ("schema", "value", "accepted"),
    [
        (item({"anyOf": [model(BYTES, kind="a"), model(TEXT, kind="b")]}), {"kind": "b", "data": "hello"}, None),
        (item({"anyOf": [model(BYTES, kind="a"), model(TEXT, kind="b")]}), {"kind": "a", "data": B64}, b"abc"),
        (item({"oneOf": [model(BYTES, kind="a"), model(TEXT, kind="b")]}), {"kind": "a", "data": B64}, b"abc"),
        (item({"oneOf": [{"$ref": "#/$defs/A"}]}, **{"$defs": {"A": model(BYTES)}}), {"data": B64}, b"abc"),
        (item({"anyOf": [model(BYTES), model(TEXT)]}), {"data": "hello"}, None),  # the worker tells which it is
        (item({"anyOf": [model(BYTES), {**model(BYTES), "required": ["other"]}]}), {"data": B64}, b"abc"),
        (item({"anyOf": [{"anyOf": [model(TEXT)]}, BYTES]}), {"data": "x"}, None),
        (item({"anyOf": [{"oneOf": [model(BYTES, kind="a"), model(TEXT, kind="b")]}, {"type": "null"}]}),
            {"kind": "a", "data": B64}, b"abc"),
        (item({"anyOf": [{"anyOf": [model(BYTES), model(TEXT)]}, model(BYTES)]}), {"data": "hello"}, None),
        (item({"anyOf": [model(BYTES), {"type": "object", "additionalProperties": TEXT}]}), {"data": "hello"}, None),
        (item({"anyOf": [model(BYTES), {"type": "object", "additionalProperties": True}]}), {"data": "hello"}, None),
        (item({"anyOf": [model(BYTES), {}]}), {"data": "hello"}, None),
        (item({"anyOf": [model(BYTES), model({**BYTES, "description": "A scan"})]}), {"data": B64}, b"abc"),
    ],
)  # fmt: skip
async def test_of_a_choice_bytes_are_decoded_where_all_that_fit_agree(schema, value, accepted):
    document, problems = await InputSchema(schema).accept({"item": value})
    assert problems == []
    assert document == {"item": {**value, "data": value["data"] if accepted is None else accepted}}


@pytest.mark.parametrize("other", [{}, True, {"enum": [5, "abcd"]}], ids=str)
@pytest.mark.parametrize("value", [5, "abcd"])
async def test_beside_bytes_may_stand_what_has_no_type(other, value):
    assert await InputSchema(item({"anyOf": [other, BYTES]})).accept({"item": value}) == ({"item": value}, [])


@pytest.mark.timeout(20)
async def test_a_choice_among_itself_is_looked_at_once():
    schema = InputSchema(item({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}] * 50}}}))
    assert schema.bytes_field == "image"


async def test_bytes_are_decoded_at_their_place_in_a_tuple():
    pair = item({"type": "array", "prefixItems": [TEXT, BYTES], "items": BYTES})
    assert await InputSchema(pair).accept({"item": ["a", B64, B64]}) == ({"item": ["a", b"abc", b"abc"]}, [])


NUMBERS = {"type": "object", "additionalProperties": {"type": "integer"}}
SENT = {"$bytes": B64}


@pytest.mark.parametrize(
    ("schema", "payload", "pointer"),
    [
        (item(NUMBERS), {"item": SENT}, "/item"),
        (item(NUMBERS), {"item": {"$bytes": 5}}, "/item"),
        (item(NUMBERS), {"item": {"$bytes": 5, "a": 1}}, "/item"),
        (item(NUMBERS), {"item": {"a": SENT}}, "/item/a"),
        (item({"type": "object"}), {"item": SENT}, "/item"),
        (item({"type": ["object", "null"]}), {"item": SENT}, "/item"),
        (item({"anyOf": [NUMBERS, {"type": "null"}]}), {"item": SENT}, "/item"),
        (item({"type": "array", "items": NUMBERS}), {"item": [SENT]}, "/item/0"),
        (item({"$ref": "#/$defs/N"}, **{"$defs": {"N": NUMBERS}}), {"item": SENT}, "/item"),
        (item(model(TEXT)), {"item": SENT}, "/item"),
        (NUMBERS, SENT, ""),
        ({"type": "object", "additionalProperties": True}, SENT, ""),
    ],
    ids=str,
)  # fmt: skip
async def test_bytes_are_no_object(schema, payload, pointer):
    _, problems = await InputSchema(schema).accept(payload)
    assert [problem.pointer for problem in problems] == [pointer]
    assert "$bytes" not in problems[0].message or "reserved" in problems[0].message


NULL = {"type": "null"}
INTEGER = {"type": "integer", "minimum": 3}
CAT, DOG = (
    {"type": "object", "required": ["kind", field], "properties": {"kind": {"const": kind}, field: INTEGER}}
    for kind, field in (("cat", "lives"), ("dog", "tricks"))
)
LETTER = {"type": "object", "required": ["to"], "properties": {"to": INTEGER, "scan": BYTES}}
NEXT = {"anyOf": [{"$ref": "#/$defs/Tree"}, NULL]}
TREE = {"type": "object", "required": ["size"], "properties": {"size": INTEGER, "next": NEXT}}


@pytest.mark.parametrize(
    ("branches", "value", "pointer", "message"),
    [
        ([INTEGER, NULL], "5", "/item", "must be of type integer or null"),
        ([INTEGER, NULL], 1, "/item", "1 is less than the minimum of 3"),
        ([INTEGER, {"type": ["string", "integer"]}], [], "/item", "must be of type integer or string"),
        ([{"enum": ["a", "b"]}, INTEGER], "c", "/item", '"c" is not one of "a" or "b"'),
        ([{"type": "array", "items": INTEGER}, NULL], [4, "5"], "/item/1", '"5" is not of type "integer"'),
        ([TREE, NULL], {"size": 3, "next": {"size": "3"}}, "/item/next/size", '"3" is not of type "integer"'),
        ([TREE, NULL], {}, "/item/size", "is required"),
        ([BYTES, INTEGER], {"a": 1}, "/item", "must be of type bytes or integer"),
        ([BYTES, INTEGER], [1], "/item", "must be of type bytes or integer"),
        ([LETTER, NULL], {"scan": 5}, "/item/scan", "must be bytes: base64 text"),
        ([LETTER, NULL], {"scan": B64}, "/item/to", "is required"),
        ([LETTER, CAT], {"scan": "?"}, "/item", "is not valid under any of the schemas"),
        ([CAT, DOG, NULL], {"kind": "dog", "tricks": "many"}, "/item/tricks", '"many" is not of type "integer"'),
        ([CAT, DOG, NULL], {"kind": "cow"}, "/item/kind", 'must be "cat" or "dog"'),
        ([CAT, DOG, NULL], {"kind": SENT}, "/item/kind", 'must be "cat" or "dog"'),
        ([TREE, NUMBERS], {"size": "x"}, "/item", "is not valid under any of the schemas"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("choice", ["anyOf", "oneOf"])
async def test_of_a_choice_the_branch_that_was_meant_says_what_is_wrong(choice, branches, value, pointer, message):
    schema = item({choice: branches}, **{"$defs": {"Tree": TREE}})

    _, problems = await InputSchema(schema).accept({"item": value})

    assert [problem.pointer for problem in problems] == [pointer]
    assert message in problems[0].message


@pytest.mark.parametrize("schema", [{}, {"anyOf": [BYTES, NUMBERS]}, {"oneOf": [NUMBERS, BYTES]}], ids=str)
async def test_bytes_may_stand_beside_objects_and_where_anything_may(schema):
    assert await InputSchema(item(schema)).accept({"item": SENT}) == ({"item": b"abc"}, [])
    if schema:
        assert await InputSchema(item(schema)).accept({"item": {"a": 1}}) == ({"item": {"a": 1}}, [])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^\w+$", "Zoë"),
        (r"^[\w-]+$", "Zoë"),
        (r"^\d+$", "٣"),
        (r"^\S$", "\ufeff"),
        (r"^[[:alpha:]]+$", "Zoe"),
        (r"^[]a-z&&[^b]]$", "a"),
        (r"^[a-z--b]$", "a"),
        (r"^Zoe\Z", "Zoe"),
    ],
)
@pytest.mark.parametrize("place", [lambda text: text, lambda text: {"anyOf": [text, {"type": "null"}]}])
async def test_a_pattern_that_the_types_may_read_otherwise_is_left_to_them(pattern, text, place):
    schema = InputSchema(item(place({"type": "string", "pattern": pattern, "maxLength": 3})))
    assert await schema.accept({"item": text}) == ({"item": text}, [])
    _, problems = await schema.accept({"item": "longer"})
    assert len(problems) == 1


@pytest.mark.parametrize("pattern", ["^[a-z]+-[0-9]{2}$", r"^[\[a]$", r"^\p{L}\.$", "^(?i)a$"])
async def test_other_patterns_are_checked(pattern):
    _, problems = await InputSchema(item({"type": "string", "pattern": pattern})).accept({"item": "?"})
    assert [problem.pointer for problem in problems] == ["/item"]


async def test_a_field_may_be_called_pattern():
    schema = InputSchema({"type": "object", "properties": {"pattern": TEXT}, "additionalProperties": False})
    assert await schema.accept({"pattern": r"\w"}) == ({"pattern": r"\w"}, [])


async def test_a_payload_of_very_many_bytes_values_is_refused() -> None:
    schema = InputSchema({"type": "object"})
    for count, problems in [(MAX_BYTES_VALUES, 0), (MAX_BYTES_VALUES + 1, 1)]:
        _, found = await schema.accept({"pages": [{"$bytes": "eA=="}] * count})
        assert len(found) == problems
    assert "bytes values" in found[0].message
