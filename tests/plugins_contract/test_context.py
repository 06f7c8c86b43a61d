"""What a plugin says through its context is checked, and sent in a form that can be stored."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from service.errors import JobCancelledError
from service.plugins.context import Context

from .conftest import Sent


@pytest.mark.parametrize(
    ("arguments", "fraction", "message"),
    [
        ((0.5, "half"), 0.5, "half"),
        ((1,), 1.0, ""),
        ((-0.1, "x"), 0.0, "x"),
        ((1.0000001, "x"), 1.0, "x"),
        ((math.inf, "x"), 1.0, "x"),
        ((0.1, "a\0b\ud800c"), 0.1, "ab?c"),
        ((0.1, "x" * 600), 0.1, "x" * 500),
        ((0.1, 42), 0.1, "42"),
    ],
)
def test_progress_is_clamped_and_its_message_storable(
    arguments: tuple[Any, ...], fraction: float, message: str, context: Context, sent: Sent
) -> None:
    context.progress(*arguments)

    assert sent.messages == [({"type": "progress", "fraction": fraction, "message": message}, [])]
    orjson.dumps(sent.messages[0][0])


def test_progress_that_is_no_number_is_refused(context: Context, sent: Sent) -> None:
    with pytest.raises(ValueError, match="NaN"):
        context.progress(math.nan)
    assert sent.messages == []


def test_cancellation_passes_through_except_exception(context: Context, sent: Sent) -> None:
    def careless() -> str:
        try:
            context.check_cancelled()
        except Exception:  # noqa: BLE001 - what careless plugins do
            return "swallowed"
        return "went on"

    assert careless() == "went on"
    sent.cancelled = True
    with pytest.raises(JobCancelledError):
        careless()


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_an_artifact_is_sent_as_bytes(data: Any, context: Context, sent: Sent) -> None:
    context.artifact("page-1.png", data, "image/png; q=1")

    assert sent.messages == [
        ({"type": "artifact", "name": "page-1.png", "media_type": "image/png; q=1"}, [b"abc"]),
    ]
    assert type(sent.messages[0][1][0]) is bytes


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("", "a/b"),
        (".", "a/b"),
        ("..", "a/b"),
        ("a/b", "a/b"),
        ("a\\b", "a/b"),
        ("a\0b", "a/b"),
        ("a\nb", "a/b"),
        ("\ud800", "a/b"),
        ("x" * 201, "a/b"),
        ("fine", "png"),
        ("fine", ""),
        ("fine", "image/png\r\nX-Header: 1"),
    ],
)
def test_an_artifact_with_a_bad_name_or_type_is_refused(
    name: str, media_type: str, context: Context, sent: Sent
) -> None:
    with pytest.raises(ValueError, match=r"plain file name|media type"):
        context.artifact(name, b"", media_type)
    assert sent.messages == []


def test_two_artifacts_cannot_have_one_name(context: Context, sent: Sent) -> None:
    context.artifact("a", b"1")
    with pytest.raises(ValueError, match="already"):
        context.artifact("a", b"2")
    assert len(sent.messages) == 1


def test_an_artifact_of_text_is_refused(context: Context) -> None:
    with pytest.raises(TypeError, match="not str"):
        context.artifact("a", "text")  # type: ignore[arg-type]  # the mistake under test


def test_a_metric_is_a_finite_number(context: Context, sent: Sent) -> None:
    context.metric("faces", 3)

    assert sent.messages == [({"type": "metric", "name": "faces", "value": 3.0}, [])]
    for name, value in [("faces", math.nan), ("faces", math.inf), ("", 1), ("a\nb", 1), ("x" * 201, 1)]:
        with pytest.raises(ValueError, match=r"finite|name"):
            context.metric(name, value)
    assert len(sent.messages) == 1


def test_the_context_has_a_logger_and_a_folder(context: Context) -> None:
    assert context.log.name == "plugin"
    assert context.tmp.is_dir()
