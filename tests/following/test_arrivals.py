"""A job that arrives while a worker is free is claimed in the commit of its row; none is forgotten otherwise."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from service.errors import JobNotFoundError
from service.events import EventBus
from service.job_management import JobManagementService
from service.models import JobOptions, JobRecord, JobStatus, Timestamp
from tests.following.conftest import FAR, Client, Start


async def test_a_job_for_which_a_worker_is_free_is_claimed_in_the_commit_of_its_row(client: Client) -> None:
    commits: list[int] = []
    client.service.jobs._database.writer.on_commit = commits.append
    shared = 0
    for _ in range(8):
        commits.clear()
        job_id = await client.submit("sleep", {"seconds": 0.3})  # does not end before its acceptance is told
        shared += any(size > 1 for size in commits)
        await client.ended(job_id)
    assert shared  # not each time: the claim after an end, or housekeeping, may be under way


async def test_a_job_that_comes_too_late_does_not_start_though_a_worker_is_free(client: Client) -> None:
    late = [await client.submit("echo", {"n": n}, expires_at="2020-01-01T00:00:00Z") for n in range(3)]
    for job_id in late:
        record = await client.ended(job_id)
        assert (record["status"], record["error"]["type"], record["started_at"]) == ("FAILED", "Expired", None)
    jobs = client.service.jobs
    past = Timestamp("2020-01-01T00:00:00.000Z")
    job_id = await jobs.create_job("echo", {}, JobOptions(run_at=past, expires_at=past))
    _, error = await jobs.run_job(job_id)  # nor when somebody orders it
    assert error["error"]["type"] == "Expired"


async def test_what_arrives_at_once_waits_for_no_poll(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dispatcher.POLL_S", 600)
    async with start(workers=1) as client:
        for _ in range(10):
            jobs = await asyncio.gather(*(client.submit() for _ in range(5)))
            await asyncio.gather(*map(client.ended, jobs))


async def test_an_end_that_left_nothing_behind_asks_for_no_claim(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dispatcher.POLL_S", 600)
    async with start(workers=2) as client:
        events = client.service.jobs._events
        before = events.claims
        for _ in range(5):
            await client.ended(await client.submit())
        assert events.claims - before == 5  # one when it comes, none when it goes
        # What goes back to the queue is for whoever is free, though nothing else was left there.
        jobs = client.service.jobs
        job_id = await client.submit("sleep", {"seconds": 1})
        while not jobs.at_work:
            await asyncio.sleep(0.01)
        for execution in jobs._executions.values():
            execution.stop(JobStatus.PENDING)
        assert (await client.ended(job_id))["status"] == "SUCCESS"


async def test_who_saw_a_record_before_it_ended_is_told_soon(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = client.service.jobs
    seen = (await jobs.submit_job("echo", {"n": 1})).record
    await client.ended(seen.id)  # and nobody tells of it any more
    reads = 0

    async def get_record(job_id: str, **more: Any) -> JobRecord:
        nonlocal reads
        reads += 1
        return await JobManagementService.get_record(jobs, job_id, **more)

    monkeypatch.setattr(jobs, "get_record", get_record)
    async with asyncio.timeout(1):
        assert (await jobs.wait_for(seen.id, 30, seen=seen)).status == "SUCCESS"
    assert reads == 1  # what had been seen was not read again
    assert (await jobs.wait_for(seen.id, 30)).status == "SUCCESS"
    later = (await jobs.submit_job("echo", {}, JobOptions(run_at=FAR["run_at"]))).record
    assert (await jobs.wait_for(later.id, 0.15, seen=later)).status == "PENDING"


async def test_who_waits_is_told_the_record_of_the_end_without_another_look(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = client.service.jobs
    monkeypatch.setattr("service.job_management._LOOK_AGAIN_S", 600)
    seen = (await jobs.submit_job("sleep", {"seconds": 0.1})).record

    async def get_record(job_id: str, **more: Any) -> JobRecord:
        raise AssertionError("it was looked at once more")

    with monkeypatch.context() as blind:
        blind.setattr(jobs, "get_record", get_record)
        ended = await jobs.wait_for(seen.id, 30, seen=seen)
    assert ended == await jobs.get_record(seen.id)
    assert ended.status == "SUCCESS"


async def test_a_record_of_another_tenant_under_the_same_id_is_not_told(client: Client) -> None:
    """Only a read that is slower than a deletion, a new job under the id and its end can come to this."""
    jobs = client.service.jobs
    theirs = (await jobs.submit_job("sleep", {"seconds": 0.3})).record
    mine = dataclasses.replace(theirs, tenant="mine")
    async with asyncio.timeout(30):
        with pytest.raises(JobNotFoundError):
            await jobs.wait_for(theirs.id, 60, tenant="mine", seen=mine)


async def test_an_end_is_remembered_from_when_it_was_told_last() -> None:
    events = EventBus()
    events.job_changed("a")
    for n in range(1_000):
        events.job_changed(str(n))
    events.job_changed("a")
    for n in range(1_000):
        events.job_changed(f"other-{n}")
    assert events.may_have_ended("a")
    assert not events.may_have_ended("0")


async def test_who_waits_for_an_end_is_not_woken_by_what_is_none() -> None:
    events = EventBus()
    with events.watch("a") as changed, events.watch("a", only_end=True) as ended, events.watch("b") as other:
        events.job_changed("a", ends=False)
        assert (changed.is_set(), ended.is_set()) == (True, False)
        events.job_changed("a")
        assert ended.is_set()
        assert not other.is_set()
        ended.clear()
        events.heard("a")  # of another process, which says no more than that
        assert ended.is_set()
        ended.clear()
        events.missed_some()
        assert ended.is_set()
        assert other.is_set()
