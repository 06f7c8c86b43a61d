"""How jobs come in: checked, their bytes stored, recorded once for each key or chosen id, as far as there is room."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from uuid_utils import uuid7

from service.codec import BLOB_KEY, MAX_JSON_BYTES, check_document, encode, is_small, off_loop
from service.db import job_inserts, job_queries
from service.db.database import Database
from service.db.job_inserts import Inserted, NewJob
from service.db.webhook_endpoints import NewEndpoint
from service.documents import Documents
from service.errors import (
    IdempotencyConflictError,
    JobIdReusedError,
    JobNotFoundError,
    NotStorableError,
    PayloadInvalidError,
    PluginNotFoundError,
    PluginPausedError,
    PluginUnavailableError,
    QueueFullError,
    ServiceError,
    ServiceUnavailableError,
    WebhookUrlError,
)
from service.events import EventBus
from service.metrics import Metrics
from service.models import (
    DEFAULT_TENANT,
    JobOptions,
    JobRecord,
    JobRequest,
    JobStatus,
    Submission,
    time_of,
    timestamp,
)
from service.plugin_controls import PluginControls
from service.plugin_management import PluginManagementService
from service.plugins.manifest import PluginManifest
from service.queue_limits import QueueLimits
from service.webhook_models import new_webhook_secret
from service.webhook_urls import WebhookRules

#: So many jobs of a batch are checked before others have a turn of the event loop.
_TURN: Final = 20
#: Of the ids of batches that are made from a key.
_BATCHES: Final = uuid.UUID("0190e7a1-6f0c-7b3e-8f56-3d1c5c7e9a42")

#: A reference to bytes takes no more than this in the text of a stored document.
_REFERENCE_BYTES: Final = 200

#: What is wrong with a request now and need not have been when it was made for the first time.
_REFUSALS: Final = (
    PluginNotFoundError, PluginUnavailableError, PluginPausedError, PayloadInvalidError, NotStorableError,
    QueueFullError, WebhookUrlError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A job of a batch; `replayed` when its key had made it before."""

    id: str
    replayed: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchSubmission:
    """What became of the requests of a batch, by their index.

    `batch_id` is where the accepted jobs can be followed together; None if they belong to no one batch, which can only
    be where all of them were made before.
    """

    batch_id: str | None
    outcomes: Mapping[int, Accepted | ServiceError]


@dataclasses.dataclass(slots=True, kw_only=True)
class _Checked:
    """A request that fits its plugin, as the job it would be; or what is wrong with it."""

    request: JobRequest
    request_hash: str | None
    new: NewJob | None = None
    refusal: ServiceError | None = None


class Intake:
    """Takes jobs in while it is `accepting`. Every acceptance is told after the commit of its row."""

    def __init__(
        self,
        database: Database,
        plugin_management: PluginManagementService,
        events: EventBus,
        metrics: Metrics,
        queue_limits: QueueLimits,
        controls: PluginControls,
        webhook_rules: WebhookRules,
    ) -> None:
        self._database = database
        self._documents = Documents(database.blobs)
        self._plugin_management = plugin_management
        self._events = events
        self._metrics = metrics
        # Finding a counter by its labels takes longer than counting; there are few.
        self._count_submitted = functools.cache(metrics.submitted.labels)
        self._queue_limits = queue_limits
        self._controls = controls
        self._webhook_rules = webhook_rules
        self.accepting = True

    async def create(self, plugin: str, payload: Mapping[str, Any], options: JobOptions) -> str:
        """Record a job as it is given; see `JobManagementService.create_job`."""
        document = dict(payload)
        await off_loop(document, check_document, document)
        new, _ = await self._new_job(JobRequest(plugin=plugin, payload=document, options=options), document)
        return (await self._insert(new)).id

    async def submit(self, request: JobRequest, tenant: str) -> Submission:
        """Check a request and record its job; see `JobManagementService.submit_job`."""
        self.check_open()
        try:
            manifest, document = await self._check(request)
            with self._queue_limits.room_for(tenant, request.plugin):
                new, stored = await self._new_job(
                    request, document, manifest, tenant=tenant, request_hash=await _hash_of(request)
                )
                inserted = await self._insert(new)
        except _REFUSALS:
            # The same request is answered alike, whatever has become of the plugin or the queue meanwhile.
            known = await self._known(request, tenant)
            if known is None:
                raise
            inserted, request_hash = known
        else:
            if not inserted.replayed:
                return Submission(record=_record_of(new, stored, inserted), replayed=False)
            request_hash = new.request_hash
        if not _is_the_same(inserted, request_hash):
            if request.idempotency_key is not None:
                raise IdempotencyConflictError(request.idempotency_key)
            raise JobIdReusedError(inserted.id)
        self._metrics.replayed.inc()
        record = await job_queries.get(self._database.reader, inserted.id, tenant)
        if record is None:
            raise JobNotFoundError(inserted.id)
        return Submission(record=record, replayed=True)

    async def submit_batch(
        self, requests: Mapping[int, JobRequest], tenant: str, *, idempotency_key: str | None = None
    ) -> BatchSubmission:
        """Record the jobs of all requests that are acceptable, in one transaction; an outcome for each request.

        With `idempotency_key` K, request i has the key `K#i` unless it brings its own, and the batch has the same id
        whenever it is sent. Raises `QueueFullError`, `PluginPausedError` for a plugin that was paused meanwhile, and
        `ServiceUnavailableError`: then nothing is recorded.
        """
        self.check_open()
        batch_id = str(uuid7()) if idempotency_key is None else _batch_id(tenant, idempotency_key)
        if idempotency_key is not None:
            requests = {
                index: dataclasses.replace(
                    request, idempotency_key=request.idempotency_key or f"{idempotency_key}#{index}"
                )
                for index, request in requests.items()
            }
        checked = await self._check_batch(requests, tenant, batch_id)
        outcomes: dict[int, Inserted] = {}
        if any(item.refusal for item in checked.values()):
            outcomes = await self._known_of(checked, tenant, only_refused=True)
        new = {index: item.new for index, item in checked.items() if item.new is not None}
        try:
            outcomes |= await self._record(new, tenant)
        except QueueFullError:
            known = await self._known_of(checked, tenant)
            outcomes |= known
            outcomes |= await self._record({index: item for index, item in new.items() if index not in known}, tenant)
        return _batch_submission(batch_id, checked, outcomes)

    # --- what all new jobs have in common, retried ones too ------------------------------------------------------

    def check_open(self) -> None:
        """Raises `ServiceUnavailableError` once no new jobs are taken."""
        if not self.accepting:
            raise ServiceUnavailableError("The service is shutting down and takes no new jobs.")

    @contextlib.contextmanager
    def room_for(self, tenant: str, plugins: Iterable[str]) -> Iterator[None]:
        """Record a job of each of `plugins` inside the block.

        Raises before it: `PluginPausedError` if one of them takes no jobs, `QueueFullError` if there is no room for
        all, `ServiceUnavailableError` if none for their rows.
        """
        counts = Counter(plugins)
        for plugin in counts:
            self._controls.check_intake(plugin)
        with self._queue_limits.room_for_all(tenant, counts):
            self._database.ground.check_intake()
            yield

    def recorded(self, plugins: Iterable[str], *, has_due: bool = True, claims: int | None = None) -> None:
        """New jobs of `plugins` are committed; `has_due` says that one of them may run now (see `work_arrived`)."""
        for plugin, count in Counter(plugins).items():
            self._count_submitted(plugin).inc(count)
        if has_due:
            self._events.work_arrived(claims)

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _check(self, request: JobRequest) -> tuple[PluginManifest, dict[str, Any]]:
        """The plugin's manifest, and the payload as it takes it; raises what is wrong with the request."""
        manifest = await self._plugin_management.manifest(request.plugin)
        self._controls.check_intake(request.plugin)
        if request.options.webhook is not None:
            self._webhook_rules.check_url(request.options.webhook.url, "/webhook/url")
        payload = request.payload if request.bind is None else await request.bind()
        return manifest, await self._plugin_management.validate(request.plugin, payload)

    async def _check_batch(self, requests: Mapping[int, JobRequest], tenant: str, batch_id: str) -> dict[int, _Checked]:
        unavailable: dict[str, ServiceError] = {}  # none is waited for twice
        checked: dict[int, _Checked] = {}
        for index, request in requests.items():
            if len(checked) % _TURN == 0:
                await asyncio.sleep(0)
            item = checked[index] = _Checked(request=request, request_hash=await _hash_of(request))
            try:
                if (why := unavailable.get(request.plugin)) is not None:
                    raise why
                manifest, document = await self._check(request)
                item.new, _ = await self._new_job(
                    request, document, manifest, tenant=tenant, request_hash=item.request_hash, batch_id=batch_id
                )
            except (PluginNotFoundError, PluginUnavailableError, PluginPausedError) as error:
                unavailable[request.plugin] = item.refusal = error
            except _REFUSALS as error:
                item.refusal = error
        return checked

    async def _record(self, new: Mapping[int, NewJob], tenant: str) -> dict[int, Inserted]:
        if not new:
            return {}
        with self.room_for(tenant, (item.plugin for item in new.values())):
            inserted = await self._database.writer.write(job_inserts.insert_batch, list(new.values()))
        outcomes = dict(zip(new, inserted, strict=True))
        made = [new[index] for index, outcome in outcomes.items() if not outcome.replayed]
        self.recorded((item.plugin for item in made), has_due=any(item.run_at <= item.created_at for item in made))
        return outcomes

    async def _new_job(
        self,
        request: JobRequest,
        document: dict[str, Any],
        manifest: PluginManifest | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
        request_hash: str | None = None,
        batch_id: str | None = None,
    ) -> tuple[NewJob, dict[str, Any]]:
        """A job to insert, and its payload as a stored document."""
        payload, stored, blobs = await self._documents.store(document)
        most = MAX_JSON_BYTES + _REFERENCE_BYTES * len(blobs)
        # A character takes four bytes at most; how many a long text takes is found beside the event loop.
        if len(payload) > most or (4 * len(payload) > most and len(await asyncio.to_thread(payload.encode)) > most):
            raise NotStorableError("", f"takes more than {MAX_JSON_BYTES} bytes of JSON: send bulk data as bytes")
        options, job_id = request.options, request.id or str(uuid7())
        new = NewJob(
            id=job_id,
            tenant=tenant,
            plugin=request.plugin,
            plugin_version=None if manifest is None else manifest.version,
            payload=payload,
            blobs=blobs,
            options=options,
            max_attempts=options.max_attempts or (manifest and manifest.max_attempts) or 1,
            # What is made here says the same by its id, in whose order lists are.
            created_at=timestamp() if request.id else time_of(job_id),
            idempotency_key=request.idempotency_key,
            request_hash=request_hash,
            batch_id=batch_id,
            is_chosen=request.id is not None,
            webhook=_endpoint_of(options, tenant),
        )
        return new, stored

    async def _insert(self, new: NewJob) -> Inserted:
        self._database.ground.check_intake()
        is_due = new.run_at <= new.created_at
        claims = self._events.work_arrives() if is_due else None
        inserted = await self._database.writer.write(job_inserts.insert, new)
        if not inserted.replayed:
            self.recorded([new.plugin], has_due=is_due, claims=claims)
        return inserted

    async def _known(self, request: JobRequest, tenant: str) -> tuple[Inserted, str | None] | None:
        """The job that the request's key or id has made before, and the hash of the request."""
        reader, key = self._database.reader, request.idempotency_key
        inserted = None
        if key is not None:
            inserted = (await job_inserts.find_by_key(reader, [(tenant, key)])).get((tenant, key))
        elif request.id is not None:
            inserted = await job_inserts.find_by_id(reader, tenant, request.id)
        return None if inserted is None else (inserted, await _hash_of(request))

    async def _known_of(
        self, checked: Mapping[int, _Checked], tenant: str, *, only_refused: bool = False
    ) -> dict[int, Inserted]:
        keys = {
            index: (tenant, item.request.idempotency_key)
            for index, item in checked.items()
            if item.request.idempotency_key is not None and (item.refusal is not None or not only_refused)
        }
        known = await job_inserts.find_by_key(self._database.reader, keys.values()) if keys else {}
        return {index: known[key] for index, key in keys.items() if key in known}


async def _hash_of(request: JobRequest) -> str | None:
    """What tells a request from others with its key or id; None for one that has neither, or that no row can hold."""
    if request.idempotency_key is None and request.id is None:
        return None
    sent = [request.plugin, request.payload, dataclasses.asdict(request.options)]
    with contextlib.suppress(TypeError, ValueError):
        if is_small(sent):
            with contextlib.suppress(TypeError):  # bytes
                return digest(encode(sent, sort_keys=True))
        return await asyncio.to_thread(_digest_with_bytes, sent)
    return None


def digest(text: str) -> str:
    """What is kept of a request."""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_with_bytes(sent: Any) -> str:
    return digest(encode(sent, lambda data: {BLOB_KEY: hashlib.sha256(data).hexdigest()}, sort_keys=True))


def _is_the_same(inserted: Inserted, request_hash: str | None) -> bool:
    return request_hash is not None and inserted.request_hash == request_hash


def _batch_id(tenant: str, key: str) -> str:
    return str(uuid.uuid5(_BATCHES, f"{tenant}\0{key}"))


def _batch_submission(
    batch_id: str, checked: Mapping[int, _Checked], inserted: Mapping[int, Inserted]
) -> BatchSubmission:
    outcomes: dict[int, Accepted | ServiceError] = {}
    batches: set[str | None] = set()
    for index, item in checked.items():
        match inserted.get(index, item.refusal):
            case Inserted() as found if not found.replayed or _is_the_same(found, item.request_hash):
                outcomes[index] = Accepted(id=found.id, replayed=found.replayed)
                batches.add(found.batch_id)
            case Inserted():
                outcomes[index] = IdempotencyConflictError(item.request.idempotency_key or "")
            case ServiceError() as refusal:
                outcomes[index] = refusal
            case None:
                raise AssertionError  # what is not refused is recorded
    if batch_id not in batches:  # every job was made before
        return BatchSubmission(batch_id=batches.pop() if len(batches) == 1 else None, outcomes=outcomes)
    return BatchSubmission(batch_id=batch_id, outcomes=outcomes)


def _endpoint_of(options: JobOptions, tenant: str) -> NewEndpoint | None:
    """The endpoint that a job names, to be made unless that tenant's jobs have named it before."""
    if options.webhook is None:
        return None
    return NewEndpoint(
        id=str(uuid7()), tenant=tenant, url=options.webhook.url, secret=new_webhook_secret(), of_jobs=True
    )


def _record_of(new: NewJob, payload: dict[str, Any], inserted: Inserted) -> JobRecord:
    """The record that a read would give right after the insert."""
    options = new.options
    return JobRecord(
        id=new.id,
        tenant=new.tenant,
        plugin=new.plugin,
        plugin_version=new.plugin_version,
        status=JobStatus.PENDING,
        priority=options.priority,
        tags=options.tags,
        metadata=options.metadata,
        attempt=0,
        max_attempts=new.max_attempts,
        fence=0,
        event_count=1,
        batch_id=new.batch_id,
        parent_id=None,
        schedule_id=None,
        webhook_id=inserted.webhook_id,
        progress=None,
        payload=payload,
        result=None,
        error=None,
        artifacts=(),
        cancel_reason=None,
        cancel_requested_at=None,
        timeout_s=options.timeout_s,
        created_at=new.created_at,
        run_at=new.run_at,
        expires_at=options.expires_at,
        started_at=None,
        finished_at=None,
    )
