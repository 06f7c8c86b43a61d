"""JobActions: what people do to jobs that are there, to one or to many: cancel, retry, delete."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from uuid_utils import uuid7

from service.codec import encode
from service.db import job_inserts, job_queries, job_removals, job_retries
from service.db.database import Database
from service.db.job_inserts import Inserted
from service.db.job_removals import Removal
from service.db.job_retries import Retry
from service.errors import (
    BytesGoneError,
    IdempotencyConflictError,
    JobNotFoundError,
    JobStateError,
    PluginPausedError,
    QueueFullError,
    ServiceError,
)
from service.events import EventBus
from service.intake import digest
from service.job_management import JobManagementService, canonical_id
from service.models import (
    ACTIVE,
    DEFAULT_TENANT,
    TERMINAL,
    JobQuery,
    JobStatus,
    Standing,
    Submission,
    canonical_uuid,
    time_of,
)

#: So many jobs are changed in one transaction: others wait for it.
PAGE: Final = 100
#: The most jobs of one call.
MAX_JOBS: Final = 1000


class Action(enum.StrEnum):
    """What is done to jobs."""

    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"


class ActionOutcome(enum.StrEnum):
    """What an action has done to a job, or would do; STOPPING is a running one that will be CANCELLED.

    BYTES_GONE is one that cannot be tried again: its payload is not whole any more.
    """

    CANCELLED = "cancelled"
    STOPPING = "stopping"
    RETRIED = "retried"
    DELETED = "deleted"
    WOULD_CANCEL = "would-cancel"
    WOULD_RETRY = "would-retry"
    WOULD_DELETE = "would-delete"
    WRONG_STATE = "wrong-state"
    BYTES_GONE = "bytes-gone"
    UNKNOWN = "unknown"


#: What a filter finds for an action: jobs that it changes.
_FOUND: Final[Mapping[Action, frozenset[JobStatus]]] = {
    Action.CANCEL: ACTIVE,
    Action.RETRY: TERMINAL,
    Action.DELETE: TERMINAL,
}
#: To cancel again is no mistake.
_POSSIBLE: Final[Mapping[Action, frozenset[JobStatus]]] = {
    **_FOUND,
    Action.CANCEL: ACTIVE | {JobStatus.CANCELLED},
}
_WOULD: Final[Mapping[Action, ActionOutcome]] = {
    Action.CANCEL: ActionOutcome.WOULD_CANCEL,
    Action.RETRY: ActionOutcome.WOULD_RETRY,
    Action.DELETE: ActionOutcome.WOULD_DELETE,
}
_NOTHING_DONE: Final = frozenset(
    {*_WOULD.values(), ActionOutcome.WRONG_STATE, ActionOutcome.BYTES_GONE, ActionOutcome.UNKNOWN}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What became of one job; `new_id` is the job that tries it again."""

    id: str
    outcome: ActionOutcome
    new_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActionReport:
    """What became of the jobs of a call. `more`: the filter fits more of them than the limit let through."""

    items: Sequence[Acted]
    more: bool

    @property
    def matched(self) -> int:
        """How many of them there are."""
        return sum(item.outcome is not ActionOutcome.UNKNOWN for item in self.items)

    @property
    def done(self) -> int:
        """To how many something was done."""
        return sum(item.outcome not in _NOTHING_DONE for item in self.items)


class JobActions:
    """Acts on jobs of a tenant; one of another tenant is answered like one that never was.

    Many jobs are changed page by page, each page in a transaction of its own: when one fails, those before stay done,
    and the same call goes on from there.
    """

    def __init__(self, database: Database, jobs: JobManagementService, events: EventBus) -> None:
        self._reader = database.reader
        self._writer = database.writer
        self._jobs = jobs
        self._events = events

    async def retry(
        self, job_id: str, *, tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None
    ) -> Submission:
        """A new job with the plugin, payload and options of one that ended, but no times; the old one is its parent.

        A used `idempotency_key` yields the job it made before, whatever has become of the old one. Raises
        `JobNotFoundError`, `JobStateError`, `BytesGoneError`, `PluginPausedError`, `QueueFullError`,
        `IdempotencyConflictError`, `ServiceUnavailableError`.
        """
        job_id = canonical_id(job_id)
        standings = await job_queries.find_standings(self._reader, tenant, [job_id])
        made = await self._retry([_retry(job_id, tenant, idempotency_key)], standings, tenant)
        if job_id not in made:
            if await job_queries.find_gone(self._reader, tenant, [job_id]):
                raise BytesGoneError(f"Bytes of the payload of job {job_id} are not kept any more: send them again.")
            raise _refusal(job_id, standings.get(job_id), "retried")
        record = await self._jobs.get_record(made[job_id].id, tenant=tenant)
        return Submission(record=record, replayed=made[job_id].replayed)

    async def delete(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Forget a job that has ended, with its attempts and events.

        Raises `JobNotFoundError`, `JobStateError`, `ServiceUnavailableError`.
        """
        job_id = canonical_id(job_id)
        standings = await job_queries.find_standings(self._reader, tenant, [job_id])
        if job_id not in await self._delete([job_id], tenant):
            raise _refusal(job_id, standings.get(job_id), "deleted")

    async def act_on(
        self,
        action: Action,
        job_ids: Sequence[str],
        *,
        tenant: str = DEFAULT_TENANT,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> ActionReport:
        """Do `action` to these jobs, or with `dry_run` say what would be done; an outcome for each, in their order.

        With `idempotency_key` each job is retried once, however often the call is made. Raises as `retry` does, but
        for no single job's sake.
        """
        # Of an id that is given twice, the first counts.
        spelled = {canonical_uuid(job_id) or job_id[:100]: None for job_id in job_ids}
        standings = await job_queries.find_standings(
            self._reader, tenant, [job_id for job_id in spelled if canonical_uuid(job_id)]
        )
        done = {} if dry_run else await self._do(action, [*spelled], standings, tenant, idempotency_key)
        left = [job_id for job_id in standings if job_id not in done] if action is Action.RETRY else []
        gone = await job_queries.find_gone(self._reader, tenant, left) if left else set()
        items = [
            done.get(job_id)
            or Acted(
                id=job_id,
                outcome=ActionOutcome.BYTES_GONE
                if job_id in gone
                else _outlook(action, standings.get(job_id), dry_run=dry_run),
            )
            for job_id in spelled
        ]
        return ActionReport(items=items, more=False)

    async def act_where(
        self,
        action: Action,
        query: JobQuery,
        *,
        tenant: str = DEFAULT_TENANT,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> ActionReport:
        """As `act_on`, for up to `query.limit` jobs that the filter fits and the action can be done to, oldest first.

        With `idempotency_key` a retry leaves out what was retried under it, and its own retries: the same call again
        takes the next ones.
        """
        found = await job_queries.choose(
            self._reader,
            dataclasses.replace(query, limit=query.limit + 1),
            _FOUND[action],
            tenant,
            whole=action is Action.RETRY,
            not_retried_under=f"{idempotency_key}#" if action is Action.RETRY and idempotency_key else None,
        )
        standings = {standing.id: standing for standing in found[: query.limit]}
        done = {} if dry_run else await self._do(action, [*standings], standings, tenant, idempotency_key)
        items = [
            done.get(job_id) or Acted(id=job_id, outcome=_outlook(action, standing, dry_run=dry_run))
            for job_id, standing in standings.items()
        ]
        return ActionReport(items=items, more=len(found) > query.limit)

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _do(
        self,
        action: Action,
        job_ids: Sequence[str],
        standings: Mapping[str, Standing],
        tenant: str,
        idempotency_key: str | None,
    ) -> dict[str, Acted]:
        """Do `action` to those of the jobs that there are; those to which something was done, or was done before."""
        match action:
            case Action.CANCEL:
                return await self._cancel(standings, tenant)
            case Action.RETRY:
                # Also where there is no such job any more: it may have been retried before it was deleted.
                wanted = [job_id for job_id in job_ids if canonical_uuid(job_id)]
                keys = (f"{idempotency_key}#{job_id}" if idempotency_key else None for job_id in wanted)
                retries = [_retry(job_id, tenant, key) for job_id, key in zip(wanted, keys, strict=True)]
                made = await self._retry(retries, standings, tenant)
                return {
                    job_id: Acted(id=job_id, outcome=ActionOutcome.RETRIED, new_id=inserted.id)
                    for job_id, inserted in made.items()
                }
            case Action.DELETE:
                deleted = await self._delete([*standings], tenant)
                return {job_id: Acted(id=job_id, outcome=ActionOutcome.DELETED) for job_id in deleted}

    async def _cancel(self, standings: Mapping[str, Standing], tenant: str) -> dict[str, Acted]:
        done = {}
        for page in _pages([*standings]):
            await self._jobs.cancel_jobs({job_id: standings[job_id].plugin for job_id in page})
            now = await job_queries.find_standings(self._reader, tenant, page)
            for job_id, standing in now.items():
                if standing.status is JobStatus.CANCELLED:
                    done[job_id] = Acted(id=job_id, outcome=ActionOutcome.CANCELLED)
                elif standing.status in ACTIVE:
                    done[job_id] = Acted(id=job_id, outcome=ActionOutcome.STOPPING)
        return done

    async def _delete(self, job_ids: Sequence[str], tenant: str) -> set[str]:
        deleted: set[str] = set()
        for page in _pages(job_ids):
            gone = await self._writer.write(job_removals.delete, Removal(tenant=tenant, job_ids=page))
            for job_id in gone:
                self._events.job_changed(job_id)
            deleted |= gone
        return deleted

    async def _retry(
        self, retries: Sequence[Retry], standings: Mapping[str, Standing], tenant: str
    ) -> dict[str, Inserted]:
        """The new jobs, by what they try again; those that a key made before too, for which there must be no room."""
        self._jobs.intake.check_open()
        try:
            made = await self._record(retries, standings, tenant)
        except (QueueFullError, PluginPausedError):
            keys = {retry.parent_id: (tenant, retry.idempotency_key) for retry in retries if retry.idempotency_key}
            known = await job_inserts.find_by_key(self._reader, keys.values()) if keys else {}
            if not known:
                raise
            made = {parent_id: known[key] for parent_id, key in keys.items() if key in known}
            rest = [retry for retry in retries if retry.parent_id not in made]
            made |= await self._record(rest, standings, tenant)
        for retry in retries:
            inserted = made.get(retry.parent_id)
            if inserted is not None and inserted.request_hash != retry.request_hash:
                raise IdempotencyConflictError(retry.idempotency_key or "")
        return made

    async def _record(
        self, retries: Sequence[Retry], standings: Mapping[str, Standing], tenant: str
    ) -> dict[str, Inserted]:
        plugins = {job_id: standing.plugin for job_id, standing in standings.items() if standing.status in TERMINAL}
        wanted = [plugins[retry.parent_id] for retry in retries if retry.parent_id in plugins]
        made: dict[str, Inserted] = {}
        with self._jobs.intake.room_for(tenant, wanted):
            for page in _pages(retries):
                outcomes = await self._writer.write(job_retries.retry_page, page)
                inserted = {retry.parent_id: one for retry, one in zip(page, outcomes, strict=True) if one is not None}
                new = [plugins[job_id] for job_id, one in inserted.items() if not one.replayed and job_id in plugins]
                self._jobs.intake.recorded(new)
                made |= inserted
        return made


_Item = TypeVar("_Item")


def _pages(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), PAGE):
        yield items[start : start + PAGE]


def _retry(job_id: str, tenant: str, key: str | None) -> Retry:
    new_id = str(uuid7())
    return Retry(
        id=new_id,
        parent_id=job_id,
        tenant=tenant,
        created_at=time_of(new_id),
        idempotency_key=key,
        request_hash=digest(encode(["retry", job_id])) if key else None,
    )


def _outlook(action: Action, standing: Standing | None, *, dry_run: bool) -> ActionOutcome:
    """What becomes of a job to which nothing was done."""
    if standing is None:
        return ActionOutcome.UNKNOWN
    if dry_run and standing.status in _POSSIBLE[action]:
        return _WOULD[action]
    return ActionOutcome.WRONG_STATE


def _refusal(job_id: str, standing: Standing | None, asked: str) -> ServiceError:
    """Why nothing was done to a job, which must have ended for it."""
    if standing is None or standing.status in TERMINAL:  # if it had, it went away meanwhile
        return JobNotFoundError(job_id)
    return JobStateError(job_id, standing.status, asked)
