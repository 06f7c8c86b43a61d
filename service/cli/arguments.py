"""What was given, looked at while it is still text: what no value can be made of without a change is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, get_args

from cyclopts import App, Argument

from service.cli.failures import UsageError

#: What text must be like to become a value of a type, and how it is said.
_BY_TYPE: Final[Mapping[type, tuple[re.Pattern[str], str]]] = {
    int: (re.compile(r"[+-]?\w{0,18}"), "give a whole number of at most 18 digits."),
    float: (re.compile(r"(?i:(?![+-]?nan$).*)", re.DOTALL), "give a number."),
    str: (re.compile(r"[^\ud800-\udfff]*"), "that is not UTF-8 text."),
}
#: The same for single arguments.
_BY_NAME: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "--mime-type": (re.compile(r"[!#$&^\w.+-]+/[!#$&^\w.+-]+( *;[ -~]*)?", re.ASCII), "write it like image/png."),
    "--idempotency-key": (re.compile(r"[!-~]{1,255}"), "give 1 to 255 printable ASCII characters without spaces."),
}
#: Options that name something, as everything does that has no option.
_NAMES: Final = frozenset({"--plugin", "--tenant", "--output", "--idempotency-key", "--run", "--match", "--columns"})


def check(_app: App, _commands: tuple[str, ...], arguments: Iterable[Argument]) -> None:
    """Raise `UsageError`, naming what was given, for the first text that is not what it stands for."""
    for argument in arguments:
        for token in argument.tokens:
            _check(argument, token.keyword, token.value)


def _check(argument: Argument, keyword: str | None, text: str) -> None:
    name = argument.name
    if not text and (keyword is None or name in _NAMES):
        raise UsageError(f"{name} is empty: is a variable not set?")
    # What takes a lone hyphen takes options that there are not as well.
    if argument.parameter.allow_leading_hyphen and text.startswith("-") and text != "-":
        raise UsageError(f"Unknown option: {text}. See: jobservice submit --help. A file of that name is ./{text}")
    types = {argument.hint, *get_args(argument.hint)}
    rules = [rule for type_, rule in _BY_TYPE.items() if type_ in types]
    for form, advice in (*rules, *([_BY_NAME[name]] if name in _BY_NAME else [])):
        if not form.fullmatch(text):
            raise UsageError(f"{name} {text!r}: {advice}")
