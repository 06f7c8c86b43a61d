"""Who waits for what in this process: wake-ups after a commit, never the truth, which is the row."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from service.models import JobRecord

#: What `EventBus.tell_others` is told when there may be work; else it is the id of a job that changed, or one of these.
WORK: Final = "work"
#: Something was set for a plugin; schedules were changed.
CONTROLS: Final = "controls"
SCHEDULES: Final = "schedules"
#: Ends that are remembered: far more than are told between a commit and the moment when who waited for it goes on.
_REMEMBERED: Final = 1_024


class Change(asyncio.Event):
    """Set when a job has changed; with its `record` as that was committed, if who told of the change had it at hand."""

    record: JobRecord | None = None

    def clear(self) -> None:
        """Be ready for the next change."""
        super().clear()
        self.record = None


class EventBus:
    """Tells waiters that a job has changed, or that there may be work to claim. Used on one event loop.

    What happens here is told to `tell_others` too, for processes on the same database; what they tell, to `heard`.
    """

    def __init__(self) -> None:
        self._watchers: dict[str, set[Change]] = collections.defaultdict(set)
        self._of_ends: dict[str, set[Change]] = collections.defaultdict(set)
        self._ended: collections.OrderedDict[str, None] = collections.OrderedDict()
        self.work = asyncio.Event()
        self.is_over = False  # the service stops: whoever waits for a job says how it is now
        self.claims = 0  # claims of due jobs that this process has asked the writer for
        self.left_behind = True  # due jobs may wait that the last look at the queue did not take
        self.controls = asyncio.Event()
        self.schedules = asyncio.Event()
        self.anything = asyncio.Event()  # set with every wake-up, for whoever follows all jobs
        self.deliveries = asyncio.Event()  # something may be to be sent to webhooks
        self.tell_others: Callable[[str], None] = lambda what: None
        self._topics = {WORK: self.work, CONTROLS: self.controls, SCHEDULES: self.schedules}

    @contextlib.contextmanager
    def watch(self, job_id: str, *, only_end: bool = False) -> Iterator[Change]:
        """An event that is set at every change of the job; with `only_end` not at those that are known not to end it.

        Watch first, then read the row: no change slips between.
        """
        watchers = self._of_ends if only_end else self._watchers
        changed = Change()
        watchers[job_id].add(changed)
        try:
            yield changed
        finally:
            watchers[job_id].discard(changed)
            if not watchers[job_id]:
                del watchers[job_id]

    def may_have_ended(self, job_id: str) -> bool:
        """Whether the end of the job may have been told just now, before who asks began to watch."""
        return job_id in self._ended

    def is_awaited(self, job_id: str) -> bool:
        """Whether somebody here waits for the end of the job."""
        return job_id in self._of_ends

    def job_changed(self, job_id: str, *, ends: bool = True, record: JobRecord | None = None) -> None:
        """A change of the job is committed; `ends` says that it may have ended it, `record` what it has become."""
        self._wake(job_id, ends=ends, record=record)
        self.tell_others(job_id)

    def changed(self, topic: str) -> None:
        """A change of `CONTROLS` or `SCHEDULES` is committed, or there is `WORK`."""
        self._wake(topic)
        self.tell_others(topic)

    def work_arrives(self) -> int:
        """The writer is asked for something to claim just now: a claim may share the commit. See `work_arrived`."""
        self.work.set()
        return self.claims

    def work_arrived(self, claims: int | None = None) -> None:
        """There may be something to claim, if no claim was asked for since `work_arrives` said `claims`."""
        if claims is None or claims == self.claims:
            self.changed(WORK)
        else:
            self.anything.set()
            self.tell_others(WORK)

    def heard(self, what: str) -> None:
        """Another process says that there is `WORK`, or that `CONTROLS`, `SCHEDULES` or a job have changed."""
        self._wake(what)

    def _wake(self, what: str, *, ends: bool = True, record: JobRecord | None = None) -> None:
        self.anything.set()
        topic = self._topics.get(what)
        if topic is not None:
            topic.set()
            return
        self.deliveries.set()
        if ends:
            self._ended[what] = None
            self._ended.move_to_end(what)
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        for watchers in (self._watchers, self._of_ends) if ends else (self._watchers,):
            for changed in watchers.get(what, ()):
                changed.record = record
                changed.set()

    def close(self) -> None:
        """Nothing ends here any more: everybody looks once more, and waits no longer."""
        self.is_over = True
        self.missed_some()

    def missed_some(self) -> None:
        """Others may have told anything meanwhile: everybody looks again."""
        self.anything.set()
        self.deliveries.set()
        for topic in self._topics.values():
            topic.set()
        for watchers in (*self._watchers.values(), *self._of_ends.values()):
            for changed in watchers:
                changed.set()
