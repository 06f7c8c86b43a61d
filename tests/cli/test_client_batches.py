"""`service.client` makes many jobs at once, and makes them again."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest

from service.client import ApiError, Client, NewJob
from service.models import JobOptions, JobStatus

from .conftest import RunningService
from .relays import cutting, losing_answers

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[Client]:
    async with Client(service.url) as client:
        yield client


async def test_a_batch_is_taken_item_by_item_and_followed_to_its_end(client: Client) -> None:
    tag = uuid.uuid4().hex
    jobs = [NewJob(plugin="echo", payload={"n": n, "data": b"\0" * n}, options=JobOptions(tags=(tag,))) for n in (1, 2)]
    sent = await client.submit_batch([*jobs, NewJob(plugin="sleep", payload={"seconds": "long"})])
    assert (sent.accepted, sent.refused) == (2, 1)
    assert [item.index for item in sent.items] == [0, 1, 2]
    refused = sent.items[2]
    assert refused.id is None
    assert refused.problem
    assert refused.problem["status"] == 422
    assert sent.id
    batch = await client.batch(sent.id, wait_s=30)
    assert (batch.total, batch.counts[JobStatus.SUCCESS]) == (2, 2)
    assert batch.finished_at
    results = [result async for result in client.batch_results(sent.id)]
    assert [result.id for result in results] == sorted(str(item.id) for item in sent.items[:2])
    assert sorted(result.result["n"] for result in results if result.result) == [1, 2]
    assert sorted([job.id async for job in client.jobs(tag=tag)]) == sorted(str(item.id) for item in sent.items[:2])
    assert (await client.get(results[0].id)).batch_id == sent.id


async def test_a_batch_whose_answer_was_lost_makes_its_jobs_once(service: RunningService, client: Client) -> None:
    tag = uuid.uuid4().hex
    jobs = [NewJob(plugin="echo", payload={"n": n}, options=JobOptions(tags=(tag,))) for n in range(5)]
    async with losing_answers(service.url, losses=2) as (url, requests), Client(url) as unlucky:
        sent = await unlucky.submit_batch(jobs)
    assert len(requests) == 3
    assert all(item.replayed for item in sent.items)
    assert len([job async for job in client.jobs(tag=tag)]) == 5


async def test_no_result_is_passed_over_when_a_job_goes_while_the_answer_breaks(
    service: RunningService, client: Client
) -> None:
    sent = await client.submit_batch([NewJob(plugin="echo", payload={"text": "x" * 3_000}) for _ in range(4)])
    assert sent.id
    await client.batch(sent.id, wait_s=30)
    jobs = [str(item.id) for item in sent.items]
    seen: list[str] = []
    # The first answer ends in its second line.
    async with (
        aiohttp.ClientSession(service.url, raise_for_status=True) as session,
        cutting(service.url, [5_000]) as (url, requests),
        Client(url) as unlucky,
    ):
        async for result in unlucky.batch_results(sent.id):
            seen.append(result.id)
            if len(seen) == 1:
                await session.delete(f"/v1/jobs/{result.id}")
    assert (seen, len(requests)) == (jobs, 2)


async def test_a_batch_of_jobs_that_are_there_already_has_no_id(client: Client) -> None:
    jobs = [NewJob(plugin="echo", payload={"n": n}, idempotency_key=uuid.uuid4().hex) for n in range(2)]
    for job in jobs:
        await client.submit(job.plugin, job.payload, idempotency_key=job.idempotency_key)
    sent = await client.submit_batch(jobs)
    assert (sent.id, [item.replayed for item in sent.items]) == (None, [True, True])


async def test_a_batch_without_any_acceptable_job_is_refused(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        await client.submit_batch([NewJob(plugin="nope", payload={})])
    assert refused.value.status == 422
    assert refused.value.problem["items"][0]["problem"]


async def test_a_retry_is_a_new_job_of_the_same_input_made_once(service: RunningService, client: Client) -> None:
    job = await client.submit("sleep", {"seconds": 9}, options=JobOptions(timeout_s=0.3, tags=("again",)))
    with pytest.raises(ApiError) as early:
        await client.retry(job.id)
    assert early.value.status == 409
    await client.wait(job.id)
    async with losing_answers(service.url, losses=1) as (url, requests), Client(url) as unlucky:
        again = await unlucky.retry(job.id)
    assert len(requests) == 2
    assert (again.parent_id, again.plugin, list(again.tags)) == (job.id, "sleep", ["again"])
    assert again.id != job.id
    assert (await client.retry(job.id, idempotency_key=job.id)).id == (
        await client.retry(job.id, idempotency_key=job.id)
    ).id


def test_the_command_retry_makes_a_new_job(service: RunningService) -> None:
    job_id = service.cli("submit", "--plugin", "echo", "--payload", '{"a": 1}').stdout.strip()
    service.cli("show", job_id, "--wait")
    again = service.cli("retry", job_id, "--wait")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"a": 1})
    record = json.loads(service.cli("retry", job_id, "--json").stdout)
    assert record["parent_id"] == job_id
    assert service.cli("retry", str(uuid.uuid4())).returncode == 2
