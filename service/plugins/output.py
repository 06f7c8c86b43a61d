"""Turns what a plugin returned into a document, by one written rule."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import pathlib
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from service.codec import MAX_DEPTH, check_document, escape_pointer, storable_text
from service.errors import NotStorableError, OutputInvalidError

#: Elements of a numpy array that may become JSON; more belongs into bytes.
MAX_ARRAY_ELEMENTS: Final = 1_000_000

# Subclasses (`numpy.float64`, `numpy.str_`, ...) lose their class, whatever conversion they define.
_SCALARS: Final[Mapping[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
}


def _time_text(value: datetime.datetime) -> str | None:
    """ISO 8601; None for the `NaT` of pandas, which is a datetime of the year 1, and like NaN not equal to itself."""
    return datetime.datetime.isoformat(value) if value == value else None


_AS_TEXT: Final[Mapping[type, Callable[[Any], str | None]]] = {
    datetime.datetime: _time_text,
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    decimal.Decimal: str,
    uuid.UUID: str,
    pathlib.PurePath: str,
    ipaddress.IPv4Address: str,
    ipaddress.IPv6Address: str,
    ipaddress.IPv4Network: str,
    ipaddress.IPv6Network: str,
}


def plain(value: Any) -> dict[str, Any]:
    """`value` as a document that `codec.check_document` accepts; nothing in it is shared with `value`.

    The rule: a mapping, dataclass or pydantic model becomes a dict with text keys, a root model what its root becomes;
    list and tuple become a list; a numpy scalar its Python value and a numpy array of at most 1,000,000 elements nested
    lists; an enum member its value; bytearray and memoryview become bytes; dates and times (ISO 8601), UUIDs, decimals,
    paths, IP addresses and networks and pydantic's URLs become text; a time that is none (`NaT`) becomes None.

    Raises `OutputInvalidError` for everything else: a result that is no mapping at the top, NaN, infinities, integers
    beyond 64 bits, keys that are not text, nesting deeper than 64 levels (so a cycle), sets, generators, other objects.
    """
    try:
        document = _convert(value, "", 0)
    except (OutputInvalidError, MemoryError):
        raise
    except Exception as error:  # an object's own iteration or serializer may raise anything
        raise OutputInvalidError(f"cannot be read: {type(error).__name__}: {error}", "") from error
    if not isinstance(document, dict):
        raise OutputInvalidError(f"run must return a dict, a dataclass or a pydantic model, not {_name(value)}", "")
    try:
        check_document(document)
    except NotStorableError as error:
        raise OutputInvalidError(error.problem.message, error.problem.pointer) from None
    return document


def _convert(value: Any, pointer: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _convert(value.value, pointer, depth)
    for kind, exact in _SCALARS.items():
        if isinstance(value, kind):
            return exact(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    # The outermost container has depth 0 and `check_document` allows MAX_DEPTH of them: only a cycle gets past here.
    if depth > MAX_DEPTH:
        raise OutputInvalidError(f"nested deeper than {MAX_DEPTH} levels, or a cycle", pointer)
    if isinstance(value, list | tuple):
        return [_convert(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(value)]
    if (fields := _fields(value)) is not None:
        return {_key(key, pointer): _convert(item, f"{pointer}/{_token(key)}", depth + 1) for key, item in fields}
    for kind, as_text in _AS_TEXT.items():
        if isinstance(value, kind):
            return as_text(value)
    # Who returns a pydantic model has imported pydantic; a plugin without it need not wait for it.
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return _convert(value.model_dump(by_alias=True), pointer, depth)  # a root model may dump to anything
    if pydantic is not None and isinstance(value, pydantic.AnyUrl):
        return str(value)
    return _convert_array(value, pointer, depth)


def _fields(value: Any) -> list[tuple[Any, Any]] | None:
    """The members of what becomes a dict, None for anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _convert_array(value: Any, pointer: str, depth: int) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        if value.size > MAX_ARRAY_ELEMENTS:
            raise OutputInvalidError(
                f"an array of {value.size} elements is too large for JSON: return it as bytes", pointer
            )
        is_timed = value.dtype.kind in "mM" or value.dtype.names is not None
        if is_timed and (value.ndim or isinstance(value, numpy.void)):
            return [_convert(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(value)]
        listed = value.tolist()
        if is_timed and isinstance(listed, int):  # more exact than Python's times, or beyond its calendar: a count
            listed = str(value) if value.dtype.kind == "M" else value
        if not isinstance(listed, numpy.generic | numpy.ndarray):
            return _convert(listed, pointer, depth)
    raise OutputInvalidError(f"{_name(value)} is neither a JSON value nor bytes", pointer)


def _key(key: Any, pointer: str) -> str:
    if not isinstance(key, str):
        raise OutputInvalidError(f"keys must be text, not {_name(key)}", pointer)
    return str.__str__(key)


def _token(key: Any) -> str:
    return escape_pointer(storable_text(str(key)))


def _name(value: Any) -> str:
    return type(value).__name__
