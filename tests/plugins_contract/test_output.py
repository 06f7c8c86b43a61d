"""What a plugin returns becomes a document by one rule, or is refused with the place."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import pathlib
import types
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel, Field, HttpUrl, RootModel

from service.codec import check_document
from service.errors import OutputInvalidError
from service.plugins.output import MAX_ARRAY_ELEMENTS, plain


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


class OldWord(str, enum.Enum):  # noqa: UP042 - how it was written before StrEnum, whose str() differs
    NO = "no"


class Shouting(str):
    def __str__(self) -> str:
        return self.upper()


@dataclasses.dataclass
class Box:
    x: int
    scores: tuple[float, ...] = ()


class Model(BaseModel):
    first_name: str = Field(serialization_alias="firstName")
    box: Box
    when: datetime.date | None = None


Pair = collections.namedtuple("Pair", "a b")

CONVERTED = [
    ({}, {}),
    ({"a": [1, 2.5, "x", None, True, {"b": b"\x00"}]}, {"a": [1, 2.5, "x", None, True, {"b": b"\x00"}]}),
    ({"a": (1, (2, 3))}, {"a": [1, [2, 3]]}),
    ({"a": Pair(1, 2)}, {"a": [1, 2]}),
    ({"a": bytearray(b"x"), "b": memoryview(b"y")}, {"a": b"x", "b": b"y"}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (Box(1, (0.5,)), {"x": 1, "scores": [0.5]}),
    ({"boxes": [Box(1)]}, {"boxes": [{"x": 1, "scores": []}]}),
    (
        Model(first_name="Ada", box=Box(1), when=datetime.date(2026, 4, 1)),
        {"firstName": "Ada", "box": {"x": 1, "scores": []}, "when": "2026-04-01"},
    ),
    (
        {"m": [Model(first_name="Ada", box=Box(1))]},
        {"m": [{"firstName": "Ada", "box": {"x": 1, "scores": []}, "when": None}]},
    ),
    (RootModel[dict[str, int]]({"a": 1}), {"a": 1}),
    (
        {"a": RootModel[list[int]]([1]), "b": RootModel[bytes](b"x"), "c": [RootModel[Box](Box(1))]},
        {"a": [1], "b": b"x", "c": [{"x": 1, "scores": []}]},
    ),
    ({"a": Colour.RED, "b": Level.HIGH, "c": Word.YES, "d": OldWord.NO}, {"a": "red", "b": 3, "c": "yes", "d": "no"}),
    ({Word.YES: 1, OldWord.NO: 2}, {"yes": 1, "no": 2}),
    ({"a": Shouting("quiet")}, {"a": "quiet"}),
    (
        {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.float64(1.5)},
        {"a": 0.5, "b": 3, "c": True, "d": 1.5},
    ),
    ({"a": np.str_("x"), "b": np.bytes_(b"y"), np.str_("k"): 1}, {"a": "x", "b": b"y", "k": 1}),
    ({"a": np.array([[1, 2], [3, 4]])}, {"a": [[1, 2], [3, 4]]}),
    ({"a": np.array(5)}, {"a": 5}),
    ({"a": [np.array([0.5], dtype=np.float32)]}, {"a": [[0.5]]}),
    (
        {"a": datetime.datetime(2026, 4, 1, 12, tzinfo=datetime.UTC), "b": datetime.time(12)},
        {"a": "2026-04-01T12:00:00+00:00", "b": "12:00:00"},
    ),
    (
        {
            "a": np.datetime64("2026-04-01T12:00:00.000000001"),
            "b": np.datetime64("2026-04-01"),
            "c": np.datetime64("NaT"),
        },
        {"a": "2026-04-01T12:00:00.000000001", "b": "2026-04-01", "c": None},
    ),
    (
        {"a": np.array([["2026-04-01", "NaT"]], "datetime64[ns]"), "b": np.array("10000-01-01", "datetime64[D]")},
        {"a": [["2026-04-01T00:00:00.000000000", None]], "b": "10000-01-01"},
    ),
    (
        {"a": np.array([(1, "2026-04-01")], [("n", "i4"), ("t", "datetime64[ns]")]), "b": np.void(b"x")},
        {"a": [[1, "2026-04-01T00:00:00.000000000"]], "b": b"x"},
    ),
    ({"a": pd.Timestamp("2026-04-01", tz="UTC"), "b": pd.NaT}, {"a": "2026-04-01T00:00:00+00:00", "b": None}),
    (
        {"a": uuid.UUID(int=1), "b": decimal.Decimal("1.10"), "c": pathlib.PurePosixPath("/x")},
        {"a": "00000000-0000-0000-0000-000000000001", "b": "1.10", "c": "/x"},
    ),
    (
        {"a": ipaddress.ip_address("::1"), "b": ipaddress.ip_network("10.0.0.0/8"), "c": HttpUrl("https://x.org")},
        {"a": "::1", "b": "10.0.0.0/8", "c": "https://x.org/"},
    ),
    ({"a": ipaddress.ip_interface("10.0.0.1/8")}, {"a": "10.0.0.1/8"}),
]


@pytest.mark.parametrize(("value", "document"), CONVERTED)
def test_a_result_becomes_a_document(value: Any, document: dict[str, Any]) -> None:
    made = plain(value)

    check_document(made)
    assert made == document
    assert repr(made) == repr(document)  # 1, True and 1.0 are equal but not the same


def nested(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels - 1):
        document = {"a": document}
    return document


def cycle() -> dict[str, Any]:
    document: dict[str, Any] = {"list": []}
    document["list"].append(document)
    return document


class Hostile(collections.abc.Mapping):  # type: ignore[type-arg]
    def __getitem__(self, key: Any) -> Any:
        raise ZeroDivisionError("in the middle")

    def __iter__(self) -> Any:
        yield "a"

    def __len__(self) -> int:
        return 1


class SecretName:
    pass


REFUSED = [
    (None, "", "not NoneType"),
    (b"top", "", "not bytes"),
    ("text", "", "not str"),
    (3, "", "not int"),
    (float("nan"), "", "not float"),
    ([{}], "", "not list"),
    (np.zeros(3), "", "not ndarray"),
    (SecretName(), "", "SecretName"),
    (Box, "", "type is neither"),
    (RootModel[list[int]]([1]), "", "not RootModel"),
    ({"a": RootModel[list[float]]([1.0, float("nan")])}, "/a/1", "finite"),
    ({"a": [RootModel[set[int]]({1})]}, "/a/0", "set is neither"),
    ({"a": float("nan")}, "/a", "finite"),
    ({"a": [1, float("inf")]}, "/a/1", "finite"),
    ({"a": np.float32("nan")}, "/a", "finite"),
    ({"a": np.array([1.0, np.nan])}, "/a/1", "finite"),
    ({"a": 2**63}, "/a", "64 bits"),
    ({"a": {1: "x"}}, "/a", "keys must be text, not int"),
    ({(1, 2): "x"}, "", "keys must be text, not tuple"),
    ({"a": {1, 2}}, "/a", "set is neither"),
    ({"a": 1j}, "/a", "complex is neither"),
    ({"a": np.complex128(1j)}, "/a", "complex is neither"),
    ({"a": np.longdouble(1)}, "/a", "longdouble is neither"),
    ({"a": datetime.timedelta(1)}, "/a", "timedelta is neither"),
    ({"a": np.timedelta64(1, "ns")}, "/a", "timedelta64 is neither"),
    ({"a": np.array([[1]], "timedelta64[ns]")}, "/a/0/0", "timedelta64 is neither"),
    ({"a": (x for x in [1])}, "/a", "generator is neither"),
    ({"a/b": {"c~d": object()}}, "/a~1b/c~0d", "object is neither"),
    ({"a": "\0"}, "/a", "U+0000"),
    ({"a": "\ud800"}, "/a", "surrogates"),
    ({"$bytes": "x"}, "", "reserved"),
    ({"a": np.zeros(MAX_ARRAY_ELEMENTS + 1, np.uint8)}, "/a", "too large for JSON"),
    ({"\ud800": {1: 2}}, "/?", "keys must be text"),
    (Hostile(), "", "ZeroDivisionError: in the middle"),
    (cycle(), "/list/0" * 32 + "/list", "a cycle"),
    (nested(65), "/a" * 64, "nested deeper than 64"),
]


@pytest.mark.parametrize(("value", "pointer", "reason"), REFUSED)
def test_what_is_no_document_is_refused_with_its_place(value: Any, pointer: str, reason: str) -> None:
    with pytest.raises(OutputInvalidError) as refusal:
        plain(value)

    assert reason in refusal.value.message
    assert refusal.value.pointer == pointer


def test_the_deepest_document_that_can_be_stored_passes() -> None:
    assert plain(nested(64)) == nested(64)


def test_nothing_is_shared_with_what_was_returned() -> None:
    inner = [1]
    document = plain({"a": inner})

    inner.append(2)

    assert document == {"a": [1]}
