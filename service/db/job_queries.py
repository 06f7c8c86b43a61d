"""Every read of jobs and their attempts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, Final

import sqlalchemy as sa

from service.codec import decode, off_loop
from service.db.blob_references import payload_stands
from service.db.group_reads import Lookup
from service.db.reader import Reader
from service.db.schema import NOT_DEFAULT_TENANT, UNFINISHED, job_attempts, job_tags, jobs, quoted
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import (
    DEFAULT_TENANT,
    AttemptRecord,
    BlobRef,
    JobPage,
    JobQuery,
    JobRecord,
    JobStatus,
    JobVersion,
    Progress,
    Standing,
    StoredArtifact,
    Timestamp,
    ids_at,
)

_SUMMARY: Final = (
    jobs.c.id, jobs.c.tenant, jobs.c.plugin, jobs.c.plugin_version, jobs.c.status, jobs.c.priority, jobs.c.tags,
    jobs.c.metadata, jobs.c.attempt, jobs.c.max_attempts, jobs.c.fence, jobs.c.event_count, jobs.c.batch_id,
    jobs.c.parent_id, jobs.c.schedule_id, jobs.c.webhook_id, jobs.c.progress_fraction, jobs.c.progress_message,
    jobs.c.error, jobs.c.artifacts, jobs.c.cancel_reason, jobs.c.cancel_requested_at, jobs.c.timeout_s,
    jobs.c.created_at, jobs.c.run_at, jobs.c.expires_at, jobs.c.started_at, jobs.c.finished_at,
)  # fmt: skip
_JOB = Lookup(*_SUMMARY, bulky=(jobs.c.payload, jobs.c.result))
_VERSION = Lookup(jobs.c.id, jobs.c.tenant, jobs.c.created_at, jobs.c.event_count)
_OUTCOME = Lookup(*_SUMMARY, bulky=(jobs.c.result,))
_SELECT_ATTEMPTS = Statement(
    sa.select(*(job_attempts.c[field.name] for field in dataclasses.fields(AttemptRecord)))
    .where(job_attempts.c.job_id == sa.bindparam("of_job"))
    .order_by(job_attempts.c.fence)
)

#: So many jobs without a plugin are found at once.
ABANDONED_PAGE: Final = 500
_known_plugins: Final = batch_table("known_plugins", jobs.c.plugin, parameter="plugins")
_SELECT_ABANDONED = Statement(
    sa.select(jobs.c.id, jobs.c.plugin)
    .where(
        sa.text("jobs.status = 'PENDING' AND jobs.due"),
        jobs.c.run_at < sa.bindparam("before"),
        jobs.c.plugin.not_in(sa.select(_known_plugins.c.plugin)),
    )
    .limit(ABANDONED_PAGE)
)

_wanted = batch_table("wanted", jobs.c.id)
_SELECT_STANDINGS = Statement(
    sa.select(jobs.c.id, jobs.c.status, jobs.c.plugin).where(
        jobs.c.tenant == sa.bindparam("of_tenant"), jobs.c.id.in_(sa.select(_wanted.c.id))
    )
)
_SELECT_GONE = Statement(
    sa.select(jobs.c.id).where(
        jobs.c.tenant == sa.bindparam("of_tenant"), jobs.c.id.in_(sa.select(_wanted.c.id)), ~payload_stands
    )
)

_FILTERS: Final = ("plugin", "tag", "error_type", "created_after", "created_before", "after")


def _filtered(
    columns: Sequence[sa.ColumnElement[Any]], filters: frozenset[str], *, of_default: bool
) -> tuple[sa.Select[Any], sa.ColumnElement[Any]]:
    """`columns` of a tenant's jobs with a condition for each filter, and the column to put them in order by.

    The value of a filter is bound under its name; those of `created_after` and `created_before` are ids.
    """
    query, key = sa.select(*columns), jobs.c.id
    tenant: sa.BindParameter[str] = sa.bindparam("of_tenant")
    if "tag" in filters:
        key = job_tags.c.job_id
        query = query.join(job_tags, job_tags.c.job_id == jobs.c.id).where(
            job_tags.c.tenant == tenant, job_tags.c.tag == sa.bindparam("tag")
        )
    query = query.where(jobs.c.tenant == tenant)
    if not of_default:
        query = query.where(sa.text(f"jobs.{NOT_DEFAULT_TENANT}"))
    conditions: Mapping[str, sa.ColumnElement[bool]] = {
        "plugin": jobs.c.plugin == sa.bindparam("plugin"),
        "error_type": jobs.c.error_type == sa.bindparam("error_type"),
        "created_after": key > sa.bindparam("created_after", type_=key.type),
        "created_before": key < sa.bindparam("created_before", type_=key.type),
        "after": key < sa.bindparam("after", type_=key.type),
    }
    return query.where(*(conditions[name] for name in _FILTERS if name in filters - {"tag"})), key


def _values(query: JobQuery) -> dict[str, str]:
    values = {name: getattr(query, name) for name in _FILTERS if getattr(query, name) is not None}
    if query.created_after is not None:
        _, values["created_after"] = ids_at(query.created_after)
    if query.created_before is not None:
        values["created_before"], _ = ids_at(query.created_before)
    return values


@functools.lru_cache(maxsize=1024)
def _list_statement(status: JobStatus | None, filters: frozenset[str], *, of_default: bool) -> Statement:
    query, key = _filtered(_SUMMARY, filters, of_default=of_default)
    if status is not None:
        query = query.where(jobs.c.status == literal(status))
        if not status.is_terminal:
            query = query.where(sa.text(f"jobs.{UNFINISHED}"))
    return Statement(query.order_by(key.desc()).limit(sa.bindparam("limit")))


_child = jobs.alias("child")
#: Jobs that were not retried under a key of this beginning and their id, and are no such retry themselves.
_NOT_RETRIED: Final = sa.and_(
    ~sa.exists(sa.text("1"))
    .where(
        _child.c.tenant == sa.bindparam("of_tenant"),
        _child.c.idempotency_key == sa.bindparam("prefix", type_=sa.Text) + sa.cast(jobs.c.id, sa.Text),
    )
    .select_from(_child),
    # The whole key: a batch under the same one, and retries under a longer one, have keys with that beginning too.
    jobs.c.parent_id.is_(None)
    | jobs.c.idempotency_key.is_(None)
    | (jobs.c.idempotency_key != sa.bindparam("prefix", type_=sa.Text) + sa.cast(jobs.c.parent_id, sa.Text)),
)


@functools.lru_cache(maxsize=1024)
def _standings_statement(
    statuses: frozenset[JobStatus], filters: frozenset[str], *, of_default: bool, whole: bool, not_retried: bool
) -> Statement:
    query, key = _filtered((jobs.c.id, jobs.c.status, jobs.c.plugin), filters, of_default=of_default)
    query = query.where(
        sa.text(f"jobs.status IN ({quoted(*statuses)})"),
        (jobs.c.status != literal("RUNNING")) | jobs.c.cancel_requested_at.is_(None),
    )
    if whole:
        query = query.where(payload_stands)
    if not_retried:
        query = query.where(_NOT_RETRIED)
    return Statement(query.order_by(key).limit(sa.bindparam("limit")))


async def get(reader: Reader, job_id: str, tenant: str) -> JobRecord | None:
    """The whole record, or None."""
    row = await reader.look_up(_JOB, job_id)
    if row is None or row[1] != tenant:
        return None
    return await off_loop(row[-2:], _record, row[:-2], row[-2], row[-1])


async def get_small(tx: Transaction, job_ids: Set[str]) -> dict[str, JobRecord]:
    """The records of jobs, as the transaction leaves them, of those that have little in them."""
    if not job_ids:
        return {}
    rows = await _JOB.small_rows(tx.fetch, job_ids)
    return {job_id: _record(row[:-2], row[-2], row[-1]) for job_id, row in rows.items()}


async def get_version(reader: Reader, job_id: str, tenant: str) -> JobVersion | None:
    """The state in which a job is, or None."""
    row = await reader.look_up(_VERSION, job_id)
    return None if row is None or row[1] != tenant else JobVersion(row[2], row[3])


async def get_outcome(reader: Reader, job_id: str) -> JobRecord | None:
    """The record of a job of whatever tenant, without its payload; None when it is gone."""
    row = await reader.look_up(_OUTCOME, job_id)
    return None if row is None else await off_loop(row[-1], _record, row[:-1], None, row[-1])


async def list_page(reader: Reader, query: JobQuery, tenant: str) -> JobPage:
    """A page, newest first, without payloads and results."""
    values = _values(query)
    statement = _list_statement(query.status, frozenset(values), of_default=tenant == DEFAULT_TENANT)
    rows = await reader.fetch(statement, of_tenant=tenant, limit=query.limit + 1, **values)
    items = [_record(row, payload=None, result=None) for row in rows[: query.limit]]
    return JobPage(items=items, next=items[-1].id if len(rows) > query.limit else None)


async def find_standings(reader: Reader, tenant: str, job_ids: Collection[str]) -> dict[str, Standing]:
    """Where jobs of a tenant stand, by id; nothing for an id that is none of them."""
    rows = await reader.fetch(_SELECT_STANDINGS, of_tenant=tenant, batch=batch((job_id,) for job_id in job_ids))
    return {row[0]: _standing(row) for row in rows}


async def find_gone(reader: Reader, tenant: str, job_ids: Collection[str]) -> set[str]:
    """Those of a tenant's jobs whose payload has lost bytes, so that they cannot be tried again."""
    rows = await reader.fetch(_SELECT_GONE, of_tenant=tenant, batch=batch((job_id,) for job_id in job_ids))
    return {job_id for (job_id,) in rows}


async def choose(
    reader: Reader,
    query: JobQuery,
    statuses: frozenset[JobStatus],
    tenant: str,
    *,
    whole: bool = False,
    not_retried_under: str | None = None,
) -> list[Standing]:
    """Up to `query.limit` jobs in one of `statuses`, oldest first; none that is stopping already.

    With `whole`, none whose payload has lost bytes.
    With `not_retried_under`, none of which a retry has the key of that and its id, nor such a retry.
    """
    values = _values(query)
    chosen = statuses if query.status is None else statuses & {query.status}
    if not chosen:
        return []
    statement = _standings_statement(
        chosen,
        frozenset(values),
        of_default=tenant == DEFAULT_TENANT,
        whole=whole,
        not_retried=not_retried_under is not None,
    )
    if not_retried_under is not None:
        values["prefix"] = not_retried_under
    return [_standing(row) for row in await reader.fetch(statement, of_tenant=tenant, limit=query.limit, **values)]


def _standing(row: Sequence[Any]) -> Standing:
    job_id, status, plugin = row
    return Standing(id=job_id, status=JobStatus(status), plugin=plugin)


async def find_abandoned(reader: Reader, plugins: Collection[str], before: Timestamp) -> list[tuple[str, str]]:
    """Id and plugin of jobs that have been due since `before` and are of none of `plugins`; at most a page."""
    rows = await reader.fetch(_SELECT_ABANDONED, plugins=batch((name,) for name in plugins), before=before)
    return [(job_id, plugin) for job_id, plugin in rows]


async def list_attempts(reader: Reader, job_id: str) -> list[AttemptRecord]:
    """Every execution of the job, in the order of their fences."""
    names = [field.name for field in dataclasses.fields(AttemptRecord)]
    records = []
    for row in await reader.fetch(_SELECT_ATTEMPTS, of_job=job_id):
        values = dict(zip(names, row, strict=True))
        values["metrics"] = decode(values["metrics"]) if values["metrics"] else {}
        records.append(AttemptRecord(**values))
    return records


def _record(row: Sequence[Any], payload: str | None, result: str | None) -> JobRecord:
    (
        job_id, tenant, plugin, plugin_version, status, priority, tags, metadata, attempt, max_attempts, fence,
        event_count, batch_id, parent_id, schedule_id, webhook_id, fraction, message, error, artifacts, cancel_reason,
        cancel_requested_at, timeout_s, created_at, run_at, expires_at, started_at, finished_at,
    ) = row  # fmt: skip
    return JobRecord(
        id=job_id,
        tenant=tenant,
        plugin=plugin,
        plugin_version=plugin_version,
        status=JobStatus(status),
        priority=priority,
        tags=decode(tags),
        metadata=decode(metadata),
        attempt=attempt,
        max_attempts=max_attempts,
        fence=fence,
        event_count=event_count,
        batch_id=batch_id,
        parent_id=parent_id,
        schedule_id=schedule_id,
        webhook_id=webhook_id,
        progress=None if fraction is None else Progress(fraction=fraction, message=message),
        payload=decode(payload) if payload is not None else None,
        result=decode(result) if result is not None else None,
        error=decode(error) if error is not None else None,
        artifacts=[StoredArtifact(name=item.pop("name"), blob=BlobRef(**item)) for item in decode(artifacts)],
        cancel_reason=cancel_reason,
        cancel_requested_at=cancel_requested_at,
        timeout_s=timeout_s,
        created_at=created_at,
        run_at=run_at,
        expires_at=expires_at,
        started_at=started_at,
        finished_at=finished_at,
    )
