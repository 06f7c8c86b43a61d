"""FollowingService: what happens to jobs, told in order and without a gap, from wherever a follower has stopped."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import structlog

from service.db import event_reads, queue_depth
from service.db.database import Database
from service.errors import EventNotFoundError, JobNotFoundError, ServiceUnavailableError
from service.event_tail import LOOK_AGAIN_S, PAGE, EventTail
from service.events import EventBus
from service.models import (
    EventFilter,
    EventPage,
    JobEvent,
    JobNews,
    JobRecord,
    JobStatus,
    Place,
    QueuePlace,
    canonical_uuid,
)
from service.throughput import Throughput

#: Reads for followers that may be under way at once: the others are for requests.
_READS: Final = 2
#: Full pages are kept for a moment: many followers may resume at the same place, after a restart of the service.
_KEPT_PAGES: Final = 64
_KEPT_S: Final = 1.0
#: Jobs that are asked about in one statement.
_ASKED: Final = 1_000

log = structlog.get_logger(__name__)

_Read = TypeVar("_Read")


class Follower(Protocol):
    """Somebody who follows events. Clear `changed`, `read`, then wait for `changed`: no event slips between."""

    #: Set when there may be more to read.
    changed: asyncio.Event
    #: Nothing can follow any more.
    has_ended: bool
    #: There is more to read already.
    is_behind: bool

    async def read(self) -> Sequence[JobEvent]:
        """The next events, at most `PAGE`; raises `ServiceUnavailableError`."""
        ...

    def place_of(self, event: JobEvent) -> str:
        """The id by which to resume behind `event`."""
        ...

    @property
    def place(self) -> str | None:
        """The id by which to resume behind what was read, if it says more than the last event's."""
        ...


class FollowingService:
    """Reads events for followers. The database is the truth: wake-ups only shorten the wait for the next look at it."""

    def __init__(
        self,
        database: Database,
        events: EventBus,
        *,
        throughput: Throughput | None = None,
        starts_in_turn: Callable[[str], bool] = lambda plugin: True,
    ) -> None:
        """`starts_in_turn` says whether nothing but their turn holds the jobs of a plugin back."""
        self._database = database
        self._events = events
        self._throughput = throughput
        self._starts_in_turn = starts_in_turn
        self._room = asyncio.Semaphore(_READS)
        self._reading: dict[Hashable, asyncio.Task[Any]] = {}
        self._kept: dict[Hashable, tuple[float, EventPage]] = {}  # until when, the oldest first
        self._followed: collections.Counter[str] = collections.Counter()  # jobs, by how many
        self._tail = EventTail(events, self._newest, lambda place: self._page(place, None))
        self.is_closing = False

    # --- what consumers ask for ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def job(self, job_id: str, tenant: str, after: int) -> Iterator[JobFollower]:
        """Follow a job from behind its event number `after`; raises `JobNotFoundError` for what is no id of a job."""
        canonical = canonical_uuid(job_id)
        if canonical is None:
            raise JobNotFoundError(job_id[:100])
        with self._events.watch(canonical) as changed:
            self._followed[canonical] += 1
            try:
                yield JobFollower(canonical, after, changed, lambda n: self._news(canonical, tenant, n))
            finally:
                self._followed[canonical] -= 1
                if not self._followed[canonical]:
                    del self._followed[canonical]

    @contextlib.asynccontextmanager
    async def all_jobs(self, wanted: EventFilter, after: Place | None) -> AsyncIterator[AllFollower]:
        """Follow all of a tenant's jobs from behind `after`, or from now on.

        Raises `EventNotFoundError` for a place to which no event has come yet, and `ServiceUnavailableError`.
        """
        with self._tail.follow() as changed:
            place = await self._newest() if after is None else after
            if after is not None and not await self._is_reached(after):
                raise EventNotFoundError(
                    f"No event has come to place {after} yet: it is of another database, or of a newer state of this."
                )
            yield AllFollower(wanted, place, changed, self._tail, lambda place: self._page(place, wanted))

    async def queue_place(self, job: JobRecord) -> QueuePlace:
        """Where a job stands in the queue; raises `ServiceUnavailableError`."""
        ahead, eta_s = None, None
        if job.status is JobStatus.PENDING:
            ahead = await queue_depth.count_ahead(self._database.reader, job.id)
        if ahead is not None and self._throughput is not None and self._starts_in_turn(job.plugin):
            eta_s = self._throughput.seconds_for(ahead + 1)
        return QueuePlace(position=ahead, eta_s=eta_s)

    def close(self) -> None:
        """Tell every follower that this process stops; they resume elsewhere, or after its next start."""
        self.is_closing = True
        self._events.missed_some()
        self._tail.wake()

    # --- what the loops ask for ---------------------------------------------------------------------------------

    async def keep_tail(self) -> None:
        """Read the newest events while somebody follows all jobs, until cancelled."""
        await self._tail.keep()

    async def keep_watch(self) -> None:
        """Look at every followed job at regular intervals, whatever wake-ups were missed, until cancelled."""
        known: dict[str, int] = {}
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            followed = list(self._followed)
            try:
                counts: dict[str, int] = {}
                for first in range(0, len(followed), _ASKED):
                    counts |= await event_reads.counts(self._database.reader, followed[first : first + _ASKED])
            except ServiceUnavailableError as error:
                log.debug("followed jobs cannot be looked at", error=str(error))
                continue
            for job_id in followed:
                if counts.get(job_id) != known.get(job_id, -1):
                    self._events.heard(job_id)
            known = {job_id: counts[job_id] for job_id in followed if job_id in counts}

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _newest(self) -> Place:
        return await event_reads.newest(self._database.reader)

    async def _is_reached(self, place: Place) -> bool:
        reader = self._database.reader
        return await self._once(place, lambda: event_reads.is_reached(reader, place))

    async def _page(self, place: Place, wanted: EventFilter | None) -> EventPage:
        key, now, reader = (place, wanted), asyncio.get_running_loop().time(), self._database.reader
        until, kept = self._kept.get(key, (now, None))
        if kept is not None and now < until:
            return kept
        page = await self._once(key, lambda: event_reads.of_all(reader, place, wanted, limit=PAGE))
        if page.is_full:
            self._kept.pop(key, None)
            self._kept[key] = now + _KEPT_S, page
            if len(self._kept) > _KEPT_PAGES:
                del self._kept[next(iter(self._kept))]
        return page

    async def _news(self, job_id: str, tenant: str, n: int) -> JobNews | None:
        reader = self._database.reader
        return await self._once(
            (job_id, tenant, n), lambda: event_reads.of_job(reader, job_id, tenant, after_n=n, limit=PAGE)
        )

    async def _once(self, key: Hashable, read: Callable[[], Awaitable[_Read]]) -> _Read:
        """What `read` gives; whoever asks for the same while it has not begun shares the answer."""
        task: asyncio.Task[_Read] | None = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._read(key, read))
        return await asyncio.shield(task)

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[_Read]]) -> _Read:
        async with self._room:
            # Who asks from now on may have been woken by what this read will not see.
            del self._reading[key]
            return await read()


class JobFollower:
    """A `Follower` of one job: ids are the numbers of its events. It ends with the job, or when that is deleted."""

    def __init__(
        self, job_id: str, after: int, changed: asyncio.Event, read: Callable[[int], Awaitable[JobNews | None]]
    ) -> None:
        self._job_id = job_id
        self._after = after
        self._read = read
        self._is_known = False
        self.changed = changed
        self.has_ended = False
        self.is_behind = False

    async def read(self) -> Sequence[JobEvent]:
        """See `Follower`. Raises `JobNotFoundError` the first time, `EventNotFoundError` for a number too high."""
        news = await self._read(self._after)
        if news is None:
            if not self._is_known:
                raise JobNotFoundError(self._job_id)
            self.has_ended = True
            return []
        if self._after > news.event_count:
            raise EventNotFoundError(
                f"Job {self._job_id} has {news.event_count} events: there is no event {self._after} to resume behind."
            )
        self._is_known = True
        if news.events:
            self._after = news.events[-1].n
        self.is_behind = self._after < news.event_count
        self.has_ended = news.status.is_terminal and not self.is_behind
        return news.events

    def place_of(self, event: JobEvent) -> str:
        """See `Follower`."""
        return str(event.n)

    @property
    def place(self) -> None:
        """See `Follower`: its events say it all."""
        return None


class AllFollower:
    """A `Follower` of all jobs of a tenant: ids are places. It never ends."""

    def __init__(
        self,
        wanted: EventFilter,
        place: Place,
        changed: asyncio.Event,
        tail: EventTail,
        read: Callable[[Place], Awaitable[EventPage]],
    ) -> None:
        self._wanted = wanted
        self._place = place
        self._tail = tail
        self._read = read
        self.changed = changed
        self.has_ended = False
        self.is_behind = False

    async def read(self) -> Sequence[JobEvent]:
        """See `Follower`. Where the tail does not reach back to, the database is read."""
        begin = self._tail.begin
        page = self._tail.after(self._place)
        if page is None:
            page = await self._read(self._place)
            self._place = page.end
            if begin is not None and not page.is_full:
                self._place = max(page.end, begin)  # that was settled before the read, which saw nothing more
        else:
            self._place = page.end
        self.is_behind = page.is_full
        return [event for event in page.events if self._wanted.takes(event)]

    def place_of(self, event: JobEvent) -> str:
        """See `Follower`."""
        return str(event.place)

    @property
    def place(self) -> str:
        """See `Follower`: what was not wanted need not be read again."""
        return str(self._place)
