"""Who waits for what in this process: wake-ups after a commit, never the truth, which is the row."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Iterator


class EventBus:
    """Tells waiters that a job has changed, or that there may be work to claim. Used on one event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = collections.defaultdict(set)
        self.work = asyncio.Event()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of the job. Watch first, then read the row: no change slips between."""
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def job_changed(self, job_id: str) -> None:
        """A change of the job is committed."""
        for changed in self._watchers.get(job_id, ()):
            changed.set()

    def work_arrived(self) -> None:
        """There may be something to claim."""
        self.work.set()
