"""What is wrong with a value, in the words of this service: pydantic's own speak of its inputs and its parsing."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from pydantic_core import ErrorDetails


def message(detail: ErrorDetails) -> str:
    """What goes on after the name of the field; checks of our own say it themselves."""
    words = _WORDS.get(detail["type"])
    if words is None:
        return detail["msg"]
    return words.format_map({name: _plain(value) for name, value in detail.get("ctx", {}).items()})


def _plain(value: Any) -> Any:
    return f"{Decimal(repr(value)).normalize():f}" if type(value) is float else value


_INTEGER: Final = "must be an integer"
_NUMBER: Final = "must be a number"
_ONE_OF: Final = "must be {expected}"
#: By pydantic's types of errors; in braces what it says beside them.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": _INTEGER,
    "int_parsing": _INTEGER,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have {min_length} or more items",
    "too_long": "must have at most {max_length} items",
    "enum": _ONE_OF,
    "literal_error": _ONE_OF,
}
