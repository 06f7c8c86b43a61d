"""What a submission is made of, as the command line names it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from service.cli.failures import UsageError
from service.models import JSON

STDIO: Final = Path("-")


def pair(text: str) -> tuple[str, str]:
    """A `--field`, NAME=VALUE, taken apart; raises `UsageError`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--field {text!r}: write it as NAME=VALUE.")
    return name, value


def json_object(place: str, text: str | bytes) -> dict[str, JSON]:
    """The object that `text` of `place` is; raises `UsageError`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{place} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f'{place} is not a JSON object like {{"name": "value"}}.')
    return value


def read_input(file: Path) -> bytes:
    """The content of a file or of standard input; raises `UsageError`. It blocks."""
    try:
        return sys.stdin.buffer.read() if file == STDIO else file.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {(error.strerror or str(error)).lower()}.") from error
