"""How many streams of events are open, and how many may be."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from service.access import Caller
from service.errors import TooManyStreamsError

_RETRY_AFTER_S: Final = 10


class OpenStreams:
    """Counts the streams of this process, and refuses one too many."""

    def __init__(self, *, most: int, most_per_caller: int) -> None:
        self._most = most
        self._most_per_caller = most_per_caller
        self._of_caller: collections.Counter[str | None] = collections.Counter()  # by key
        self._turn = asyncio.Semaphore(1)

    @property
    def count(self) -> int:
        """How many are open."""
        return self._of_caller.total()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Work for one stream inside the block: a thousand that wake at once go one by one, requests between them."""
        async with self._turn:
            yield
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def room_for(self, caller: Caller) -> Iterator[None]:
        """One more for as long as the block runs; raises `TooManyStreamsError`."""
        for whose, open_now, most in (
            ("This process", self.count, self._most),
            ("One caller", self._of_caller[caller.key_id], self._most_per_caller),
        ):
            if open_now >= most:
                raise TooManyStreamsError(whose, most, retry_after_s=_RETRY_AFTER_S)
        self._of_caller[caller.key_id] += 1
        try:
            yield
        finally:
            self._of_caller[caller.key_id] -= 1
            if not self._of_caller[caller.key_id]:
                del self._of_caller[caller.key_id]
