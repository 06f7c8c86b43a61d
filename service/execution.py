"""An execution: a claimed job that this process runs, from its place at a worker to the record of its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from contextlib import AbstractAsyncContextManager

from service.calls import CallReport
from service.job_payload import JobPayload
from service.lookahead import Lookahead
from service.models import ClaimedJob, JobRecord, JobStatus, Pair


@dataclasses.dataclass(slots=True)
class Execution:
    """A job that this process runs. `stopping` says why its plugin was stopped; None while it may run on.

    `trusted_until` is a time of the event loop's clock: then the lease is as good as lost, if it is not renewed before.
    """

    job: ClaimedJob
    task: asyncio.Task[Pair | None]
    trusted_until: float
    lookahead: Lookahead | None  # None where the job is somebody's order, which waits for no place
    claims: int | None = None  # as `EventBus.work_arrives` said when the end was handed to the writer
    frees_a_place: bool = True  # False where no due job was left behind that could take it
    in_plugin: bool = False
    ending: bool = False
    stopping: JobStatus | None = None
    record: JobRecord | None = None  # once its end is committed, if somebody waits for that

    def place(self, payload: JobPayload) -> AbstractAsyncContextManager[None]:
        """Where the plugin is executed; raises `TimeoutError` when there is none for long."""
        if self.lookahead is None:
            return contextlib.nullcontext()
        return self.lookahead.place(self.job.plugin, payload.prepare)

    def tell(self, report: CallReport) -> None:
        """Have the time that the plugin took count for what is claimed next."""
        if self.lookahead is not None and report.run_s is not None:
            self.lookahead.ended(self.job.plugin, report.run_s)

    def stop(self, towards: JobStatus) -> None:
        """Stop the plugin, for the job to be CANCELLED or PENDING again; too late once its outcome is being written."""
        if self.stopping is None and not self.ending:
            self.stopping = towards
            if self.in_plugin:  # a task cancelled before its first step would end without a word
                self.task.cancel()
