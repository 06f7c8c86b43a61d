"""What a worker prints: the unnamed file it goes to, of which only the end is kept."""

from __future__ import annotations

import os
import threading
from typing import Final

#: What a worker may have printed before the file is emptied, and what is told of it.
MAX_BYTES: Final = 1_000_000
TAIL_BYTES: Final = 8_192
#: What is kept of a file that is closed: the tails of several calls.
_KEPT_BYTES: Final = 16 * TAIL_BYTES


class Output:
    """Owns the file until `close`. `empty_if_large` belongs to one thread, all else may be called from any."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._rest: bytes | None = None  # once the file is closed
        self._rest_start = 0
        self.emptied = 0  # how often
        self.before_emptied = b""  # the end of what was in it then

    def empty_if_large(self) -> None:
        """Keep a worker that prints without end from filling the disk."""
        size = os.fstat(self._descriptor).st_size
        if size > MAX_BYTES:
            self.before_emptied = os.pread(self._descriptor, TAIL_BYTES, size - TAIL_BYTES)
            os.ftruncate(self._descriptor, 0)
            self.emptied += 1

    def size(self) -> int:
        """How much is in it now."""
        with self._lock:
            return self._size()

    def tail(self, start: int, end: int | None = None) -> bytes:
        """The last bytes of what lies between two places, the second one the end if it is not given."""
        with self._lock:
            size = self._size()
            if start > size:
                start = 0  # it was emptied since that was the end
            end = size if end is None else min(end, size)
            start = min(max(start, end - TAIL_BYTES, 0), end)
            if self._rest is None:
                return os.pread(self._descriptor, end - start, start)
            return self._rest[max(start - self._rest_start, 0) : max(end - self._rest_start, 0)]

    def close(self) -> None:
        """Close the file; its end can still be read."""
        with self._lock:
            self._rest_start = max(0, self._size() - _KEPT_BYTES)
            self._rest = os.pread(self._descriptor, _KEPT_BYTES, self._rest_start)
            os.close(self._descriptor)

    def _size(self) -> int:
        if self._rest is not None:
            return self._rest_start + len(self._rest)
        return os.fstat(self._descriptor).st_size
