"""Log lines: structured, one a line, to standard error, each with the request and the job it belongs to."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import sys
import threading
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

#: Libraries whose chatter below a warning is nobody's business.
_QUIET: Final = ("aiohttp", "aiosqlite", "alembic", "asyncio", "sqlalchemy")
_MAX_WAITING: Final = 10_000

LogFormat = Literal["auto", "console", "json"]


class _Sink:
    """A text stream whose writer never waits: lines go to a thread, which writes many at once.

    A full disk or a closed pipe behind `stream` loses lines, never the service; so does a backlog of 10,000.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._drain, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Have `text` written soon."""
        if self._waiting.qsize() < _MAX_WAITING:
            self._waiting.put(text)

    def flush(self) -> None:
        """Nothing: `close` waits for what is on its way."""

    def close(self) -> None:
        """Wait a moment for what is on its way."""
        written = threading.Event()
        self._waiting.put(written)
        written.wait(2)

    def _drain(self) -> None:
        while True:
            taken = [self._waiting.get()]
            while not self._waiting.empty():
                taken.append(self._waiting.get())
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("".join(item for item in taken if isinstance(item, str)))
                self._stream.flush()
            for item in taken:
                if isinstance(item, threading.Event):
                    item.set()


_sinks: Final[list[_Sink]] = []


def flush() -> None:
    """Wait a moment for the lines that are on their way."""
    for sink in _sinks:
        sink.close()


def configure(level: str, form: LogFormat) -> None:
    """Send structlog's and the standard library's lines the same way; call once, before anything logs.

    `auto` writes for people where standard error is a terminal, JSON elsewhere. `request_id` and `job_id` bound with
    `structlog.contextvars` appear on every line of their context.
    """
    sink = _Sink(sys.stderr)
    _sinks.append(sink)
    atexit.register(flush)
    for_people = form == "console" or (form == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if for_people
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*processors, renderer],
        logger_factory=structlog.WriteLoggerFactory(file=sink),  # type: ignore[arg-type]  # all it does is write, flush
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*processors, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, threshold))


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
