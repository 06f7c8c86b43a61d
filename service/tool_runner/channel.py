"""The service's end of the socket to a worker: frames go out in their order, and come in as they arrive."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from service.tool_runner.frames import READ_SIZE, Frame, FrameDecoder, FrameError

_WRITE_SIZE: Final = 1_048_576


class Channel:
    """Reads from now on. Does not own the socket; to be used on the event loop alone.

    `on_frame` takes each frame and raises `FrameError` for one that must not be; `on_broken` is told of it, and of what
    is no frame at all. `on_hangup` is told once that the other end is closed.
    """

    def __init__(
        self,
        connection: socket.socket,
        max_attached_bytes: int,
        *,
        on_frame: Callable[[Frame], None],
        on_broken: Callable[[FrameError], None],
        on_hangup: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._decoder = FrameDecoder(max_attached_bytes)
        self._on_frame = on_frame
        self._on_broken = on_broken
        self._on_hangup = on_hangup
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[memoryview] = deque()
        self._is_writing = False
        self._loop.add_reader(connection, self._on_readable)

    @property
    def is_clear(self) -> bool:
        """Whether the socket has taken everything that was sent."""
        return not self._unsent

    def send(self, buffers: Sequence[bytes]) -> None:
        """Send one packed frame. Never waits, and is silent where nobody listens any more: reading tells."""
        was_clear = self.is_clear
        self._unsent += map(memoryview, buffers)
        if was_clear:  # else the loop calls when the socket takes more
            self._on_writable()

    def hang_up(self) -> None:
        """Tell the worker that nothing more will be sent."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Read what is there, then stop reading and writing."""
        with suppress(OSError):
            while data := self._connection.recv(READ_SIZE):
                self._take(data)
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)

    def _on_writable(self) -> None:
        """Write what the socket takes now; the loop calls again for the rest. Nothing is copied on the way."""
        while self._unsent:
            view = self._unsent[0]
            try:
                sent = self._connection.send(view[:_WRITE_SIZE])
            except BlockingIOError:
                self._is_writing = True
                self._loop.add_writer(self._connection, self._on_writable)
                return
            except OSError:
                break
            if sent == len(view):
                self._unsent.popleft()
            else:
                self._unsent[0] = view[sent:]
        self._unsent.clear()
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._connection)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._loop.remove_reader(self._connection)
            self._on_hangup()

    def _take(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except FrameError as error:
            self._on_broken(error)
