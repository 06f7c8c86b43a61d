"""Every read of jobs and their attempts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.codec import decode
from service.db.reader import Reader
from service.db.schema import NOT_DEFAULT_TENANT, job_attempts, jobs
from service.db.statements import JsonHas, Statement, batch, batch_table, literal
from service.models import (
    DEFAULT_TENANT,
    AttemptRecord,
    BlobRef,
    JobPage,
    JobQuery,
    JobRecord,
    JobStatus,
    Progress,
    StoredArtifact,
    Timestamp,
)

_SUMMARY: Final = (
    jobs.c.id, jobs.c.tenant, jobs.c.plugin, jobs.c.plugin_version, jobs.c.status, jobs.c.priority, jobs.c.tags,
    jobs.c.metadata, jobs.c.attempt, jobs.c.max_attempts, jobs.c.fence, jobs.c.event_count, jobs.c.batch_id,
    jobs.c.parent_id, jobs.c.schedule_id, jobs.c.webhook_id, jobs.c.progress_fraction, jobs.c.progress_message,
    jobs.c.error, jobs.c.artifacts, jobs.c.cancel_reason, jobs.c.cancel_requested_at, jobs.c.timeout_s,
    jobs.c.created_at, jobs.c.run_at, jobs.c.expires_at, jobs.c.started_at, jobs.c.finished_at,
)  # fmt: skip
_SELECT_JOB = Statement(
    sa.select(*_SUMMARY, jobs.c.payload, jobs.c.result).where(
        jobs.c.id == sa.bindparam("job_id"), jobs.c.tenant == sa.bindparam("of_tenant")
    )
)
_SELECT_OUTCOME = Statement(sa.select(*_SUMMARY, jobs.c.result).where(jobs.c.id == sa.bindparam("job_id")))
_SELECT_ATTEMPTS = Statement(
    sa.select(*(job_attempts.c[field.name] for field in dataclasses.fields(AttemptRecord)))
    .where(job_attempts.c.job_id == sa.bindparam("of_job"))
    .order_by(job_attempts.c.fence)
)

_known_plugins: Final = batch_table("known_plugins", jobs.c.plugin, parameter="plugins")
_SELECT_ABANDONED = Statement(
    sa.select(jobs.c.id, jobs.c.plugin)
    .where(
        sa.text("jobs.status = 'PENDING' AND jobs.due"),
        jobs.c.run_at < sa.bindparam("before"),
        jobs.c.plugin.not_in(sa.select(_known_plugins.c.plugin)),
    )
    .limit(500)
)

#: The condition that each filter of a list adds; its value is bound under the same name.
_FILTERS: Final[Mapping[str, sa.ColumnElement[bool]]] = {
    "plugin": jobs.c.plugin == sa.bindparam("plugin"),
    "tag": JsonHas(jobs.c.tags, sa.bindparam("tag", type_=sa.Text)),
    "error_type": jobs.c.error_type == sa.bindparam("error_type"),
    "created_after": jobs.c.created_at > sa.bindparam("created_after"),
    "created_before": jobs.c.created_at < sa.bindparam("created_before"),
    "after": jobs.c.id < sa.bindparam("after"),
}


@functools.lru_cache(maxsize=1024)
def _list_statement(status: JobStatus | None, filters: frozenset[str], *, of_default: bool) -> Statement:
    query = sa.select(*_SUMMARY).where(jobs.c.tenant == sa.bindparam("of_tenant"))
    if not of_default:
        query = query.where(sa.text(f"jobs.{NOT_DEFAULT_TENANT}"))
    for name in filters:
        query = query.where(_FILTERS[name])
    if status is not None:
        query = query.where(jobs.c.status == literal(status))
    return Statement(query.order_by(jobs.c.id.desc()).limit(sa.bindparam("limit")))


async def get(reader: Reader, job_id: str, tenant: str) -> JobRecord | None:
    """The whole record, or None."""
    row = await reader.fetch_one(_SELECT_JOB, job_id=job_id, of_tenant=tenant)
    return row and _record(row[:-2], payload=row[-2], result=row[-1])


async def get_outcome(reader: Reader, job_id: str) -> JobRecord | None:
    """The record of a job of whatever tenant, without its payload; None when it is gone."""
    row = await reader.fetch_one(_SELECT_OUTCOME, job_id=job_id)
    return row and _record(row[:-1], payload=None, result=row[-1])


async def list_page(reader: Reader, query: JobQuery, tenant: str) -> JobPage:
    """A page, newest first, without payloads and results."""
    values = {name: getattr(query, name) for name in _FILTERS}
    values = {name: value for name, value in values.items() if value is not None}
    statement = _list_statement(query.status, frozenset(values), of_default=tenant == DEFAULT_TENANT)
    rows = await reader.fetch(statement, of_tenant=tenant, limit=query.limit + 1, **values)
    items = [_record(row, payload=None, result=None) for row in rows[: query.limit]]
    return JobPage(items=items, next=items[-1].id if len(rows) > query.limit else None)


async def find_abandoned(reader: Reader, plugins: Collection[str], before: Timestamp) -> list[tuple[str, str]]:
    """Id and plugin of jobs that have been due since `before` and are of none of `plugins`, at most 500."""
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


def _record(row: Sequence[Any], *, payload: str | None, result: str | None) -> JobRecord:
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
