from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.strict_json import MalformedJSONError, parse

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_every_sound_document_is_read_as_it_was_meant(value: object, escaped: bool) -> None:
    for separators in ((", ", ": "), (",", ":")):
        assert parse(json.dumps(value, ensure_ascii=escaped, separators=separators).encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_and_nothing_else(body: bytes) -> None:
    with contextlib.suppress(MalformedJSONError):
        parse(body)


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        (b"", "", "line 1, column 1"),
        (b'{"a": 1,}', "", "line 1"),
        (b"{'a': 1}", "", "line 1"),
        (b'{"a": 1} x', "", "Extra data"),
        (b'{"a": {"b": 1, "b": 1}}', "/a/b", "given twice"),
        (b'{"a": [{}, {"\\u0062": 1, "b": 2}]}', "/a/1/b", "given twice"),
        (b'{"a": NaN}', "/a", "NaN"),
        (b'{"a": [1, -Infinity]}', "/a/1", "-Infinity"),
        (b'{"a": 1e999}', "/a", "too large"),
        (b'{"a": 9223372036854775808}', "/a", "64 bits"),
        (b'{"a": -9223372036854775809}', "/a", "64 bits"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "/a", "64 bits"),
        (b'{"a/b~c": "\\ud800"}', "/a~1b~0c", "surrogates"),
        (b'{"\\udc00": 1}', "", "surrogates"),
        ("\ufeff{}".encode(), "", "line 1, column 1"),
        ("{}".encode("utf-16"), "", "UTF-8"),
        (b'"\xff"', "", "byte 1"),
        (b'"\xed\xa0\x80"', "", "UTF-8"),
        (b"[" * 65 + b"]" * 65, "/0" * 64, "64 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "", "64 levels"),
        (b'{"a":' * 100_000, "", "64 levels"),
        (b"[NaN, " + b"[" * 50_000, "", "64 levels"),
        (b"[NaN, }", "", "line 1, column 7"),
    ],
)
def test_an_ambiguous_or_unstorable_document_is_refused_by_place(body: bytes, pointer: str, message: str) -> None:
    with pytest.raises(MalformedJSONError, match=message) as refused:
        parse(body)
    assert refused.value.problem.pointer == pointer


def test_the_limits_themselves_are_accepted() -> None:
    assert parse(b"[" * 64 + b"]" * 64)
    assert parse(b"[-9223372036854775808, 9223372036854775807]") == [-(2**63), 2**63 - 1]
    assert parse(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_too_many_values_are_refused_but_not_what_only_stands_in_text() -> None:
    for body in (b"[" + b"1," * 100_000 + b"1]", b"[" + b"[]," * 60_000 + b"1]", b"[" + b'{"a":1},' * 60_000 + b"1]"):
        with pytest.raises(MalformedJSONError, match="100000 values"):
            parse(body)
    assert len(parse(b"[" + b"1," * 99_000 + b"1]")) == 99_001
    text = 'a,"[{\\' * 100_000
    assert parse(json.dumps([text]).encode()) == [text]


def test_a_large_hostile_document_takes_linear_time() -> None:
    body = b"[" + b'{"a":"' + b"\\\\" * 500_000 + b'"},' * 1 + b"0" * 1 + b"]"
    started = time.perf_counter()
    parse(body)
    with pytest.raises(MalformedJSONError):
        parse(b"[" + b"9" * 1_000_000 + b"]")
    with pytest.raises(MalformedJSONError):
        parse(b'"' + b'\\",' * 1_000_000)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63) - 1])
def test_compact_json_is_held_to_64_bits_as_well(number):
    with pytest.raises(MalformedJSONError, match="64 bits"):
        parse(b'{"a":%d}' % number)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 10**18])
def test_every_integer_of_64_bits_is_taken(number):
    assert parse(b'{"a":%d}' % number) == parse(b'{"a": %d}' % number) == {"a": number}
