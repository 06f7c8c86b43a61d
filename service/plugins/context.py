"""What a running plugin may ask of its host: progress, cancellation, files, measurements."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from service.codec import storable_text
from service.errors import JobCancelledError

MAX_PROGRESS_MESSAGE_CHARS: Final = 500
MAX_NAME_CHARS: Final = 200

_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(\s*;[\x20-\x7e]*)?", re.ASCII)

#: Sends one message of the running call to the parent: a JSON header and raw bytes. Safe to call from any thread.
Emit = Callable[[dict[str, Any], Sequence[bytes]], None]


class Context:
    """One execution as its plugin sees it; passed to `run` where its signature has `context`.

    `deadline` is the Unix time in seconds at which the execution is killed. `log` is a standard logger.
    """

    def __init__(
        self,
        *,
        job_id: str,
        attempt: int,
        deadline: float,
        tmp: Callable[[], Path],
        emit: Emit,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.deadline = deadline
        self.log = logging.getLogger("plugin")
        self._tmp = tmp
        self._emit = emit
        self._is_cancelled = is_cancelled
        self._artifacts: set[str] = set()

    @property
    def tmp(self) -> Path:
        """A folder of this execution alone: empty when it is first asked for, removed after the execution."""
        return self._tmp()

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the work is: `fraction` in 0..1 (what lies outside is clamped) and a short note.

        Cheap enough for an inner loop: the host throttles. Raises `ValueError` for NaN.
        """
        fraction = float(fraction)
        if math.isnan(fraction):
            raise ValueError("progress must be a number in 0..1, not NaN")
        text = storable_text(str(message))[:MAX_PROGRESS_MESSAGE_CHARS]
        self._emit({"type": "progress", "fraction": min(max(fraction, 0.0), 1.0), "message": text}, [])

    def check_cancelled(self) -> None:
        """Return at once, or raise to end `run` when somebody asked to cancel the job; let what it raises through."""
        if self._is_cancelled():
            raise JobCancelledError("the job was cancelled")

    def artifact(self, name: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Keep a file beside the result; it is stored when the execution ends the job as a success or failure.

        Raises `ValueError` for a name that is used already or is not a plain file name, and for a malformed media type;
        `TypeError` where `data` is not bytes.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"an artifact is bytes, not {type(data).__name__}")
        if name in ("", ".", "..") or "/" in name or "\\" in name or not _is_plain(name):
            raise ValueError(f"{name!r} is not a plain file name of at most {MAX_NAME_CHARS} characters")
        if name in self._artifacts:
            raise ValueError(f"there is an artifact {name!r} already")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError(f"{media_type!r} is not a media type such as image/png")
        self._emit({"type": "artifact", "name": name, "media_type": media_type}, [bytes(data)])
        self._artifacts.add(name)

    def metric(self, name: str, value: float) -> None:
        """Record a number about this execution in its attempt; the last value of a name stays.

        Raises `ValueError` for a value that is not finite and for an empty, long or unprintable name.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"metric {name!r} must be a finite number")
        if not _is_plain(name):
            raise ValueError(f"{name!r} is not a metric's name: 1-{MAX_NAME_CHARS} printable characters")
        self._emit({"type": "metric", "name": name, "value": value}, [])


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()
