"""How an execution ended, read from the pair that `execute_plugin` returned: the one place that judges pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from service.codec import check_document, encode, storable_text
from service.errors import NotStorableError, error_object
from service.models import ErrorType, JobStatus, Pair

#: What an error object may hold; anything else in it (a traceback, say) is not for readers of the record.
_PUBLIC: Final = ("type", "message", "plugin", "details", "timestamp")
_MAX_DETAILS_CHARS: Final = 16_384


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """`result` is a document that both databases hold."""

    result: dict[str, Any]

    @property
    def status(self) -> JobStatus:
        """Where the job goes."""
        return JobStatus.SUCCESS

    @property
    def pair(self) -> Pair:
        """As the seed's contract has it."""
        return self.result, {}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """`error` is a complete inner error object."""

    error: dict[str, Any]

    @property
    def status(self) -> JobStatus:
        """Where the job goes."""
        return JobStatus.FAILED

    @property
    def pair(self) -> Pair:
        """As the seed's contract has it."""
        return {}, {"error": self.error}


Outcome = Succeeded | Failed


def judge(pair: object, plugin: str) -> Outcome:
    """The outcome of a pair. Exactly one side must be set, and the error side decides; `{}` is a legal result.

    An error with `type` and `message` is completed. Whatever is no proper pair is a failure of ours, `InternalError`.
    """
    match pair:
        case (dict() as result, {"error": {"type": str(), "message": str()} as error}) if not result:
            return Failed(error=_complete(error, plugin))
        case (dict() as result, dict() as error) if not error:
            try:
                check_document(result)
            except NotStorableError as refused:
                return failed(ErrorType.INVALID_OUTPUT, f"The result cannot be stored: {refused}", plugin)
            return Succeeded(result=result)
    return failed(ErrorType.INTERNAL, f"The plugin runner returned no (result, error) pair: {_shape(pair)}.", plugin)


def failed(error_type: ErrorType, message: str, plugin: str) -> Failed:
    """A failure with nothing more to tell than its message."""
    return Failed(error=error_object(error_type, storable_text(message), plugin=plugin))


def _complete(error: Mapping[str, Any], plugin: str) -> dict[str, Any]:
    given = {name: error[name] for name in _PUBLIC if error.get(name) is not None}
    details = given.pop("details", None)
    made = error_object(
        storable_text(given.pop("type")),
        storable_text(given.pop("message")),
        plugin=plugin,
        details=_storable_details(details),
    )
    return {**made, **{name: storable_text(str(value)) for name, value in given.items()}}


def _storable_details(details: object) -> dict[str, Any]:
    if not isinstance(details, dict):
        return {}
    try:
        check_document(details)
        if len(encode(details, lambda _: {})) <= _MAX_DETAILS_CHARS:
            return details
    except NotStorableError:
        pass
    return {"omitted": "The details could not be stored."}


def _shape(pair: object) -> str:
    if isinstance(pair, tuple) and len(pair) == 2:
        return "both sides set" if all(pair) else f"({type(pair[0]).__name__}, {type(pair[1]).__name__})"
    return type(pair).__name__
