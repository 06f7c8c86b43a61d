"""Reads JSON that means one thing only: what is ambiguous, or storable nowhere, is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal

import orjson

from service.codec import LONG_NUMBER, MAX_DEPTH, SMALL_CHARS, escape_pointer
from service.errors import FieldProblem, ServiceError

_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**63 - 1
#: Escapes of UTF-16 surrogates: the only way by which a lone one can enter through valid UTF-8.
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


#: Python objects cost every later step a thousand times what their bytes do; bulk data belongs into bytes.
MAX_VALUES: Final = 100_000
#: A string of JSON text, or what is left of one; matched in linear time, whatever the text.
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*+"?', re.DOTALL)


class MalformedJSONError(ServiceError, ValueError):
    """The text is not the JSON we take; `problem.pointer` names the place, if the text is sound enough to have one."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(f"{pointer}: {message}" if pointer else message)
        self.problem = FieldProblem(pointer, message)


class _Fault:
    """Stands in a parsed document where something was refused, so that its place can be named."""

    def __init__(self, message: str) -> None:
        self.message = message


class _FaultError(Exception):
    """Ends the fast parse; `_locate` then parses again to find the place."""


def parse(body: bytes, max_values: int = MAX_VALUES, *, line: int = 1) -> Any:
    """The value of strict UTF-8 JSON text; raises `MalformedJSONError`. `line` is what its first line is called there.

    Refused beside bad syntax: byte order marks, other encodings, duplicate keys, NaN and infinities (spelled or by
    overflow), integers beyond 64 bits, lone surrogates, nesting deeper than 64 levels, more than `max_values` values.
    """
    # Nothing shorter can hold so many. What stands in strings is taken out only where the quick count is too high.
    if len(body) > max_values and count_values(body, max_values) > max_values:
        raise MalformedJSONError(f"there are more than {max_values} values: send bulk data as bytes")
    if (exact := _exact(body)) is not None:
        return exact
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        where = f"byte {error.start}" if line == 1 else f"line {line}, byte {error.start}"
        raise MalformedJSONError(f"the body is not UTF-8 ({where})") from None
    try:
        value = _decoded(_STRICT, text, line)
    except _FaultError:
        located = _decoded(_LOCATING, text, line)
        raise _first_fault(located, "", 0) or MalformedJSONError("not acceptable JSON") from None
    # Neither can be there without these bytes; both searches run at the speed of C.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or _SURROGATE_ESCAPE.search(body):
        fault = _first_fault(value, "", 0)
        if fault:
            raise fault
    return value


def _decoded(decoder: json.JSONDecoder, text: str, line: int) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedJSONError(f"{error.msg} (line {error.lineno + line - 1}, column {error.colno})") from None
    except RecursionError:
        raise MalformedJSONError(_TOO_DEEP) from None


def _exact(body: bytes) -> Any:
    """The value of text that comes back byte for byte from what C made of it; None says nothing.

    Nothing was lost then, so none of the refusals can apply but those which show in the text. Compact JSON, as most
    clients send it, is read in a quarter of the time.
    """
    if len(body) > SMALL_CHARS or body.count(b"[") + body.count(b"{") > MAX_DEPTH or LONG_NUMBER.search(body):
        return None
    try:
        value = orjson.loads(body)
        return value if orjson.dumps(value) == body else None
    except (TypeError, ValueError):
        return None


def count_values(text: bytes, enough: int) -> int:
    """About how many values JSON text holds, exactly told only where there are more than `enough`."""
    count = _separators(text)
    return count if count <= enough else _separators(_STRING.sub(b"", text))


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"


def _decoder(refuse: Callable[[str], Any], on_duplicate: Literal["refuse", "mark"]) -> json.JSONDecoder:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            if on_duplicate == "refuse":
                raise _FaultError
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    value[key] = refuse("the key is given twice")
                seen.add(key)
        return value

    def integer(digits: str) -> Any:
        # int() of very long digits is quadratic, and refused by Python itself beyond 4,300.
        if len(digits) < 19 or (len(digits) <= 20 and _MIN_INT <= int(digits) <= _MAX_INT):
            return int(digits)
        return refuse("integers must fit into 64 bits")

    def number(digits: str) -> Any:
        value = float(digits)
        return value if _MIN_FLOAT <= value <= _MAX_FLOAT else refuse("the number is too large")

    def constant(name: str) -> Any:
        return refuse(f"{name} is not JSON")

    return json.JSONDecoder(object_pairs_hook=pairs, parse_int=integer, parse_float=number, parse_constant=constant)


_MAX_FLOAT: Final = 1.7976931348623157e308
_MIN_FLOAT: Final = -_MAX_FLOAT


def _raise_fault(message: str) -> Any:
    raise _FaultError(message)


_STRICT: Final = _decoder(_raise_fault, "refuse")
_LOCATING: Final = _decoder(_Fault, "mark")


def _first_fault(value: Any, pointer: str, depth: int) -> MalformedJSONError | None:
    kind = type(value)
    if kind is _Fault:
        return MalformedJSONError(value.message, pointer)
    if kind is str:
        return None if _encodable(value) else MalformedJSONError("text must not contain lone surrogates", pointer)
    if kind is dict:
        children = value.items()
    elif kind is list:
        children = enumerate(value)
    else:
        return None
    if depth >= MAX_DEPTH:
        return MalformedJSONError(_TOO_DEEP, pointer)
    for key, item in children:
        if kind is dict and not _encodable(key):
            return MalformedJSONError("keys must not contain lone surrogates", pointer)
        fault = _first_fault(item, f"{pointer}/{escape_pointer(str(key))}", depth + 1)
        if fault:
            return fault
    return None


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
