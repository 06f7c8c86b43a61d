"""JobManagementService: owns job records and their transitions; one use case a method, one transaction a use case."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import structlog
from uuid_utils import uuid7

from service.calls import Call, CallReport, current_call
from service.codec import off_loop, storable_text
from service.db import instances, job_changes, job_claims, job_leases, job_queries, queue_depth
from service.db.database import Database
from service.db.job_changes import Abandonment, CancelRequest, ProgressMade
from service.db.job_claims import Claim
from service.db.job_leases import RESCUE_PAGE, Renewal, Rescued
from service.db.transaction import Operation
from service.documents import Documents
from service.errors import (
    BytesGoneError,
    FileNotInJobError,
    JobNotFoundError,
    JobStateError,
    ServiceError,
    ServiceUnavailableError,
    error_object,
)
from service.events import EventBus
from service.execution import Execution
from service.intake import Intake
from service.job_ends import EndRecorder
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
from service.outcomes import Outcome, failed, judge
from service.plugin_controls import PluginControl, PluginControls
from service.plugin_management import PluginManagementService
from service.queue_limits import Depth, Limits, QueueLimits
from service.retries import RetryPolicy
from service.webhook_urls import WebhookRules

#: How long a waiter trusts the wake-ups of this process before it looks at the row again.
_LOOK_AGAIN_S: Final = 2.0
#: The part of a lease, counted from before it was asked for, in which this process trusts it without another word from
#: the database. What is left is for stopping the plugin before anybody else may start it.
_TRUSTED_PART: Final = 2 / 3

log = structlog.get_logger(__name__)


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
        self._lease_s = lease_s
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
        self._executions: dict[tuple[str, int], Execution] = {}  # by job and fence
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hurried = False
        self.instance_id = str(uuid7())
        self._ends = EndRecorder(
            database.writer,
            self._documents,
            self._events,
            self._metrics,
            retries or RetryPolicy(),
            owner=self.instance_id,
            is_patient=lambda: not self._hurried,
        )

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
        known: JobVersion | None = None,
        seen: JobRecord | None = None,
    ) -> JobRecord:
        """The record as soon as the job has ended, after `timeout_s`, or when the service stops.

        Raises `JobNotFoundError`.

        For whoever has `known` the job at a version, as soon as it is at another one. Who has `seen` the record just
        now is not made to wait for it to be read once more.
        """
        if timeout_s <= 0:
            return await self.get_record(job_id, tenant=tenant)
        end = asyncio.get_running_loop().time() + timeout_s
        job_id = canonical_id(job_id)
        with self._events.watch(job_id, only_end=known is None) as changed:
            if self._events.may_have_ended(job_id):
                seen = None
            while True:
                changed.clear()
                record = seen or await self.get_record(job_id, tenant=tenant)
                left = end - asyncio.get_running_loop().time()
                has_news = known is not None and record.version != known
                if record.status.is_terminal or has_news or left <= 0 or self._events.is_over:
                    return record
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_AGAIN_S)):
                        await changed.wait()
                seen = changed.record
                if seen is not None and seen.tenant != tenant:  # the id was used again
                    seen = None

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
        before = await self.get_record(job_id, tenant=tenant)  # a job never changes its tenant
        request = CancelRequest(job_id=before.id, reason=reason)
        became = await self._database.writer.write(job_changes.request_cancel, request)
        self._asked_to_cancel({before.id: before.plugin}, [became])
        record = await self.get_record(before.id, tenant=tenant)
        if record.status in (JobStatus.SUCCESS, JobStatus.FAILED):
            raise JobStateError(record.id, record.status, "cancelled")
        return record

    async def cancel_jobs(self, plugins: Mapping[str, str], reason: str = "requested") -> None:
        """As `cancel_job`, in one transaction, for jobs that are given with their plugins; some may have ended."""
        requests = [CancelRequest(job_id=job_id, reason=reason) for job_id in plugins]
        self._asked_to_cancel(plugins, await self._database.writer.write(job_changes.request_cancels, requests))

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
            outcome = await self._ends.record(execution, outcome, report)
        finally:
            del self._executions[job.id, job.fence]
            self._events.job_changed(job.id, record=execution.record)
            if execution.frees_a_place:
                # Until now it counted among those that run of its plugin, which may have a limit.
                is_limited = bool(self._plugin_management.concurrency_limits())
                self._events.work_arrived(None if is_limited else execution.claims)
        return None if outcome is None else outcome.pair

    async def promote_and_expire(self) -> None:
        """Make scheduled jobs claimable whose time has come, and fail those whose time to start has passed."""
        writer = self._database.writer
        there_are_more = True
        while there_are_more:
            promoted = await writer.write(job_changes.promote, None)
            there_are_more = promoted == job_changes.PROMOTE_PAGE
            if promoted:
                self._events.work_arrived()
        while True:
            page = await writer.write(job_changes.expire, None)
            for job_id, plugin in page.items():
                self._metrics.moved(JobStatus.FAILED, plugin)
                self._events.job_changed(job_id)
            if len(page) < job_changes.EXPIRE_PAGE:
                return

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
        count = 0
        while True:
            abandoned = await job_queries.find_abandoned(self._database.reader, plugins, later(timestamp(), -wait_s))
            failed = await self._fail_abandoned(abandoned, wait_s)
            count += failed
            # Where others were first with all of a page, the next look finds what is left.
            if len(abandoned) < job_queries.ABANDONED_PAGE or not failed:
                return count

    async def count_stranded(self, plugins: Collection[str]) -> dict[str, int]:
        """How many jobs wait, due or for later, of each plugin that is none of `plugins`."""
        depth = await queue_depth.load(self._database.reader, each=True)
        return {plugin: count for plugin, count in sorted(depth.plugins.items()) if plugin not in plugins}

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

    async def _fail_abandoned(self, abandoned: Sequence[tuple[str, str]], wait_s: float) -> int:
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
            self._metrics.moved(JobStatus.FAILED, errors[job_id]["plugin"])
            self._events.job_changed(job_id)
        log.warning("jobs failed: their plugin is not installed", jobs=failed_ids)
        return len(failed_ids)

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
        claimed = await self._database.writer.write(job_claims.claim, claim)
        tasks = []
        for job in claimed:
            task = asyncio.create_task(self.execute(job), name=f"job {job.id}")
            execution = self._executions[job.id, job.fence] = Execution(job, task, trusted_until, lookahead)
            if self._hurried:
                execution.stop(JobStatus.PENDING)
            self._hold(task)
            tasks.append(task)
            self._metrics.moved(JobStatus.RUNNING, job.plugin)
            self._events.job_changed(job.id, ends=False)
        return tasks

    def _asked_to_cancel(self, plugins: Mapping[str, str], became: Sequence[JobStatus | None]) -> None:
        """The jobs, given with their plugins, have `became` so: stop what runs of them here, and wake who waits."""
        for execution in self._executions.values():
            if execution.job.id in plugins:
                execution.stop(JobStatus.CANCELLED)
        for (job_id, plugin), status in zip(plugins.items(), became, strict=True):
            if status is JobStatus.CANCELLED:
                self._metrics.moved(status, plugin)
            self._events.job_changed(job_id)

    def _trusted_until(self) -> float:
        """Until when a lease that is asked for now can be trusted."""
        return asyncio.get_running_loop().time() + self._lease_s * _TRUSTED_PART

    def _lose(self, execution: Execution, why: str) -> bool:
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
                self._metrics.moved(job.status, job.plugin)
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
        except BytesGoneError as error:
            return failed(ErrorType.INTERNAL, f"The payload is not whole. {error}", job.plugin)
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
