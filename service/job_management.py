"""JobManagementService: owns job records and their transitions; one use case a method, one transaction a use case."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import structlog
from uuid_utils import uuid7

from service.calls import Call, CallReport, current_call
from service.codec import off_loop, storable_text
from service.db import instances, job_changes, job_claims, job_endings, job_leases, job_queries
from service.db.database import Database
from service.db.job_changes import Abandonment, CancelRequest, ProgressMade
from service.db.job_claims import Claim
from service.db.job_endings import Ended, Ending
from service.db.job_leases import RESCUE_PAGE, Renewal, Rescued
from service.db.transaction import Operation
from service.documents import Documents
from service.errors import (
    FileNotInJobError,
    JobNotFoundError,
    JobStateError,
    ServiceError,
    ServiceUnavailableError,
    error_object,
)
from service.events import EventBus
from service.intake import Intake
from service.job_payload import JobPayload
from service.lookahead import Lookahead
from service.metrics import Metrics
from service.models import (
    DEFAULT_TENANT,
    AttemptRecord,
    BlobRef,
    ClaimedJob,
    ErrorType,
    JobOptions,
    JobPage,
    JobPart,
    JobQuery,
    JobRecord,
    JobRequest,
    JobStatus,
    JobVersion,
    Pair,
    Progress,
    StoredArtifact,
    Submission,
    canonical_uuid,
    later,
    timestamp,
)
from service.outcomes import Failed, Outcome, Succeeded, failed, judge
from service.plugin_controls import PluginControl, PluginControls
from service.plugin_management import PluginManagementService
from service.queue_limits import Depth, Limits, QueueLimits
from service.retries import RetryPolicy
from service.webhook_urls import WebhookRules

#: How long a waiter trusts the wake-ups of this process before it looks at the row again.
_LOOK_AGAIN_S: Final = 2.0
_RETRY_STORE_S: Final = 0.5
#: The part of a lease, counted from before it was asked for, in which this process trusts it without another word from
#: the database. What is left is for stopping the plugin before anybody else may start it.
_TRUSTED_PART: Final = 2 / 3

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Execution:
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


class JobManagementService:
    """Owns job records. Execution is delegated to `PluginManagementService.execute_plugin`; no plugin is touched here.

    Every answer about a job comes from a committed row. `instance_id` is the owner of what this process runs.
    """

    def __init__(
        self,
        database: Database,
        plugin_management: PluginManagementService,
        *,
        events: EventBus | None = None,
        metrics: Metrics | None = None,
        lease_s: float = 30.0,
        retries: RetryPolicy | None = None,
        queue_limits: QueueLimits | None = None,
        webhook_rules: WebhookRules | None = None,
        controls: PluginControls | None = None,
    ) -> None:
        self._database = database
        self._documents = Documents(database.blobs)
        self._plugin_management = plugin_management
        self._events = events or EventBus()
        self._metrics = metrics or Metrics()
        self._count_transition = functools.cache(self._metrics.transitions.labels)
        self._run_seconds = functools.cache(self._metrics.run_seconds.labels)
        self._lease_s = lease_s
        self._retries = retries or RetryPolicy()
        self._controls = controls or PluginControls(_uncontrolled, self._events)
        self.intake = Intake(
            database,
            plugin_management,
            self._events,
            self._metrics,
            queue_limits or QueueLimits(Limits(), _uncounted),
            self._controls,
            webhook_rules or WebhookRules(),
        )
        self._executions: dict[tuple[str, int], _Execution] = {}  # by job and fence
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hurried = False
        self.instance_id = str(uuid7())

    @property
    def accepting(self) -> bool:
        """False once no new jobs are taken."""
        return self.intake.accepting

    # --- what consumers ask for ---------------------------------------------------------------------------------

    async def create_job(self, plugin_name: str, payload: Mapping[str, Any], options: JobOptions | None = None) -> str:
        """Record a PENDING job as it is given; its id. The row and its bytes are on stable storage on return.

        Raises `NotStorableError` for a payload no database holds, `ServiceUnavailableError` if it cannot be stored now.
        """
        return await self.intake.create(plugin_name, payload, options or JobOptions())

    async def submit_job(
        self,
        plugin_name: str,
        payload: Mapping[str, Any],
        options: JobOptions | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
        idempotency_key: str | None = None,
    ) -> Submission:
        """Check the payload against the plugin's manifest, then record the job as `create_job` does; see `submit`."""
        request = JobRequest(
            plugin=plugin_name, payload=payload, options=options or JobOptions(), idempotency_key=idempotency_key
        )
        return await self.submit(request, tenant=tenant)

    async def submit(self, request: JobRequest, *, tenant: str = DEFAULT_TENANT) -> Submission:
        """Check a request against the plugin's manifest, then record its job.

        A used key or id yields the job it made before, for this tenant, whatever has become of the plugin and the
        queue. Raises `PluginNotFoundError`, `PluginUnavailableError`, `PluginPausedError`, `PayloadInvalidError`,
        `NotStorableError`, `QueueFullError`, `IdempotencyConflictError`, `JobIdReusedError`,
        `ServiceUnavailableError`: no row then.
        """
        return await self.intake.submit(request, tenant)

    async def get_job(self, job_id: str) -> dict[str, Any]:
        """A copy of the record with its bytes as bytes, and `error` in the envelope `{"error": {...}}`.

        Raises `JobNotFoundError`.
        """
        record = await self.get_record(job_id)
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        values["payload"], values["result"] = await self._documents.with_bytes(record.payload, record.result)
        values["error"] = {"error": dict(record.error)} if record.error is not None else None
        return values

    async def get_record(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> JobRecord:
        """The record with references in place of bytes; raises `JobNotFoundError`, for another tenant's job too."""
        record = await job_queries.get(self._database.reader, canonical_id(job_id), tenant)
        if record is None:
            raise JobNotFoundError(job_id)
        return record

    async def is_at(self, job_id: str, version: JobVersion, *, tenant: str = DEFAULT_TENANT) -> bool:
        """Whether a record of that version, read before, is what `get_record` would give now."""
        return await job_queries.get_version(self._database.reader, job_id, tenant) == version

    async def wait_for(
        self,
        job_id: str,
        timeout_s: float,
        *,
        tenant: str = DEFAULT_TENANT,
        known_events: int | None = None,
        seen: JobRecord | None = None,
    ) -> JobRecord:
        """The record as soon as the job has ended, after `timeout_s`, or when the service stops.

        Raises `JobNotFoundError`.

        For whoever knows the job as it was at `known_events` events, as soon as there are others. Who has `seen` the
        record just now is not made to wait for it to be read once more.
        """
        if timeout_s <= 0:
            return await self.get_record(job_id, tenant=tenant)
        end = asyncio.get_running_loop().time() + timeout_s
        job_id = canonical_id(job_id)
        with self._events.watch(job_id, only_end=known_events is None) as changed:
            if self._events.may_have_ended(job_id):
                seen = None
            while True:
                changed.clear()
                record = seen or await self.get_record(job_id, tenant=tenant)
                left = end - asyncio.get_running_loop().time()
                has_news = known_events is not None and record.event_count != known_events
                if record.status.is_terminal or has_news or left <= 0 or self._events.is_over:
                    return record
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_AGAIN_S)):
                        await changed.wait()
                seen = changed.record

    async def list_jobs(self, query: JobQuery, *, tenant: str = DEFAULT_TENANT) -> JobPage:
        """A page of the tenant's records, newest first, without payloads and results."""
        return await job_queries.list_page(self._database.reader, query, tenant)

    async def list_attempts(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> list[AttemptRecord]:
        """Every execution of the job so far; raises `JobNotFoundError`."""
        record = await self.get_record(job_id, tenant=tenant)
        return await job_queries.list_attempts(self._database.reader, record.id)

    async def read_artifact(
        self, job_id: str, name: str, *, tenant: str = DEFAULT_TENANT
    ) -> tuple[StoredArtifact, bytes]:
        """A file the plugin made; raises `JobNotFoundError`, `FileNotInJobError`, `BytesGoneError`."""
        record = await self.get_record(job_id, tenant=tenant)
        for artifact in record.artifacts:
            if artifact.name == name:
                return artifact, await self.read_bytes(record, JobPart.RESULT, artifact.blob)
        raise FileNotInJobError(job_id, name)

    async def read_bytes(self, record: JobRecord, part: JobPart, ref: BlobRef) -> bytes:
        """The bytes behind a reference in a part of a job; raises `BytesGoneError` when they are not kept any more."""
        return await self._database.blobs.read_of_job(record.id, part, ref)

    async def cancel_job(self, job_id: str, reason: str = "requested", *, tenant: str = DEFAULT_TENANT) -> JobRecord:
        """Cancel a job: CANCELLED at once if it was PENDING (or is already); RUNNING in the record if it is stopping.

        Raises `JobNotFoundError`, and `JobStateError` when it has SUCCESS or FAILED.
        """
        job_id = canonical_id(job_id)
        await self.get_record(job_id, tenant=tenant)  # a job never changes its tenant
        await self._database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason=reason))
        self.halt({job_id})
        record = await self.get_record(job_id, tenant=tenant)
        if record.status in (JobStatus.SUCCESS, JobStatus.FAILED):
            raise JobStateError(job_id, record.status, "cancelled")
        return record

    def halt(self, job_ids: Collection[str]) -> None:
        """The jobs were asked to be cancelled: stop what runs of them here, and wake who waits for them."""
        for execution in self._executions.values():
            if execution.job.id in job_ids:
                execution.stop(JobStatus.CANCELLED)
        for job_id in job_ids:
            self._events.job_changed(job_id)

    async def run_job(self, job_id: str) -> Pair:
        """Run one PENDING job now, and return its pair.

        On a RUNNING job, wait for the recorded outcome; on SUCCESS or FAILED return the recorded pair without running.
        However many ask at once, the plugin runs once; it goes on when a caller stops waiting. The pair is this
        attempt's, even where it failed and another attempt is to follow. It is an order: it waits for no `run_at`, no
        free worker, and no control of the plugin. Raises `JobNotFoundError`, `JobStateError` on a CANCELLED job, and
        `ServiceUnavailableError` when the service stops and the job goes back.
        """
        while True:
            record = await self.get_record(job_id)
            match record.status:
                case JobStatus.PENDING if self._hurried:
                    raise ServiceUnavailableError("The service is shutting down; it runs the job after its next start.")
                case JobStatus.PENDING:
                    # Held as one: a caller cancelled between claim and start would leave the job RUNNING for ever.
                    starting = asyncio.create_task(self._claim_and_start(limit=1, job_id=record.id))
                    self._hold(starting)
                    tasks = await asyncio.shield(starting)
                    if not tasks:  # somebody else has it, or nobody may start it any more
                        await self.promote_and_expire()
                    for task in tasks:
                        pair = await asyncio.shield(task)
                        if pair is not None:
                            return pair
                case JobStatus.RUNNING if self._events.is_over:
                    raise ServiceUnavailableError("The service is shutting down; another process runs the job.")
                case JobStatus.RUNNING:
                    await self.wait_for(record.id, _LOOK_AGAIN_S)
                case JobStatus.SUCCESS:
                    (result,) = await self._documents.with_bytes(record.result)
                    return result or {}, {}
                case JobStatus.FAILED:
                    return {}, {"error": dict(record.error or {})}
                case JobStatus.CANCELLED:
                    raise JobStateError(record.id, record.status, "run")

    # --- what the loops ask for ---------------------------------------------------------------------------------

    @property
    def running(self) -> Mapping[str, int]:
        """How many jobs of each plugin this process runs now."""
        counts: dict[str, int] = {}
        for execution in self._executions.values():
            counts[execution.job.plugin] = counts.get(execution.job.plugin, 0) + 1
        return counts

    @property
    def at_work(self) -> int:
        """How many jobs this process runs whose plugin has not ended yet."""
        return sum(not execution.ending for execution in self._executions.values())

    async def claim_and_start(
        self,
        limit: int,
        caps: Mapping[str, int],
        plugins: Collection[str],
        lookahead: Lookahead | None = None,
        *,
        ahead: int = 0,
    ) -> int:
        """Set up to `limit` due jobs of `plugins` RUNNING, best first, and execute each in a task of its own.

        At most `caps[plugin]` of the plugins named there. Up to `ahead` more that follow them, as far as those are
        short; each then waits for its place in `lookahead`. How many jobs; see `execute`.
        """
        # Held as one: a claim under way when the service stops must be started, or nobody gives its jobs back.
        starting = asyncio.create_task(
            self._claim_and_start(limit=limit, caps=caps, plugins=plugins, lookahead=lookahead, ahead=ahead)
        )
        self._hold(starting)
        return len(await asyncio.shield(starting))

    async def execute(self, job: ClaimedJob) -> Pair | None:
        """Run a claimed job and record how it ended, if its fence still holds.

        The pair of this attempt, or None when there is none: the job was cancelled, or given back.
        """
        structlog.contextvars.bind_contextvars(job_id=job.id)
        execution = self._executions[job.id, job.fence]
        report = CallReport()
        payload = JobPayload(job, self._documents)
        outcome: Outcome | None = None
        if execution.stopping is None:
            execution.in_plugin = True
            try:
                async with execution.place(payload):
                    outcome = await self._run_plugin(job, payload, report)
            except TimeoutError:
                log.debug("no place for a job that was claimed ahead", plugin=job.plugin)
            except asyncio.CancelledError:
                log.info("execution stopped", plugin=job.plugin, towards=execution.stopping)
            finally:
                execution.in_plugin = False
                payload.discard()
        execution.ending = True
        execution.tell(report)
        try:
            outcome = await self._record(execution, outcome, report)
        finally:
            del self._executions[job.id, job.fence]
            self._events.job_changed(job.id, record=execution.record)
            if execution.frees_a_place:
                # Until now it counted among those that run of its plugin, which may have a limit.
                is_limited = bool(self._plugin_management.concurrency_limits())
                self._events.work_arrived(None if is_limited else execution.claims)
        return None if outcome is None else outcome.pair

    async def promote_and_expire(self) -> int:
        """Make scheduled jobs claimable whose time has come, and fail those whose time to start has passed.

        How many jobs became claimable.
        """
        writer = self._database.writer
        promoted = await writer.write(job_changes.promote, None)
        while True:
            page = await writer.write(job_changes.expire, None)
            for job_id in page:
                self._events.job_changed(job_id)
            if len(page) < job_changes.EXPIRE_PAGE:
                return promoted

    async def renew_leases(self) -> None:
        """Prolong the leases of what this process runs; stop what it has lost, and what somebody asked to cancel."""
        mine = dict(self._executions)
        trusted_until = self._trusted_until()
        await self._database.writer.write(instances.beat, self.instance_id)
        if not mine:
            return
        renewal = Renewal(owner=self.instance_id, lease_s=self._lease_s, runs=list(mine))
        held = await self._database.writer.write(job_leases.renew, renewal)
        for run, execution in mine.items():
            if run not in held:
                self._lose(execution, "its lease had ended")
                continue
            execution.trusted_until = trusted_until
            if held[run]:
                execution.stop(JobStatus.CANCELLED)

    def stop_untrusted(self) -> int:
        """Stop every plugin whose lease was not renewed in time, without asking the database; how many.

        It may be away, and another process may start those jobs soon.
        """
        now = asyncio.get_running_loop().time()
        untrusted = [execution for execution in self._executions.values() if execution.trusted_until <= now]
        return sum(self._lose(execution, "its lease could not be renewed in time") for execution in untrusted)

    async def rescue(self) -> int:
        """Take back jobs whose runner, of whatever process, has let its lease end; how many."""
        rescued = await self._taken_back(job_leases.rescue, None)
        for job in rescued:
            if (execution := self._executions.get((job.id, job.fence))) is not None:
                self._lose(execution, "its lease had ended")
        return len(rescued)

    async def recover(self) -> int:
        """Take back what other processes left RUNNING; only when they are known to be gone. How many jobs."""
        return len(await self._taken_back(job_leases.recover, self.instance_id))

    async def fail_abandoned(self, plugins: Collection[str], wait_s: float) -> int:
        """Fail jobs that have been due for longer than `wait_s` and whose plugin is none of `plugins`; how many."""
        abandoned = await job_queries.find_abandoned(self._database.reader, plugins, later(timestamp(), -wait_s))
        errors = {
            job_id: error_object(
                ErrorType.PLUGIN, f"No plugin {plugin!r} was installed for {wait_s:g} s; it had to wait.", plugin=plugin
            )
            for job_id, plugin in abandoned
        }
        if not errors:
            return 0
        failed_ids = await self._database.writer.write(job_changes.abandon, Abandonment(wait_s=wait_s, errors=errors))
        for job_id in failed_ids:
            self._count_transition(JobStatus.FAILED, errors[job_id]["plugin"]).inc()
            self._events.job_changed(job_id)
        log.warning("jobs failed: their plugin is not installed", jobs=failed_ids)
        return len(failed_ids)

    async def drain(self, patience_s: float) -> None:
        """Take no more jobs, let the running ones finish for `patience_s`, then give the rest back unharmed."""
        self.intake.accepting = False
        running = [execution.task for execution in self._executions.values()]
        if running:
            await asyncio.wait(running, timeout=patience_s)
        self.hurry()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._events.close()

    def hurry(self) -> None:
        """Give everything that runs back to the queue now."""
        self._hurried = True
        for execution in self._executions.values():
            execution.stop(JobStatus.PENDING)

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _claim_and_start(
        self,
        *,
        limit: int,
        caps: Mapping[str, int] | None = None,
        plugins: Collection[str] | None = None,
        job_id: str | None = None,
        lookahead: Lookahead | None = None,
        ahead: int = 0,
    ) -> list[asyncio.Task[Pair | None]]:
        claim = Claim(
            owner=self.instance_id,
            limit=limit,
            ahead=ahead,
            short=lookahead.short() if lookahead is not None and ahead else frozenset(),
            lease_s=self._lease_s,
            caps=caps or {},
            plugins=plugins,
            controlled=self._controls.are_set,
            job_id=job_id,
        )
        trusted_until = self._trusted_until()
        if job_id is None:
            self._events.claims += 1
        claimed = await self._database.writer.write(job_claims.claim, claim, last=True)
        tasks = []
        for job in claimed:
            task = asyncio.create_task(self.execute(job), name=f"job {job.id}")
            execution = self._executions[job.id, job.fence] = _Execution(job, task, trusted_until, lookahead)
            if self._hurried:
                execution.stop(JobStatus.PENDING)
            self._hold(task)
            tasks.append(task)
            self._count_transition(JobStatus.RUNNING, job.plugin).inc()
            self._events.job_changed(job.id, ends=False)
        return tasks

    def _trusted_until(self) -> float:
        """Until when a lease that is asked for now can be trusted."""
        return asyncio.get_running_loop().time() + self._lease_s * _TRUSTED_PART

    def _lose(self, execution: _Execution, why: str) -> bool:
        """Stop a plugin whose job this process holds no more; False if it had stopped before, or has its outcome."""
        if execution.ending or execution.stopping is not None:
            return False
        job = execution.job
        log.error("stopping a job that is no longer held", job_id=job.id, plugin=job.plugin, fence=job.fence, why=why)
        self._metrics.lost_leases.inc()
        execution.stop(JobStatus.PENDING)
        return True

    async def _taken_back(self, operation: Operation[Any, list[Rescued]], item: str | None) -> list[Rescued]:
        """What `operation` takes back, page by page."""
        taken: list[Rescued] = []
        while True:
            page = await self._database.writer.write(operation, item)
            taken += page
            for job in page:
                self._count_transition(job.status, job.plugin).inc()
                self._metrics.rescued.labels(job.plugin).inc()
                self._events.job_changed(job.id)
                log.warning("job taken back", job_id=job.id, plugin=job.plugin, fence=job.fence, status=job.status)
            if len(page) < RESCUE_PAGE:
                break
        if taken:
            self._events.work_arrived()
        return taken

    async def _run_plugin(self, job: ClaimedJob, payload: JobPayload, report: CallReport) -> Outcome:
        def on_progress(fraction: float, message: str) -> None:
            progress = Progress(fraction=fraction, message=storable_text(message))
            self._hold(asyncio.create_task(self._show_progress(job, progress)))

        call = Call(job_id=job.id, attempt=job.attempt, timeout_s=job.timeout_s, on_progress=on_progress, report=report)
        token = current_call.set(call)
        try:
            pair = await self._plugin_management.execute_plugin(plugin_name=job.plugin, payload=await payload.get())
        except Exception:  # the contract says nothing escapes; a job must not hang on that
            log.exception("execute_plugin raised", plugin=job.plugin)
            return failed(ErrorType.INTERNAL, "The service failed while it ran the plugin; see its log.", job.plugin)
        finally:
            current_call.reset(token)
        return await off_loop(pair, judge, pair, job.plugin)

    async def _show_progress(self, job: ClaimedJob, progress: Progress) -> None:
        made = ProgressMade(job=job, owner=self.instance_id, progress=progress)
        try:
            is_held = await self._database.writer.write(job_changes.make_progress, made)
        except ServiceError as error:
            log.debug("progress not written", error=str(error))
        else:
            if not is_held and (execution := self._executions.get((job.id, job.fence))) is not None:
                self._lose(execution, "it is another runner's now")
        self._events.job_changed(job.id, ends=False)

    async def _record(self, execution: _Execution, outcome: Outcome | None, report: CallReport) -> Outcome | None:
        """Write the end of an execution; the outcome as recorded. What cannot be stored becomes a failure that can."""
        job, cancelled = execution.job, execution.stopping is JobStatus.CANCELLED
        try:
            await self._write_end(execution, lambda: self._ending(job, outcome, report, cancelled=cancelled))
            return outcome
        except Exception as error:
            log.exception("an outcome could not be stored", plugin=job.plugin)
            why = str(error) if isinstance(error, ServiceError) else "see the service's log."
            refused = failed(ErrorType.INTERNAL, f"The outcome could not be stored: {why}", job.plugin)
            await self._write_end(execution, lambda: self._ending(job, refused, CallReport(), cancelled=False))
            return refused

    async def _ending(self, job: ClaimedJob, outcome: Outcome | None, report: CallReport, *, cancelled: bool) -> Ending:
        is_awaited = self._events.is_awaited(job.id)
        make = functools.partial(Ending, job=job, owner=self.instance_id, report=report, is_awaited=is_awaited)
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

    async def _write_end(self, execution: _Execution, make: Callable[[], Awaitable[Ending]]) -> None:
        """Retries while nothing can be stored: the outcome is nowhere else. Gives up only with the service."""
        while True:
            try:
                ending = await make()  # its bytes go to files, whose disk may be full too
                execution.frees_a_place = self._events.left_behind or ending.status is JobStatus.PENDING
                if execution.frees_a_place:
                    execution.claims = self._events.work_arrives()
                ended = await self._database.writer.write(job_endings.end, ending)
            except ServiceUnavailableError as error:
                if error.retry_after_s is None:
                    raise
                if not self.accepting:
                    log.error("outcome lost; the job runs again after the next start", error=str(error))
                    return
                log.debug("outcome not written yet", error=str(error))
                await asyncio.sleep(_RETRY_STORE_S)
            else:
                self._tell_end(execution.job, ending, ended)
                if ended is not None:
                    execution.record = ended.record
                return

    def _tell_end(self, job: ClaimedJob, ending: Ending, ended: Ended | None) -> None:
        if ended is None:
            self._metrics.stale_writes.inc()
            log.warning("late outcome refused: the job is no longer held", fence=job.fence, status=ending.status)
            return
        self._count_transition(ended.status, job.plugin).inc()
        if ending.report.run_s is not None:
            self._run_seconds(job.plugin).observe(ending.report.run_s)
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

    def _hold(self, task: asyncio.Task[Any]) -> None:
        """Keep a task until it is done; `drain` waits for it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def canonical_id(job_id: str) -> str:
    """The one spelling of a job's id; raises `JobNotFoundError` for what is no id: there is no such job."""
    canonical = canonical_uuid(job_id)
    if canonical is None:
        raise JobNotFoundError(job_id[:100])
    return canonical


async def _uncounted(each: bool) -> Depth:
    return Depth()


async def _uncontrolled() -> Mapping[str, PluginControl]:
    return {}
