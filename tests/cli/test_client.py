"""`service.client` against a running service: what comes back typed, and what survives a bad connection."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from service.client import (
    ApiError,
    Client,
    File,
    Job,
    NewJob,
    NewSchedule,
    NoResultError,
    ServiceUnreachableError,
    media_type_of,
)
from service.models import JobOptions, JobStatus, JobWebhook

from .conftest import RunningService, running_service
from .relays import holding, losing_answers

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[Client]:
    async with Client(service.url) as client:
        yield client


async def test_bytes_in_a_payload_arrive_as_bytes(client: Client) -> None:
    data = bytes(range(256)) * 400
    job = await client.submit("echo", {"a": [{"data": data}], "n": 1})
    done = await client.wait(job.id)
    assert (done.status, done.result and done.result["n"]) == (JobStatus.SUCCESS, 1)
    assert await client.result(job.id) == File(data=data, media_type="application/octet-stream")
    assert done.payload
    assert (await client.read(done.payload["a"][0]["data"]["url"])).data == data


async def test_a_submission_whose_answer_was_lost_makes_one_job(service: RunningService, client: Client) -> None:
    tag = uuid.uuid4().hex
    async with losing_answers(service.url, losses=2) as (url, requests), Client(url) as unlucky:
        job = await unlucky.submit("echo", {}, options=JobOptions(tags=(tag,)))
    assert len(requests) == 3
    assert [found.id async for found in client.jobs(tag=tag)] == [job.id]


async def test_jobs_go_on_over_pages_and_end_at_the_limit(client: Client) -> None:
    tag = uuid.uuid4().hex
    made = await asyncio.gather(*(client.submit("echo", {}, options=JobOptions(tags=(tag,))) for _ in range(105)))
    everything = [job.id async for job in client.jobs(tag=tag)]
    assert everything == sorted((job.id for job in made), reverse=True)
    assert [job.id async for job in client.jobs(tag=tag, limit=102)] == everything[:102]


async def test_progress_is_seen_while_waiting(client: Client) -> None:
    seen: list[Job] = []
    job = await client.submit("sleep", {"seconds": 1.5})
    assert (await client.wait(job.id, seen.append)).status is JobStatus.SUCCESS
    fractions = [record.progress.fraction for record in seen if record.progress]
    assert any(0 < fraction < 1 for fraction in fractions)
    assert fractions == sorted(fractions)


async def test_a_job_without_result_says_why(client: Client) -> None:
    job = await client.submit("sleep", {"seconds": 60})
    with pytest.raises(NoResultError) as unfinished:
        await client.result(job.id)
    assert not unfinished.value.job.status.is_terminal
    await client.cancel(job.id)
    assert (await client.wait(job.id)).status is JobStatus.CANCELLED
    with pytest.raises(NoResultError) as cancelled:
        await client.result(job.id)
    assert cancelled.value.job.status is JobStatus.CANCELLED
    job = await client.submit("image_info", {"image": b"no picture", "mime_type": "image/png"})
    error = (await client.wait(job.id)).error
    with pytest.raises(NoResultError) as failed:
        await client.result(job.id)
    assert error
    assert f"is FAILED: it has no result ({error['type']}: {error['message']})" in str(failed.value)


async def test_a_job_that_ends_between_two_looks_has_its_result(service: RunningService, client: Client) -> None:
    job = await client.submit("sleep", {"seconds": 1})

    async def before(number: int) -> None:
        if number > 1:  # the first one asks for the result, which is not there
            await client.wait(job.id)

    async with holding(service.url, before) as url, Client(url) as late:
        assert "slept_s" in dict(cast("Mapping[str, Any]", await late.result(job.id)))


async def test_a_refusal_carries_status_problem_and_place(client: Client) -> None:
    with pytest.raises(ApiError, match="/seconds") as refused:
        await client.submit("sleep", {"seconds": "long"})
    assert refused.value.status == 422
    assert refused.value.problem["errors"][0]["pointer"] == "/payload/seconds"
    with pytest.raises(ApiError) as unknown:
        await client.get("no such/job?")
    assert unknown.value.status == 404


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
async def test_numbers_that_json_does_not_have_are_refused_by_place(client: Client, number: float) -> None:
    with pytest.raises(ValueError, match=r"^/payload/a~1b/1: numbers must be finite"):
        await client.submit("echo", {"a/b": [None, number]})
    with pytest.raises(ValueError, match=r"^/1/payload/n/0: numbers must be finite"):
        await client.submit_batch([NewJob(plugin="echo", payload={"n": n}) for n in (None, (number,))])
    with pytest.raises(ValueError, match=r"^/job.timeout_s: numbers must be finite"):
        await client.submit_file("echo", None, options=JobOptions(timeout_s=number))
    with pytest.raises(ValueError, match=r"^/payload/n: numbers must be finite"):
        await client.schedules.create(NewSchedule(name="never", plugin="echo", payload={"n": number}, every_s=60))


async def test_a_time_may_be_a_datetime_however_it_is_sent(client: Client) -> None:
    at = datetime(2100, 1, 31, 12, tzinfo=timezone(timedelta(hours=1)))
    options = JobOptions(run_at=cast("Any", at))
    jobs = [await client.submit("echo", {}, options=options), await client.submit_file("echo", None, options=options)]
    assert [job.document["run_at"] for job in jobs] == ["2100-01-31T11:00:00.000Z"] * 2
    assert [job async for job in client.jobs(created_after=cast("Any", at))] == []
    for job in jobs:
        await client.cancel(job.id)


async def test_an_empty_key_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="idempotency_key is empty"):
        await client.submit("echo", {}, idempotency_key="")


async def test_a_refusal_says_when_to_come_again(tmp_path: Path) -> None:
    with running_service(tmp_path, JOBSERVICE_MAX_QUEUED="0") as full:
        async with Client(full.url, patience_s=0) as client:
            with pytest.raises(ApiError) as refused:
                await client.submit("echo", {})
    assert refused.value.status == 429
    assert refused.value.retry_after_s
    assert refused.value.retry_after_s > 0


async def test_a_plugin_comes_with_its_schemas(client: Client) -> None:
    async with asyncio.timeout(60):
        while (plugin := await client.plugin("thumbnail")).state == "loading":
            await asyncio.sleep(0.05)
    assert plugin.input_schema
    assert "width" in plugin.input_schema["properties"]
    assert plugin.state == "available"


async def test_an_address_where_nothing_listens_is_told_soon() -> None:
    async with asyncio.timeout(5), Client("http://127.0.0.1:9") as client:
        with pytest.raises(ServiceUnreachableError, match="connection refused"):
            await client.plugins()


async def test_an_address_of_the_wrong_kind_is_told_as_what_it_is(service: RunningService) -> None:
    secure = service.url.replace("http://", "https://")
    for url, told in ((secure, r"no https that can be trusted \(\w+\)$"), ("http://no.invalid", "no host no.invalid$")):
        async with Client(url) as client:
            with pytest.raises(ServiceUnreachableError, match=told):
                await client.plugins()


async def test_what_is_of_the_wrong_type_is_told_with_the_right_one(client: Client) -> None:
    options: Any = {"priority": 5}
    with pytest.raises(TypeError, match=r"options are a JobOptions, as JobOptions\(priority=5\), not dict"):
        await client.submit("echo", {}, options=options)
    with pytest.raises(TypeError, match="options are a JobOptions"):
        await client.submit_batch([NewJob(plugin="echo", payload={}, options=options)])
    tags: Any = "urgent"
    with pytest.raises(TypeError, match=r"tags are a tuple of texts, as tags=\('urgent',\), not one text"):
        await client.submit("echo", {}, options=JobOptions(tags=tags))
    webhook: Any = {"url": "https://example.com/"}
    with pytest.raises(TypeError, match=r"webhook is a JobWebhook, as JobWebhook\(url=...\), not dict"):
        await client.submit_file("echo", None, options=JobOptions(webhook=webhook))
    job_id: Any = uuid.uuid4()
    with pytest.raises(TypeError, match="text, not UUID"):
        await client.get(job_id)
    with pytest.raises(TypeError, match="text, not UUID"):
        await anext(client.results([job_id]))


async def test_a_webhook_of_no_events_is_refused_and_not_taken_for_one_of_all(client: Client) -> None:
    webhook = JobWebhook(url="https://example.com/", events=())
    with pytest.raises(ApiError, match="/webhook/events"):
        await client.submit("echo", {}, options=JobOptions(webhook=webhook))


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", ""])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Client(url)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n...", "image/png"),
        ("a", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("a.bin", b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        ("a.svg", b"<svg/>", "image/svg+xml"),
        ("a.pdf", b"%PDF-1.7", "application/pdf"),
        ("a.txt.gz", b"\x1f\x8b\x08\x00", "application/gzip"),
        ("a.txt.bz2", b"BZh9", "application/octet-stream"),
        ("-", b"anything", "application/octet-stream"),
        ("", b"", "application/octet-stream"),
    ],
)
def test_a_media_type_comes_from_the_first_bytes_then_from_the_name(name: str, data: bytes, expected: str) -> None:
    assert media_type_of(name, data) == expected
