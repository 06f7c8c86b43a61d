"""What a submission is made of, as the command line names it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from service import strict_json
from service.cli.failures import UsageError
from service.client import ApiError, Client, Job, media_type_of, places
from service.errors import BODY_AND_PARAMETER, NOT_A_FIELD
from service.models import JSON, JobOptions

STDIO: Final = Path("-")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How inputs are sent: to which plugin, with which further fields and options; None finds out what a file is."""

    plugin: str
    fields: Mapping[str, str]
    mime_type: str | None
    options: JobOptions


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """The content of a file as a plugin gets it: its bytes, or the whole payload that it is."""

    data: bytes | None
    media_type: str
    payload: dict[str, JSON] | None = None


def read(file: Path, order: Order) -> Input:
    """A file, or standard input; a .json file is the whole payload. Raises `UsageError`. It blocks."""
    data = _content(file)
    if file.suffix.lower() != ".json" or order.mime_type is not None:
        return Input(data, order.mime_type or media_type_of(str(file), data))
    if order.fields:
        raise UsageError(f"--field goes with a FILE that is not JSON: put the fields into {file}.")
    return Input(data, "application/json", json_object(str(file), data))


async def send(client: Client, order: Order, given: Input | None, idempotency_key: str | None) -> Job:
    """The job made of `given`; without it the fields alone are the payload. Raises `UsageError`."""
    if given and given.payload is not None:
        return await client.submit(order.plugin, given.payload, options=order.options, idempotency_key=idempotency_key)
    try:
        return await client.submit_file(
            order.plugin,
            given.data if given else None,
            media_type=given.media_type if given else "",
            fields=order.fields,
            options=order.options,
            idempotency_key=idempotency_key,
        )
    except ApiError as error:
        if given:
            _refuse_place(error, order)
        raise


def _refuse_place(error: ApiError, order: Order) -> None:
    """Raise `UsageError` where FILE cannot be the field that the service made it."""
    for pointer, message in places(error.problem):
        field = pointer.removeprefix("/")
        if message == BODY_AND_PARAMETER:
            raise UsageError(f"--field {field}: FILE is this field already, so leave one of them.") from error
        if message == NOT_A_FIELD and field not in order.fields:
            raise UsageError(
                f"{order.plugin} has no single bytes field to put FILE into. "
                'JSON is sent with --payload, or as a FILE that ends in .json. In it bytes are {"$bytes": BASE64}. '
                f"See what it takes: `jobservice plugins {order.plugin}`."
            ) from error


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """Every `--field`, NAME=VALUE, taken apart; raises `UsageError`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--field {text!r}: write it as NAME=VALUE.")
        if name in found:
            raise UsageError(f"--field {name} is given twice: leave one of them.")
        found[name] = value
    return found


def json_object(place: str, text: str | bytes) -> dict[str, JSON]:
    """The object that `text` of `place` is; raises `UsageError`."""
    try:
        # Windows writes JSON in encodings that requests do not have.
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        value = strict_json.parse(text.encode())
    except ValueError as error:
        raise UsageError(f"{place} is not JSON that can be sent: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f'{place} is not a JSON object like {{"name": "value"}}.')
    return value


def _content(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == STDIO else file.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {(error.strerror or str(error)).lower()}.") from error
