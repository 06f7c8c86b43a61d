"""What the shell is told: exit codes, and what went wrong in a line or two with what to do about it."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Final

import pydantic
from cyclopts import CycloptsError, UnusedCliTokensError
from pydantic_core import ErrorDetails

from service.cli.output import say
from service.client import ApiError, ServiceUnreachableError
from service.errors import InvalidKeyError, KeyNotFoundError, NotStorableError, SettingsFileError
from service.settings import option_of, variable_of


class Exit(enum.IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UsageError(Exception):
    """The command cannot be carried out as it was given; the text says why and what to do."""


def tell(error: Exception, *, as_json: bool) -> Exit:
    """Say on stderr what went wrong; the exit code is what it means."""
    exit_code, message, hint = _explained(error)
    if as_json:
        problem = error.problem if isinstance(error, ApiError) else None
        say(json.dumps({"message": message, "hint": hint, "exit_code": exit_code, "problem": problem}))
    else:
        say(f"jobservice: {message}", style="red")
        if hint:
            say(hint)
    return exit_code


def _explained(error: Exception) -> tuple[Exit, str, str | None]:
    match error:
        case CycloptsError(__cause__=pydantic.ValidationError() as invalid) | (pydantic.ValidationError() as invalid):
            return (
                Exit.USAGE,
                "; ".join(map(_misfit, invalid.errors(include_url=False))),
                "See: jobservice config --help",
            )
        case CycloptsError():
            chain = tuple(error.command_chain or ())
            return Exit.USAGE, _misuse(error, chain), f"See: {' '.join(('jobservice', *chain))} --help"
        case UsageError() | InvalidKeyError() | KeyNotFoundError() | NotStorableError() | SettingsFileError():
            return Exit.USAGE, str(error), None
        case ServiceUnreachableError():
            return (
                Exit.UNREACHABLE,
                str(error),
                "Start it with `jobservice serve`, or name another: --url, JOBSERVICE_URL.",
            )
        case ApiError() if error.status >= 500 or error.status == 429:
            told = str(error).removesuffix(" Try again later.")
            later = "later" if error.retry_after_s is None else f"in {error.retry_after_s:g} s"
            # More at once than may ever wait is told with what to do instead.
            is_in_vain = kind_of(error) == "queue-full" and told == str(error)
            hint = None if is_in_vain else _ADVICE.get(kind_of(error) or "unavailable", f"Try again {later}.")
            return Exit.UNREACHABLE, f"The service cannot do this now ({error.status}): {told}", hint
        case ApiError():
            return Exit.USAGE, f"The service refused ({error.status}): {error}", _ADVICE.get(kind_of(error))
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return Exit.FAILED, f"{place}{error.strerror or error}", None
        case _:
            return Exit.FAILED, str(error), None


def _misuse(error: CycloptsError, chain: tuple[str, ...]) -> str:
    if not isinstance(error, UnusedCliTokensError):
        return str(error)
    what = f"{' '.join(error.unused_tokens or ())}: more than `{' '.join(chain)}` takes."
    return " ".join((what, _TAKES.get(chain[:1], ""))).rstrip()


_ONE_ID: Final = "One ID at a time."
_ONE_NAME: Final = "One NAME at a time."
#: What to do about too many arguments, by the command that was given them.
_TAKES: Final[Mapping[tuple[str, ...], str]] = {
    ("submit",): "One FILE or a folder: for several, `jobservice submit DIR --match '*.png'`.",
    ("show",): _ONE_ID,
    ("result",): _ONE_ID,
    ("watch",): _ONE_ID,
    ("cancel",): _ONE_ID,
    ("retry",): _ONE_ID,
    ("snapshot",): "One FILE, which is made.",
    ("plugins",): _ONE_NAME,
    ("report",): _ONE_NAME,
    ("schedules",): _ONE_NAME,
}

#: What to do about a refusal, by the kind of its problem, where the refusal itself does not say.
_ADVICE: Final[Mapping[str, str]] = {
    "unauthenticated": "Set JOBSERVICE_API_KEY to a key of this service.",
    "unknown-job": "See what there is: `jobservice jobs`.",
    "unknown-plugin": "See what there is: `jobservice plugins`.",
    "unknown-schedule": "See what there is: `jobservice schedules list`.",
    "wrong-state": "See what became of it: `jobservice show ID`.",
    "job-cancelled": "See what became of it: `jobservice show ID`.",
    "too-large": "The service's limit is its setting JOBSERVICE_MAX_BODY_MB.",
    "invalid-payload": "See what the plugin takes: `jobservice plugins NAME`. "
    "JSON is sent with --payload, or as a FILE that ends in .json.",
    "plugin-unavailable": "`jobservice plugins NAME` says why; mend it and start the service again.",
    "": "What answers there is no jobservice: --url or JOBSERVICE_URL says where it is.",
}


def kind_of(error: ApiError) -> str:
    """The kind of the problem; empty where the answer was none of a jobservice."""
    place, _, kind = str(error.problem.get("type", "")).rpartition("/")
    return kind if place == "/problems" else ""


def _misfit(place: ErrorDetails) -> str:
    """What is wrong with one setting, by the names under which it may have been given."""
    name = "_".join(map(str, place["loc"]))
    message = place["msg"].removeprefix(_OWN_WORDS)
    return f"{option_of(name)} ({variable_of(name)}): {message}; given: {place['input']!r}"


#: What pydantic sets before the message of a check of ours.
_OWN_WORDS: Final = "Value error, "
