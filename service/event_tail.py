"""The newest events of all jobs, read once for everybody who follows them."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog

from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.models import EventPage, JobEvent, Place

#: Events of one read: what a follower holds at most.
PAGE: Final = 50
#: How long a follower trusts the wake-ups of this process before the database is asked.
LOOK_AGAIN_S: Final = 2.0
#: What happens within this time is read together.
GATHER_S: Final = 0.25
#: So many events are kept: who is further behind reads for himself.
_KEPT: Final = 1_000
_RETRY_S: Final = 1.0

log = structlog.get_logger(__name__)


class EventTail:
    """Reads on while somebody follows, at most some 1 / `GATHER_S` times a second beside what it has to catch up on."""

    def __init__(
        self,
        events: EventBus,
        newest: Callable[[], Awaitable[Place]],
        read: Callable[[Place], Awaitable[EventPage]],
    ) -> None:
        """`newest` tells the place from which on to read, `read` the page behind a place."""
        self._events = events
        self._newest = newest
        self._read = read
        self._followers: set[asyncio.Event] = set()
        self._wanted = asyncio.Event()
        self._kept: list[JobEvent] = []
        self.begin: Place | None = None  # everything between `begin` and `end` is here; None while nobody follows
        self._end = Place(0, 0)

    @contextlib.contextmanager
    def follow(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever there may be more behind the end."""
        changed = asyncio.Event()
        self._followers.add(changed)
        self._wanted.set()
        try:
            yield changed
        finally:
            self._followers.discard(changed)

    def after(self, place: Place) -> EventPage | None:
        """The page behind `place`, or None if some of it is not here. The end is where others have read to."""
        if self.begin is None or place < self.begin:
            return None
        first = bisect.bisect_right(self._kept, place, key=lambda event: event.place)
        events = self._kept[first : first + PAGE]
        is_full = first + PAGE < len(self._kept)
        return EventPage(events=events, end=events[-1].place if is_full else max(place, self._end), is_full=is_full)

    def wake(self) -> None:
        """Let every follower look."""
        for changed in self._followers:
            changed.set()

    async def keep(self) -> None:
        """Read on, until cancelled."""
        is_awake = True
        while True:
            if not self._followers:
                self._kept, self.begin = [], None
                self._wanted.clear()
                await self._wanted.wait()
            self._events.anything.clear()
            try:
                is_full = await self._read_on()
            except ServiceUnavailableError as error:
                log.debug("events cannot be read", error=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            if is_full:
                continue
            await asyncio.sleep(GATHER_S)
            # What woke us may not have been settled when we looked: sleep only after a look for which nothing did.
            is_awake = (
                self._events.anything.is_set() if is_awake else await happens(self._events.anything, LOOK_AGAIN_S)
            )

    async def _read_on(self) -> bool:
        """Read a page, the first time only where the end is; whether there is more."""
        if self.begin is None:
            self.begin = self._end = await self._newest()
            page = EventPage(events=[], end=self._end, is_full=False)
        else:
            page = await self._read(self._end)
            if not page.events:
                return False
        self._kept += page.events
        self._end = page.end
        if len(self._kept) > 2 * _KEPT:
            self.begin = self._kept[-_KEPT - 1].place
            del self._kept[:-_KEPT]
        self.wake()
        return page.is_full


async def happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether `event` is set within `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    return False
