"""Frames carry documents unchanged, and a hostile peer gets no further than an error."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec import BLOB_KEY, BYTES_KEY, MAX_BYTES_VALUES, MAX_JSON_BYTES
from service.tool_runner.frames import (
    MAX_HEADER_BYTES,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    document,
    pack,
    parse,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = TEXT.filter(lambda key: key not in (BYTES_KEY, BLOB_KEY))
VALUES = st.recursive(
    SCALARS | TEXT | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)


def decode(stream: bytes, sizes: list[int], most: int = 10**6) -> list[Frame]:
    decoder, frames, position = FrameDecoder(most), [], 0
    while position < len(stream):
        size = sizes[len(frames) % len(sizes)] if sizes else len(stream)
        frames += decoder.feed(stream[position : position + size])
        position += size
    return frames


@given(DOCUMENTS, st.lists(st.integers(1, 50), max_size=5))
def test_a_document_arrives_as_it_was_however_the_stream_is_cut(value: dict[str, Any], sizes: list[int]) -> None:
    stream = b"".join(pack(Kind.REPLY, {"result": value})) + b"".join(pack(Kind.CANCEL, {}))
    reply, cancel = decode(stream, sizes)
    assert (reply.kind, cancel.kind) == (Kind.REPLY, Kind.CANCEL)
    assert document(parse(reply)["result"], reply.attachments) == value


@pytest.mark.parametrize("header", [{"x": float}, {"x": {1, 2}}, {"x": "\ud800"}, {1: 1}, {"x": 2**64}])
def test_what_is_not_json_is_not_packed(header: Any) -> None:
    with pytest.raises(FrameError):
        pack(Kind.CALL, header)


def test_too_much_json_or_too_many_bytes_values_are_not_packed() -> None:
    with pytest.raises(FrameError, match=f"more than {MAX_JSON_BYTES}: pass large data as bytes"):
        pack(Kind.CALL, {"x": "y" * MAX_HEADER_BYTES})
    with pytest.raises(FrameError, match="bytes values"):
        pack(Kind.CALL, {"x": [b""] * (MAX_BYTES_VALUES + 1)})


@pytest.mark.parametrize(
    "announced",
    [
        struct.pack("<BII", 0, 2, 0),
        struct.pack("<BII", 255, 2, 0),
        struct.pack("<BII", Kind.REPLY, MAX_HEADER_BYTES + 1, 0),
        struct.pack("<BII", Kind.REPLY, 2, MAX_BYTES_VALUES + 1),
        struct.pack("<BIIQ", Kind.REPLY, 2, 1, 1001),
        struct.pack("<BIIQQ", Kind.REPLY, 2, 2, 1000, 1),
        struct.pack("<BIIQ", Kind.REPLY, 2, 1, 2**64 - 1),
    ],
)
def test_a_length_beyond_the_caps_is_refused_before_its_content_comes(announced: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameDecoder(1000).feed(announced))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"x": {"$bytes": 1}},
        {"x": {"$bytes": -1}},
        {"x": {"$bytes": True}},
        {"x": {"$bytes": 0.0}},
        {"x": {"$bytes": [0]}},
        {"$bytes": 0},
        {"x": {"$bytes": 0, "y": 1}},
        {"x": {"$blob": {}}},
        {"x": 2**63},
        {"x": "a\0b"},
    ],
)
def test_a_peer_cannot_pass_off_anything_else_as_a_document(value: Any) -> None:
    with pytest.raises(FrameError):
        document(value, [b"one"])


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b'{"x": NaN}', b'{"x": "\xff"}', b'{"x":' * 2000])
def test_a_header_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(FrameError):
        parse(Frame(Kind.REPLY, text))


def test_nesting_as_deep_as_the_parser_allows_is_refused_as_no_document() -> None:
    header = parse(Frame(Kind.REPLY, b'{"x":' * 1000 + b"1" + b"}" * 1000))
    for attachments in ([], [b"one"]):
        with pytest.raises(FrameError):
            document(header, attachments)


def test_rubbish_ends_in_an_error_or_in_frames_and_in_nothing_else() -> None:
    generator = random.Random(7)
    sound = b"".join(pack(Kind.REPLY, {"result": {"x": [b"abc", 1, "text"]}}))
    for _ in range(20_000):
        stream = bytearray(sound)
        for _ in range(generator.randint(1, 4)):
            stream[generator.randrange(len(stream))] = generator.randrange(256)
        try:
            for frame in FrameDecoder(1000).feed(bytes(stream)):
                document(parse(frame).get("result"), frame.attachments)
        except FrameError:
            continue
