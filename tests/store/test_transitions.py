"""Whatever is asked of a job in whatever state, only the moves of `models.TRANSITIONS` happen; and each of them can."""

from __future__ import annotations

import itertools

from uuid_utils.compat import uuid7

from service.db import job_changes, job_leases, job_removals, job_retries
from service.db.job_changes import CancelRequest
from service.db.job_removals import Removal
from service.db.job_retries import Retry
from service.models import TRANSITIONS, JobStatus, timestamp
from tests.store.test_jobs import ME, OTHER, after, claim, end, insert, record
from tests.store.test_writer import new_job


async def in_state(database, status: JobStatus, *, is_late: bool = False):
    """A job in `status`, its time to start passed if it waits; and the claim of its runner where it has or had one."""
    expires_at = after(-1) if is_late and status is JobStatus.PENDING else None
    (job_id,) = await insert(database, new_job(expires_at=expires_at))
    (job,) = await claim(database, job_id=job_id) if status is not JobStatus.PENDING else [None]
    if status.is_terminal:
        more = {"cancel_reason": "asked"} if status is JobStatus.CANCELLED else {}
        assert await end(database, job, status, **more)
    return job_id, job


async def cancel(database, job_id, job):
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="asked"))


async def run(database, job_id, job):
    await claim(database, job_id=job_id, owner=OTHER)


async def expire(database, job_id, job):
    await database.writer.write(job_changes.expire, None)


async def recover(database, job_id, job):
    await database.writer.write(job_leases.recover, OTHER)


async def retry(database, job_id, job):
    before = (await record(database, job_id)).status
    new = Retry(id=str(uuid7()), parent_id=job_id, tenant="default", created_at=timestamp())
    (made,) = await database.writer.write(job_retries.retry_page, [new])
    assert (made is not None) is before.is_terminal


async def delete(database, job_id, job):
    before = (await record(database, job_id)).status
    gone = await database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=[job_id]))
    assert bool(gone) is before.is_terminal


def ending(status: JobStatus):
    async def finish(database, job_id, job):
        if job is not None:
            more = {"cancel_reason": "asked"} if status is JobStatus.CANCELLED else {}
            await end(database, job, status, owner=ME, **more)

    return finish


ATTEMPTED = (
    cancel,
    run,
    expire,
    recover,
    retry,
    delete,
    *(ending(status) for status in TRANSITIONS[JobStatus.RUNNING]),
)


async def test_only_legal_moves_happen_and_every_one_of_them_can(database):
    seen = set()
    for before, attempt in itertools.product(JobStatus, ATTEMPTED):
        job_id, job = await in_state(database, before, is_late=attempt is expire)
        await attempt(database, job_id, job)
        now = await record(database, job_id)
        if now is not None and now.status is not before:
            seen.add((before, now.status))
    assert seen == {(before, now) for before, targets in TRANSITIONS.items() for now in targets}
