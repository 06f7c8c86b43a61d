"""Request bodies: read with limits that count while reading, and taken apart."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web

from service import strict_json
from service.api.problems import Problem, bad_request, too_large, unsupported_media_type
from service.codec import escape_pointer
from service.errors import FieldProblem

#: In each such time a body must end or bring so much: who drips is not waited for, whatever he sent before.
WINDOW_S: Final = 15.0
WINDOW_BYTES: Final = 61_440

MAX_PARTS: Final = 64
MAX_FIELD_NAME_CHARS: Final = 100
#: Up to here decoding takes less time than handing it to a thread.
INLINE_BYTES: Final = 65_536
#: `bytes.join` lets other threads run while it copies more than this.
JOINED_INLINE_BYTES: Final = 1_048_576

_FIELD_NAME: Final = re.compile(rf"[^\x00-\x1f\x7f]{{1,{MAX_FIELD_NAME_CHARS}}}")
_BOUNDARY: Final = re.compile(r"""[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]""")
_PARAMETER: Final = re.compile(
    r""";\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*""", re.DOTALL
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a multipart form. `is_file` when the client gave it a file name, which is not kept."""

    name: str
    data: bytes
    media_type: str | None
    is_file: bool


async def read(request: web.Request, max_bytes: int) -> bytes:
    """The whole body; raises a 413, 408 or 415 problem as soon as one is certain, leaving the rest unread."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.strip().lower() != "identity":
        raise unsupported_media_type(f"Content-Encoding {encoding!r} is not taken: send the body as it is.")
    if (request.content_length or 0) > max_bytes:
        raise _over(max_bytes)
    content = request.content
    if content.is_eof():  # all of it is here already, and needs no clock
        body: bytes = content.read_nowait()
        if len(body) > max_bytes:
            raise _over(max_bytes)
        return body
    parts: list[bytes] = []
    received, wanted = 0, WINDOW_BYTES
    try:
        async with asyncio.timeout(WINDOW_S) as window:
            while not content.at_eof():
                parts.append(await content.readany())
                received += len(parts[-1])
                if received > max_bytes:
                    raise _over(max_bytes)
                if received >= wanted:
                    window.reschedule(asyncio.get_running_loop().time() + WINDOW_S)
                    wanted = received + WINDOW_BYTES
    except TimeoutError:
        raise Problem(
            status=HTTPStatus.REQUEST_TIMEOUT,
            kind="body-timeout",
            detail=f"The body arrives too slowly: {received} bytes, and it has not ended.",
            close=True,
        ) from None
    # Many large bodies that are complete at once would hold up everybody else by milliseconds each.
    return b"".join(parts) if received <= JOINED_INLINE_BYTES else await asyncio.to_thread(b"".join, parts)


def _over(max_bytes: int) -> Problem:
    return too_large(f"The body is larger than {max_bytes} bytes.")


async def parse_json(body: bytes, max_values: int = strict_json.MAX_VALUES) -> Any:
    """`body` as strict JSON (see `strict_json.parse`), off the event loop when it is large."""
    if len(body) <= INLINE_BYTES:
        return strict_json.parse(body, max_values)
    return await asyncio.to_thread(strict_json.parse, body, max_values)


async def parse_lines(body: bytes, max_lines: int, max_values: int) -> list[Any]:
    """The values of NDJSON, a line each, as strict as `parse_json`; lines without anything on them do not count.

    A place begins with the index of its value, from 0, as in an array. Reads no more than `max_lines` + 1 values.
    """
    if len(body) <= INLINE_BYTES:
        return _lines(body, max_lines, max_values)
    return await asyncio.to_thread(_lines, body, max_lines, max_values)


def _lines(body: bytes, max_lines: int, max_values: int) -> list[Any]:
    values: list[Any] = []
    left = max_values
    for number, line in enumerate(body.split(b"\n"), start=1):
        if len(values) > max_lines:
            break
        if not line.strip():
            continue
        try:
            values.append(strict_json.parse(line, left, line=number))
        except strict_json.MalformedJSONError as error:
            raise strict_json.MalformedJSONError(
                error.problem.message, f"/{len(values)}{error.problem.pointer}"
            ) from None
        left -= strict_json.count_values(line, left)
    return values


async def parse_form(body: bytes, content_type: str) -> list[Part]:
    """`body` as `multipart/form-data`, off the event loop when it is large; raises a 400 problem."""
    if len(body) <= INLINE_BYTES:
        return _parts(body, content_type)
    return await asyncio.to_thread(_parts, body, content_type)


def _parts(body: bytes, content_type: str) -> list[Part]:
    boundary = parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise bad_request("multipart/form-data needs a valid boundary.")
    preamble, *sections = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_PARTS + 2)
    if len(sections) > MAX_PARTS + 1:
        raise too_large(f"A form may have at most {MAX_PARTS} parts.")
    if preamble or not sections or sections[-1].strip() != b"--":
        raise bad_request("The multipart body is truncated or does not match its boundary.")
    parts = [_part(section) for section in sections[:-1]]
    names: set[str] = set()
    for part in parts:
        if part.name in names:
            place = f"/{escape_pointer(part.name)}"
            raise bad_request("A part is given twice.", FieldProblem(place, "the part is given twice"))
        names.add(part.name)
    return parts


def _part(section: bytes) -> Part:
    head, separator, data = section.partition(b"\r\n\r\n")
    # After a delimiter only white space may stand on the line.
    padding, _, head = head.partition(b"\r\n")
    if not separator or padding.strip(b" \t"):
        raise bad_request("The multipart body is truncated or does not match its boundary.")
    headers = _part_headers(head)
    disposition = headers.get("content-disposition", "")
    fields = parameters(disposition)
    name = fields.get("name", "")
    if disposition.partition(";")[0].strip().lower() != "form-data" or not _FIELD_NAME.fullmatch(name):
        raise bad_request(
            "Every part needs 'Content-Disposition: form-data' with a name of "
            f"1 to {MAX_FIELD_NAME_CHARS} characters and no control characters."
        )
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise bad_request(
            "Parts are taken as plain bytes only.",
            FieldProblem(f"/{escape_pointer(name)}", "its transfer encoding is not supported"),
        )
    return Part(
        name=name,
        data=data,
        media_type=headers.get("content-type"),
        is_file="filename" in fields or "filename*" in fields,
    )


def _part_headers(head: bytes) -> dict[str, str]:
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise bad_request("The headers of a part are not UTF-8.") from None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise bad_request("The headers of a part are malformed.")
        headers[name.lower()] = value.strip()
    return headers


def parameters(header: str) -> dict[str, str]:
    """The parameters of a header like `form-data; name="a"`, names in lower case, the first of equal ones."""
    found: dict[str, str] = {}
    position = max(header.find(";"), 0)
    while match := _PARAMETER.match(header, position):
        name, quoted, token = match.groups()
        # Browsers write a quote in a name as %22, others escape it.
        value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted).replace("%22", '"')
        found.setdefault(name.lower(), value)
        position = match.end()
    return found


def media_type(header: str) -> str:
    """The bare `type/subtype` of a Content-Type, in lower case."""
    return header.partition(";")[0].strip().lower()
