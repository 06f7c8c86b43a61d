"""The payload of a claimed job, with its bytes; those may be read while the job still waits for a worker."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, Final

import structlog

from service.codec import BLOB_KEY, decode, off_loop
from service.documents import Documents
from service.errors import ServiceUnavailableError
from service.models import ClaimedJob

_RETRY_S: Final = 0.5
_REFERENCE: Final = f'"{BLOB_KEY}"'

log = structlog.get_logger(__name__)


class JobPayload:
    """Reads the payload of `job` once, whoever asks first; `discard` it in the end."""

    def __init__(self, job: ClaimedJob, documents: Documents) -> None:
        self._text = job.payload
        self._has_bytes = _REFERENCE in job.payload
        self._documents = documents
        self._context = contextvars.copy_context()  # the log is to name this job, whoever says that it is near
        self._reading: asyncio.Task[dict[str, Any]] | None = None

    def prepare(self) -> None:
        """Begin to read, if there are bytes to be read."""
        if self._reading is None and self._has_bytes:
            self._reading = asyncio.create_task(self._read(), context=self._context)
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # `get` may never come

    async def get(self) -> dict[str, Any]:
        """The payload. Waits while nothing can be read: that is no fault of the job, which its lease protects.

        Raises `BytesGoneError` (`BytesLostError` is one), and `ServiceUnavailableError` where waiting does not help.
        """
        return await (self._reading or self._read())

    def discard(self) -> None:
        """Nobody will ask any more."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> dict[str, Any]:
        stored: dict[str, Any] = await off_loop(self._text, decode, self._text)
        if not self._has_bytes:
            return stored
        while True:
            try:
                (payload,) = await self._documents.with_bytes(stored)
            except ServiceUnavailableError as error:
                if error.retry_after_s is None:
                    raise
                log.debug("payload not read yet", error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return payload or {}
