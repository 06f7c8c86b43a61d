"""Documents: JSON in which bytes may stand. The one strict encoder in front of both databases and both pipes."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import orjson

from service.errors import NotStorableError

T = TypeVar("T")

MAX_DEPTH: Final = 64
#: The longest JSON of a payload or result, in bytes; bytes values count separately.
MAX_JSON_BYTES: Final = 4 * 1024 * 1024
#: How many bytes values a payload or result may hold: each is a row, in a transaction that everybody else waits for.
MAX_BYTES_VALUES: Final = 4_096
#: Keys that stand for bytes in documents; nobody may use them for anything else.
BYTES_KEY: Final = "$bytes"
BLOB_KEY: Final = "$blob"

#: Documents of at most so many values, and so many characters of text, are worked on faster than handed to a thread.
SMALL_NODES: Final = 500
SMALL_CHARS: Final = 65_536

_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1
#: Only such can be integers beyond 64 bits; orjson takes them up to 2**64 - 1.
LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")


def check_document(value: Any) -> None:
    """Raise `NotStorableError`, naming the place, unless `value` is JSON (bytes allowed) that both databases hold.

    Refused: NaN and infinities, integers beyond 64 bits, U+0000, lone surrogates, keys that are not text, the reserved
    keys `$bytes` and `$blob`, nesting deeper than 64, cycles, and any other type. Tuples are not lists.
    """
    _check(value, "", 0)


def _check(value: Any, pointer: str, depth: int) -> None:
    kind = type(value)
    if kind is str:
        _check_text(value, pointer)
    elif value is None or kind is bool or kind is bytes:
        pass
    elif kind is int:
        if not _MIN_INT <= value <= _MAX_INT:
            raise NotStorableError(pointer, "integers must fit into 64 bits")
    elif kind is float:
        if not math.isfinite(value):
            raise NotStorableError(pointer, "numbers must be finite, not NaN or infinite")
    elif depth >= MAX_DEPTH:
        raise NotStorableError(pointer, f"nested deeper than {MAX_DEPTH} levels, or a cycle")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise NotStorableError(pointer, f"keys must be text, not {type(key).__name__}")
            _check_text(key, pointer)
            if key in (BYTES_KEY, BLOB_KEY):
                raise NotStorableError(pointer, f"the key {key!r} is reserved")
            _check(item, f"{pointer}/{escape_pointer(key)}", depth + 1)
    elif kind is list:
        for index, item in enumerate(value):
            _check(item, f"{pointer}/{index}", depth + 1)
    else:
        raise NotStorableError(pointer, f"{kind.__name__} is not a JSON value")


def _check_text(text: str, pointer: str) -> None:
    if "\0" in text:
        raise NotStorableError(pointer, "text must not contain U+0000")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotStorableError(pointer, "text must not contain lone surrogates") from None


#: A tuple is how several documents are asked about at once.
_CONTAINERS: Final = frozenset({dict, list, tuple})


def is_small(document: Any) -> bool:
    """Whether `document` may be checked, encoded or rendered on the event loop."""
    if type(document) is str:
        return len(document) <= SMALL_CHARS
    budget = SMALL_NODES
    chars = 0
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind not in _CONTAINERS:
            continue
        budget -= len(value)
        if budget < 0:
            return False
        for item in value.values() if kind is dict else value:
            kind = type(item)
            if kind is str:
                chars += len(item)
            elif kind in _CONTAINERS:
                pending.append(item)
        if chars > SMALL_CHARS:
            return False
    return True


async def off_loop(document: Any, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread unless `document`, which it goes through, is small."""
    if is_small(document):
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def plain_text(document: Any) -> str | None:
    """The text of a small document without bytes, if a look from C is enough to know that it passes `check_document`.

    None says nothing: then `check_document` and `encode` tell. A document that comes back equal from its own text holds
    no NaN and no other types; what is left are the rules that show in the text. 2 us where the walk takes 20.
    """
    try:
        text = orjson.dumps(document)
        if (
            len(text) > SMALL_CHARS
            or text.count(b"{") + text.count(b"[") > MAX_DEPTH
            or b'"$b' in text
            or b"\\u0000" in text
            or LONG_NUMBER.search(text)
            or orjson.loads(text) != document
        ):
            return None
    except (TypeError, ValueError):
        return None
    return text.decode()


def storable_text(text: str) -> str:
    """`text` without what no document may hold: U+0000 goes, a lone surrogate becomes `?`."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def escape_pointer(token: str) -> str:
    """One reference token of a JSON Pointer (RFC 6901 §3)."""
    return token.replace("~", "~0").replace("/", "~1")


def encode(value: Any, on_bytes: Callable[[bytes], Mapping[str, Any]] | None = None, *, sort_keys: bool = False) -> str:
    """`value` as compact JSON text; each bytes value becomes what `on_bytes` makes of it.

    Trusts `value` to have passed `check_document` or to come from `decode`.
    """
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    return orjson.dumps(value, default=on_bytes and _only_bytes(on_bytes), option=option).decode()


def _only_bytes(on_bytes: Callable[[bytes], Mapping[str, Any]]) -> Callable[[Any], Any]:
    def default(value: Any) -> Any:
        if type(value) is bytes:
            return on_bytes(value)
        raise TypeError(f"{type(value).__name__} is not a JSON value")

    return default


def decode(text: str | bytes) -> Any:
    """The value of strict JSON text; raises `ValueError` (with the position) for anything else, NaN included."""
    return orjson.loads(text)


def replace_marked(value: Any, key: str, replace: Callable[[Any], Any]) -> Any:
    """A copy of `value` in which every object `{key: x}` with that single key is replaced by `replace(x)`."""
    if type(value) is dict:
        if len(value) == 1 and key in value:
            return replace(value[key])
        return {name: replace_marked(item, key, replace) for name, item in value.items()}
    if type(value) is list:
        return [replace_marked(item, key, replace) for item in value]
    return value
