"""The frames that service and worker exchange: a JSON header and raw attachments, every length capped."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from service.codec import BYTES_KEY, MAX_BYTES_VALUES, MAX_JSON_BYTES, check_document, replace_marked

#: A document, and what is said beside it.
MAX_HEADER_BYTES: Final = MAX_JSON_BYTES + 65_536
#: What either end reads at once. `recv` allocates all of it; from 128 KiB on that is a mapping, 13 us instead of 2.5.
READ_SIZE: Final = 65_536

_PREFIX: Final = struct.Struct("<BII")
_LENGTH: Final = struct.Struct("<Q")


class Kind(enum.IntEnum):
    """What a frame says. The first group goes to the worker, the second comes from it."""

    HELLO = 1  # which plugin to load and within which limits; the first frame
    CALL = 2
    CANCEL = 3  # of the call with that number

    STARTED = 15  # the worker is there and has not seen the plugin yet
    MANIFEST = 16  # the plugin is loaded
    READY = 17  # set-up is done, the clock of the first call starts
    PROGRESS = 18
    METRIC = 19
    ARTIFACT = 20
    REPLY = 21  # the end of a call, or of the attempt to load
    LAST_REPLY = 22  # the end of a call, after which the worker takes no other one


_KINDS: Final = {int(kind): kind for kind in Kind}


class FrameError(ValueError):
    """The peer broke the protocol; its text says how."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One message; `header` is JSON text, not parsed yet."""

    kind: Kind
    header: bytes
    attachments: Sequence[bytes] = ()

    @property
    def size(self) -> int:
        """Bytes of content."""
        return len(self.header) + sum(map(len, self.attachments))


def pack(kind: Kind, header: Mapping[str, Any], attachments: Sequence[bytes] = ()) -> list[bytes]:
    """The frame as buffers to write in order; bytes inside `header` become `{"$bytes": index}` and are attached.

    Raises `FrameError` where the header is not JSON, longer than `MAX_HEADER_BYTES` or has too many bytes values.
    """
    attached = list(attachments)

    def attach(value: Any) -> dict[str, int]:
        if type(value) is not bytes:
            raise TypeError(f"{type(value).__name__} is not a JSON value")
        attached.append(value)
        return {BYTES_KEY: len(attached) - 1}

    try:
        text = orjson.dumps(header, default=attach)
    except orjson.JSONEncodeError as error:
        raise FrameError(str(error)) from error
    if len(text) > MAX_HEADER_BYTES:
        raise FrameError(f"its JSON takes {len(text)} bytes, more than {MAX_JSON_BYTES}: pass large data as bytes")
    if len(attached) > MAX_BYTES_VALUES:
        raise FrameError(f"it holds {len(attached)} bytes values, more than {MAX_BYTES_VALUES}")
    lengths = b"".join(_LENGTH.pack(len(data)) for data in attached)
    return [_PREFIX.pack(kind, len(text), len(attached)) + lengths + text, *filter(None, attached)]


def parse(frame: Frame) -> dict[str, Any]:
    """The header as an object, its marked bytes not yet put in; raises `FrameError` for anything else."""
    try:
        header = orjson.loads(frame.header)
    except orjson.JSONDecodeError as error:
        raise FrameError(f"the header is not JSON: {error}") from None
    if type(header) is not dict:
        raise FrameError("the header is not an object")
    return header


def document(value: Any, attachments: Sequence[bytes]) -> dict[str, Any]:
    """`value`, a part of a parsed header, with its bytes put in; what comes out passes `codec.check_document`.

    Raises `FrameError` for anything that is no such document.
    """
    if type(value) is not dict:
        raise FrameError("a document must be an object")

    def attached(index: Any) -> bytes:
        if type(index) is not int or not 0 <= index < len(attachments):
            raise FrameError("a bytes value is named that was not sent")
        return attachments[index]

    try:
        # A peer that uses the reserved key otherwise is refused below, as is one that nests too deep.
        restored: dict[str, Any] = replace_marked(value, BYTES_KEY, attached) if attachments else value
        check_document(restored)
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not a document: {error}") from None
    if type(restored) is not dict:
        raise FrameError("a document must be an object")
    return restored


class FrameDecoder:
    """Cuts a stream of bytes into frames, however it arrives, holding no more than was received.

    The peer is not trusted: `feed` raises `FrameError` as soon as a length is announced that is beyond the caps.
    `max_attached_bytes` bounds the attachments of one frame together.
    """

    def __init__(self, max_attached_bytes: int) -> None:
        self._max_attached_bytes = max_attached_bytes
        self._parts: list[bytes] = []
        self._frame = self._cut()
        self._missing = next(self._frame)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes, in order."""
        position = 0
        while position < len(data):
            part = data[position : position + self._missing]
            position += len(part)
            self._missing -= len(part)
            self._parts.append(part)
            while self._missing == 0:
                whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                try:
                    self._missing = self._frame.send(whole)
                except StopIteration as done:
                    yield done.value
                    self._frame = self._cut()
                    self._missing = next(self._frame)

    def _cut(self) -> Generator[int, bytes, Frame]:
        """One frame: yields how many bytes it needs next and is sent them."""
        kind, header_size, count = _PREFIX.unpack((yield _PREFIX.size))
        if kind not in _KINDS:
            raise FrameError(f"no such kind of frame: {kind}")
        if header_size > MAX_HEADER_BYTES or count > MAX_BYTES_VALUES:
            raise FrameError(f"a frame with a header of {header_size} bytes and {count} attachments is too large")
        sizes = [size for (size,) in _LENGTH.iter_unpack((yield count * _LENGTH.size))] if count else []
        if sum(sizes) > self._max_attached_bytes:
            raise FrameError(f"attachments of {sum(sizes)} bytes, more than {self._max_attached_bytes}")
        header = yield header_size
        attachments = []
        for size in sizes:
            attachments.append((yield size))
        return Frame(_KINDS[kind], header, attachments)
