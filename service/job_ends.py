"""How executions are recorded: the outcome becomes what the row is to say, and is written until it is there."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.calls import CallReport
from service.db import job_endings
from service.db.job_endings import Ended, Ending
from service.db.writer import Writer
from service.documents import Documents
from service.errors import ServiceError, ServiceUnavailableError
from service.events import EventBus
from service.execution import Execution
from service.metrics import Metrics
from service.models import ClaimedJob, ErrorType, JobStatus
from service.outcomes import Failed, Outcome, Succeeded, failed
from service.retries import RetryPolicy

_RETRY_S: Final = 0.5

log = structlog.get_logger(__name__)


class EndRecorder:
    """Records for the runner `owner` how its executions ended. While it `is_patient` it never gives up an outcome."""

    def __init__(
        self,
        writer: Writer,
        documents: Documents,
        events: EventBus,
        metrics: Metrics,
        retries: RetryPolicy,
        *,
        owner: str,
        is_patient: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._documents = documents
        self._events = events
        self._metrics = metrics
        self._retries = retries
        self._owner = owner
        self._is_patient = is_patient

    async def record(self, execution: Execution, outcome: Outcome | None, report: CallReport) -> Outcome | None:
        """Write the end of an execution; the outcome as recorded. What cannot be stored becomes a failure that can.

        None where the plugin was stopped: the job is CANCELLED then, or PENDING again.
        """
        job, cancelled = execution.job, execution.stopping is JobStatus.CANCELLED
        try:
            await self._write(execution, lambda: self._ending(job, outcome, report, cancelled=cancelled))
            return outcome
        except Exception as error:
            log.exception("an outcome could not be stored", plugin=job.plugin)
            why = str(error) if isinstance(error, ServiceError) else "see the service's log."
            refused = failed(ErrorType.INTERNAL, f"The outcome could not be stored: {why}", job.plugin)
            await self._write(execution, lambda: self._ending(job, refused, CallReport(), cancelled=False))
            return refused

    async def _ending(self, job: ClaimedJob, outcome: Outcome | None, report: CallReport, *, cancelled: bool) -> Ending:
        is_awaited = self._events.is_awaited(job.id)
        make = functools.partial(Ending, job=job, owner=self._owner, report=report, is_awaited=is_awaited)
        artifacts, artifact_blobs = await self._documents.store_artifacts(report.artifacts)
        match outcome:
            case Succeeded():
                result, _, blobs = await self._documents.store(outcome.result)
                return make(status=outcome.status, result=result, artifacts=artifacts, blobs=[*blobs, *artifact_blobs])
            case Failed() if (delay_s := self._retries.delay_s(job, outcome.error["type"], report)) is not None:
                return make(status=JobStatus.PENDING, error=outcome.error, retry_in_s=delay_s)
            case Failed():
                return make(status=outcome.status, error=outcome.error, artifacts=artifacts, blobs=artifact_blobs)
            case None if cancelled:
                return make(status=JobStatus.CANCELLED, cancel_reason="requested while running")
            case None:
                return make(status=JobStatus.PENDING)

    async def _write(self, execution: Execution, make: Callable[[], Awaitable[Ending]]) -> None:
        """Retries while nothing can be stored: the outcome is nowhere else. Gives up only with a service that stops."""
        is_again = False
        while True:
            try:
                ending = await make()  # its bytes go to files, whose disk may be full too
                if is_again:
                    ending = dataclasses.replace(ending, is_again=True)
                execution.frees_a_place = self._events.left_behind or ending.status is JobStatus.PENDING
                if execution.frees_a_place:
                    execution.claims = self._events.work_arrives()
                ended = await self._writer.write(job_endings.end, ending)
            except ServiceUnavailableError as error:
                if error.retry_after_s is None:
                    raise
                if not self._is_patient():
                    log.error(
                        "outcome lost; the job runs again when its lease has ended, or after the next start",
                        error=str(error),
                    )
                    return
                log.debug("outcome not written yet", error=str(error))
                is_again = True
                await asyncio.sleep(_RETRY_S)
            else:
                self._tell(execution.job, ending, ended)
                if ended is not None:
                    execution.record = ended.record
                return

    def _tell(self, job: ClaimedJob, ending: Ending, ended: Ended | None) -> None:
        if ended is None:
            self._metrics.stale_writes.inc()
            log.warning("late outcome refused: the job is no longer held", fence=job.fence, status=ending.status)
            return
        self._metrics.moved(ended.status, job.plugin)
        if ending.report.run_s is not None:
            self._metrics.ran(job.plugin, ending.report.run_s)
        # What went well is told by the row and the metrics; a line for each job is a seventh of a short one's time.
        tell = log.debug if ended.status is JobStatus.SUCCESS else log.info
        # Whoever mends the plugin needs them, and no reader of the record may see them.
        found = {"traceback": ending.report.traceback, "output": ending.report.output} if ending.error else {}
        tell(
            "job ended",
            plugin=job.plugin,
            status=str(ended.status),
            attempt=job.attempt,
            retry_in_s=ending.retry_in_s,
            run_s=ending.report.run_s,
            error=ending.error and ending.error["message"],
            **{name: text for name, text in found.items() if text},
        )
