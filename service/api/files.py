"""Bytes of jobs over HTTP: which are meant, how they are named and typed, and when JSON is wanted instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from aiohttp import hdrs, web
from multidict import MultiMapping

from service.codec import BLOB_KEY
from service.file_endings import ending_of
from service.models import JSON, BlobRef

_MEDIA_TYPE: Final = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(;\s*charset=[0-9A-Za-z_-]+)?", re.ASCII
)
_JSON: Final = re.compile(r"(application|text)/(x-)?json|.+\+json", re.IGNORECASE)
_UNSAFE_IN_NAME: Final = re.compile(r"[^0-9A-Za-z._-]+")
_ANY_BYTES: Final = "application/octet-stream"


def blob_at(document: Mapping[str, JSON], pointer: str) -> BlobRef | None:
    """The bytes at `pointer` of a stored document, typed by their sibling `mime_type`; None if there are none."""
    parent: Any = None
    value: Any = document
    for token in pointer.split("/")[1:]:
        parent = value
        value = _step(value, token.replace("~1", "/").replace("~0", "~"))
    return _blob(value, parent)


def _step(value: Any, token: str) -> Any:
    if type(value) is dict:
        return value.get(token)
    if type(value) is list and token.isascii() and token.isdecimal() and len(token) < 10 and int(token) < len(value):
        return value[int(token)]
    return None


def only_blob(document: Mapping[str, JSON]) -> BlobRef | None:
    """The bytes of a document that holds exactly one bytes value, and so is a file; else None."""
    found = None
    for blob in _blobs(document, None):
        if found:
            return None
        found = blob
    return found


def _blobs(value: Any, parent: Any) -> Iterator[BlobRef]:
    blob = _blob(value, parent)
    if blob:
        yield blob
    elif type(value) is dict:
        for item in value.values():
            yield from _blobs(item, value)
    elif type(value) is list:
        for item in value:
            yield from _blobs(item, value)


def _blob(value: Any, parent: Any) -> BlobRef | None:
    if type(value) is not dict or len(value) != 1 or BLOB_KEY not in value:
        return None
    blob = BlobRef(**value[BLOB_KEY])
    sibling = parent.get("mime_type") if type(parent) is dict else None
    return BlobRef(sha256=blob.sha256, size=blob.size, media_type=sibling) if type(sibling) is str else blob


def response(data: bytes, media_type: str, name: str) -> web.Response:
    """`data` as a download: no browser runs it in our origin, whatever a plugin or a client says it is."""
    # What is JSON here is the service's own word: a client can tell a result from a file that only claims to be one.
    if not _MEDIA_TYPE.fullmatch(media_type) or _JSON.fullmatch(media_type.partition(";")[0].strip()):
        media_type = _ANY_BYTES
    answer = web.Response(body=data)
    answer.headers[hdrs.CONTENT_TYPE] = media_type
    answer.headers[hdrs.CONTENT_DISPOSITION] = content_disposition(name)
    answer.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return answer


def name_at(pointer: str, media_type: str) -> str:
    """The file name of the bytes at `pointer` of a document; one that ends as file names do is kept."""
    name = pointer.rpartition("/")[2] or "file"
    return name if "." in name else name + ending_of(media_type)


def content_disposition(name: str) -> str:
    """`attachment` with a harmless file name: no path, no controls; the true one percent-encoded (RFC 6266)."""
    name = re.split(r"[/\\]", name)[-1].lstrip(".") or "file"
    plain = _UNSAFE_IN_NAME.sub("_", name)[:100]
    encoded = quote(name[:100], safe="", errors="replace")
    return f'attachment; filename="{plain}"' + (f"; filename*=UTF-8''{encoded}" if plain != name else "")


def accepted(headers: MultiMapping[str]) -> str:
    """What a client accepts, of however many lines; anything, if it does not say."""
    return ", ".join(headers.getall(hdrs.ACCEPT, ("*/*",)))


def prefers_json(accept: str, media_type: str) -> bool:
    """Whether a client that sent `accept` would rather have JSON than `media_type`; on a tie it gets the bytes."""
    weights = _weights(accept)
    json = _rank(weights, "application/json")
    return json[0] > 0 and json > _rank(weights, media_type.partition(";")[0].strip().lower())


def preferred(accept: str, media_types: Sequence[str]) -> str | None:
    """The one of `media_types` that a client which sent `accept` would rather have; the first of equals."""
    weights = _weights(accept)
    best = max(media_types, key=lambda media_type: _rank(weights, media_type))
    return best if _rank(weights, best)[0] > 0 else None


def _weights(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for entry in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in entry.split(";"))
        weights[kind] = next((_weight(piece) for piece in parameters if piece.startswith("q=")), 1.0)
    return weights


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def _rank(weights: Mapping[str, float], media_type: str) -> tuple[float, int]:
    ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    for specificity, kind in zip((2, 1, 0), ranges, strict=True):
        if kind in weights:
            return weights[kind], specificity
    return 0.0, 0
