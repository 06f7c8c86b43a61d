"""What a worker says, taken with mistrust: plugin code may have written it. `FrameError` tells what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from service.errors import FieldProblem
from service.models import Artifact
from service.plugins.loading import ATTRIBUTES
from service.plugins.manifest import PluginManifest, PluginSource
from service.tool_runner.executor import Failure, Incident, Phase
from service.tool_runner.frames import Frame, FrameError, document, parse

#: A header up to this size is decoded on the event loop.
SMALL: Final = 65_536
MAX_NAME_CHARS: Final = 200
MAX_MESSAGE_CHARS: Final = 500
MAX_PROBLEMS: Final = 20

#: What a worker may report; the others are for the service to say, of a worker or of itself.
_INCIDENTS: Final[Mapping[Any, Incident]] = {
    str(incident): incident
    for incident in (
        Incident.REFUSED,
        Incident.DEFINITION,
        Incident.IMPORT,
        Incident.SETUP,
        Incident.RAISED,
        Incident.OUTPUT,
        Incident.MEMORY,
    )
}

_MANIFEST_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "name": (str,),
    "version": (str,),
    "description": (str,),
    "input_schema": (dict,),
    "output_schema": (dict, type(None)),
    "untyped": (bool,),
    "timeout_s": (int, float, type(None)),
    "setup_timeout_s": (int, float, type(None)),
    "memory_mb": (int, float, type(None)),
    "concurrency": (int, type(None)),
    "max_attempts": (int, type(None)),
    "short": (bool,),
}
#: Name, version and description may be those of the entry point and of a docstring, which nothing constrains.
_MANIFEST_RANGES: Final = {
    name: ATTRIBUTES[name] for name in ("timeout_s", "setup_timeout_s", "memory_mb", "concurrency", "max_attempts")
}


def manifest_of(said: Mapping[str, Any], source: PluginSource) -> PluginManifest:
    """The manifest of a plugin that was loaded."""
    fields = said.get("manifest")
    if not isinstance(fields, dict) or fields.keys() != _MANIFEST_TYPES.keys() or fields["name"] != source.name:
        raise FrameError("the manifest is not one")
    for name, types in _MANIFEST_TYPES.items():
        if type(fields[name]) not in types:
            raise FrameError(f"{name} in the manifest is not what it must be")
    for name, (is_valid, expected) in _MANIFEST_RANGES.items():
        if fields[name] is not None and not is_valid(fields[name]):
            raise FrameError(f"{name} in the manifest must be {expected}")
    return PluginManifest(**fields)


def reply_of(frame: Frame) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The reply, and the result in it if there is one."""
    reply = parse(frame)
    return reply, document(reply["result"], frame.attachments) if "result" in reply else None


def failure_of(reply: Mapping[str, Any], phase: Phase, limit_mb: float) -> Failure:
    """What went wrong in `phase`; `limit_mb` is the memory it had."""
    try:
        incident = _INCIDENTS[reply["incident"]]
        message, exception = str(reply["message"]), str(reply["exception"])
        said = (reply.get("problems") or [])[:MAX_PROBLEMS]
        problems = [FieldProblem(str(pointer), str(text)) for pointer, text in said]
    except (KeyError, TypeError, ValueError):
        raise FrameError("the reply is neither a result nor a failure") from None
    details: dict[str, Any] = {}
    if incident in (Incident.IMPORT, Incident.SETUP, Incident.RAISED, Incident.MEMORY):
        details["exception"] = exception
    if incident in (Incident.IMPORT, Incident.SETUP):
        details["phase"] = str(incident)
    if incident is Incident.OUTPUT:
        details["pointer"] = str(reply.get("pointer") or "")
    if incident is Incident.MEMORY:
        message = f"{message} (no memory was left to allocate)"
        details |= {"phase": str(phase), "limit_mb": limit_mb}
    traceback, place, retryable = reply.get("traceback"), reply.get("place"), reply.get("retryable")
    retry_after_s = number_of(reply.get("retry_after_s"))
    return Failure(
        incident=incident,
        message=message,
        details=details,
        problems=problems,
        traceback=traceback if isinstance(traceback, str) else None,
        place=place[:MAX_NAME_CHARS] if isinstance(place, str) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
        retry_after_s=None if retry_after_s is None else max(0.0, retry_after_s),
    )


def progress_of(frame: Frame) -> tuple[float, str]:
    """Fraction and message."""
    said = parse(frame)
    fraction, message = number_of(said.get("fraction")), said.get("message")
    if fraction is None or not 0 <= fraction <= 1 or not isinstance(message, str):
        raise FrameError("progress must be a fraction in 0..1 and a text")
    return fraction, message[:MAX_MESSAGE_CHARS]


def metric_of(frame: Frame) -> tuple[str, float]:
    """Name and value."""
    said = parse(frame) if frame.size <= SMALL else {}
    name, value = said.get("name"), number_of(said.get("value"))
    if not _is_name(name) or value is None:
        raise FrameError("a metric must have a name and a number")
    return name, value


def artifact_of(frame: Frame) -> Artifact:
    """A file."""
    said = parse(frame) if len(frame.header) <= SMALL else {}
    name, media_type = said.get("name"), said.get("media_type")
    if not _is_name(name) or not isinstance(media_type, str) or len(frame.attachments) != 1:
        raise FrameError("an artifact must have a name, a media type and content")
    return Artifact(name=name, data=frame.attachments[0], media_type=media_type[:MAX_NAME_CHARS])


def number_of(value: Any) -> float | None:
    """A number; None for anything else."""
    return value if type(value) in (int, float) else None


def measured(value: Any, most: float) -> float | None:
    """What a worker says that it measured, as far as it can be true: 0 to `most`; None for what is no number."""
    number = number_of(value)
    return None if number is None else min(max(number, 0.0), most)


def span_of(value: Any) -> tuple[int, int] | None:
    """Two places in a file; None for anything else."""
    if type(value) is list and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return max(value[0], 0), max(value[1], 0)
    return None


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()
