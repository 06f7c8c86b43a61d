from __future__ import annotations

import mimetypes
from collections.abc import Iterator

import pytest

from service.api.files import blob_at, content_disposition, name_at, only_blob, prefers_json, response
from service.file_endings import ending_of
from service.models import BlobRef


def stored(size: int = 3) -> dict[str, object]:
    return {"$blob": {"sha256": "0" * 64, "size": size, "media_type": "application/octet-stream"}}


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        ("*/*", False),
        ("", False),
        ("image/png", False),
        ("image/*, application/json;q=0.5", False),
        ("application/json", True),
        ("application/json, text/plain, */*", True),
        ("image/png;q=0.2, application/json", True),
        ("application/json;q=nonsense, image/png;q=0.1", False),
        ("application/*, image/*", False),
        ("application/json;q=0", False),
        ("application/json;q=0, image/jpeg", False),
    ],
)
def test_accept_chooses_between_bytes_and_json(accept: str, json_wanted: bool) -> None:
    assert prefers_json(accept, "image/png") is json_wanted


def test_bytes_are_found_by_pointer_and_typed_by_their_sibling() -> None:
    document = {"a/b": [{"image": stored(), "mime_type": "image/png"}], "n": 1}
    assert blob_at(document, "/a~1b/0/image") == BlobRef(sha256="0" * 64, size=3, media_type="image/png")
    for nowhere in (
        "",
        "/",
        "/n",
        "/a~1b/1/image",
        "/a~1b/-1",
        "/a~1b/0/image/$blob",
        "/n/deeper",
        "/a~1b/99999999999",
    ):
        assert blob_at(document, nowhere) is None


def test_only_a_document_with_one_bytes_value_is_a_file() -> None:
    assert only_blob({"image": stored(), "mime_type": "image/png", "n": [1]}) == BlobRef(
        sha256="0" * 64, size=3, media_type="image/png"
    )
    assert only_blob({"a": stored(), "b": [stored()]}) is None
    assert only_blob({"a": "text"}) is None


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\x", 'a"b\r\nX: y', "\u202egnp.exe", "n" * 5000, "", "..", "a\0b"]
)
def test_a_hostile_name_is_harmless_in_a_header(name: str) -> None:
    header = content_disposition(name)
    assert header.startswith('attachment; filename="')
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 1000
    assert "/" not in header
    assert ".." not in header


@pytest.fixture
def _no_mime_types() -> Iterator[None]:
    """As on a host without a `mime.types`."""
    mimetypes.init(files=[])
    yield
    mimetypes.init()


@pytest.mark.usefixtures("_no_mime_types")
@pytest.mark.parametrize(
    ("media_type", "ending"),
    [
        *(("image/webp", ".webp"), ("IMAGE/PNG", ".png"), ("text/plain; charset=utf-8", ".txt")),
        *(
            ("application/x-ndjson", ".ndjson"),
            ("application/octet-stream", ".bin"),
            ("x/unknown", ".bin"),
            ("", ".bin"),
        ),
    ],
)
def test_files_end_by_what_they_are_on_every_host(media_type: str, ending: str) -> None:
    assert ending_of(media_type) == ending


@pytest.mark.parametrize(
    ("pointer", "name"),
    [("/image", "image.png"), ("/pages/0", "0.png"), ("/files/a.gif", "a.gif"), ("/", "file.png")],
)
def test_bytes_of_a_document_are_a_file_with_an_ending(pointer: str, name: str) -> None:
    assert name_at(pointer, "image/png") == name


@pytest.mark.parametrize(
    "media_type",
    [
        *("", "html", "text/html\r\nX: y", "text/html; x=\u2028", "a/b/c"),
        *("Application/JSON", "application/json; charset=utf-8", "text/json", "application/Problem+JSON"),
    ],
)
def test_a_media_type_that_is_none_or_of_json_becomes_plain_bytes(media_type: str) -> None:
    assert response(b"x", media_type, "n").headers["Content-Type"] == "application/octet-stream"
