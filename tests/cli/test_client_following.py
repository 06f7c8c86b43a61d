"""`service.client` follows jobs: events through lost connections and restarts, and many jobs to their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import requests

from service.client import ApiError, Client, Event, Failure, Job
from service.models import JobOptions, JobStatus

from .conftest import COMMAND, RunningService, running_service
from .relays import cutting

pytestmark = pytest.mark.xdist_group("cli")

PATIENCE_S = 60.0


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[Client]:
    async with Client(service.url) as client:
        yield client


async def events_of(client: Client, job_id: str, after: int = 0) -> list[Event]:
    return [event async for event in client.stream(job_id, after=after)]


async def test_a_job_is_followed_from_its_first_event_to_its_last(client: Client) -> None:
    job = await client.submit("sleep", {"seconds": 0.5})
    events = await events_of(client, job.id)
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert [events[0].type, events[-1].type] == ["submitted", "success"]
    assert {event.job_id for event in events} == {job.id}
    assert any(event.type == "progress" and event.data["fraction"] for event in events)
    # All of it is there afterwards too, from any place on.
    assert await events_of(client, job.id) == events
    assert await events_of(client, job.id, after=2) == events[2:]
    assert await events_of(client, job.id, after=len(events)) == []


async def test_a_stream_that_is_cut_anywhere_goes_on_without_a_gap(service: RunningService, client: Client) -> None:
    job = await client.submit("sleep", {"seconds": 0.5})
    expected = await events_of(client, job.id)
    lives = [0, 5, 400, 401, 640, 700, 777, 850, 900]
    async with cutting(service.url, lives) as (url, requests), Client(url) as unlucky:
        await unlucky.get(job.id)  # an address that never answered is given up at once
        assert await events_of(unlucky, job.id) == expected
    assert len(requests) > len(lives) / 2


async def test_a_stream_waits_for_its_turn_as_every_call_does(tmp_path: Path) -> None:
    with running_service(tmp_path, JOBSERVICE_RATE_PER_S="1", JOBSERVICE_RATE_BURST="1") as service:
        heard: list[Failure | None] = []
        async with Client(service.url, on_trouble=heard.append) as client:
            job = await client.submit("echo", {})
            events = [event.type async for event in client.stream(job.id)]
    assert events == ["submitted", "started", "success"]
    first = heard[0]
    assert isinstance(first, ApiError)
    assert first.status == 429
    assert heard[-1] is None


async def test_events_of_an_unknown_job_are_refused(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        await events_of(client, str(uuid.uuid4()))
    assert refused.value.status == 404


async def test_all_jobs_are_followed_by_plugin_and_type_through_a_restart(own_service: RunningService) -> None:
    told: list[Failure | None] = []
    seen: list[Event] = []
    is_open = asyncio.Event()

    async def follow(client: Client, last: str) -> None:
        async with contextlib.aclosing(client.stream_all(plugin="echo", types=["success"], after="0-0")) as events:
            async for event in events:
                seen.append(event)
                is_open.set()
                if event.job_id == last:
                    return

    async with Client(own_service.url, patience_s=PATIENCE_S, on_trouble=told.append) as client:
        first = await client.submit("echo", {})
        await client.submit("sleep", {"seconds": 0})
        last = str((await client.submit("echo", {"n": 2}, options=JobOptions(run_at=None))).id)
        follower = asyncio.create_task(follow(client, "none"))
        await asyncio.wait_for(is_open.wait(), PATIENCE_S)
        await client.wait(last)
        own_service.process.kill()
        own_service.process.wait()
        with running_service(own_service.folder, port=int(own_service.url.rpartition(":")[2])):
            third = await client.submit("echo", {})
            async with asyncio.timeout(PATIENCE_S):
                while third.id not in {event.job_id for event in seen}:
                    await asyncio.sleep(0.02)
            follower.cancel()
    assert [event.job_id for event in seen] == [first.id, last, third.id]
    assert {(event.plugin, event.type) for event in seen} == {("echo", "success")}
    assert told[-1] is None
    assert told.count(None) >= 1


async def test_results_come_in_the_order_in_which_jobs_end(client: Client) -> None:
    ended = await client.submit("echo", {})
    await client.wait(ended.id)
    long = await client.submit("sleep", {"seconds": 2})
    failing = await client.submit("sleep", {"seconds": 9}, options=JobOptions(timeout_s=0.3))
    short = await client.submit("sleep", {"seconds": 0.1})
    stopped = await client.submit("sleep", {"seconds": 60}, options=JobOptions(priority=-100))
    asked = [stopped.id, long.id, failing.id, short.id, ended.id, ended.id]
    jobs: list[Job] = []
    async for job in client.results(asked):
        jobs.append(job)
        if job.id == long.id:
            await client.cancel(stopped.id)
    assert jobs[0].id == ended.id
    assert sorted(job.id for job in jobs) == sorted(set(asked))
    assert [job.finished_at for job in jobs] == sorted(str(job.finished_at) for job in jobs)
    assert {job.id: job.status for job in jobs}[failing.id] is JobStatus.FAILED


async def test_results_take_ids_however_they_are_written(client: Client) -> None:
    jobs = [await client.submit("echo", {"n": n}) for n in range(3)]
    upper, bare, usual = (job.id for job in jobs)
    asked = [upper.upper(), bare.replace("-", ""), usual, upper]
    assert sorted([job.id async for job in client.results(asked)]) == sorted(job.id for job in jobs)


async def test_results_of_an_unknown_job_are_refused(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        [job async for job in client.results([str(uuid.uuid4())])]
    assert refused.value.status == 404


async def test_a_job_that_is_deleted_stops_no_other_result(service: RunningService, client: Client) -> None:
    gone, short, long = [await client.submit("sleep", {"seconds": seconds}) for seconds in (0, 0.1, 0.5)]
    await client.wait(gone.id)
    await asyncio.to_thread(requests.delete, f"{service.url}/v1/jobs/{gone.id}", timeout=30)
    found: list[str] = []

    async def hear() -> None:
        async for job in client.results([gone.id, long.id, short.id]):
            found.append(job.id)

    with pytest.raises(ApiError) as unknown:
        await hear()
    assert found == [short.id, long.id]
    assert (unknown.value.status, str(unknown.value)) == (404, f"There is no job {gone.id}.")


async def test_results_come_also_where_no_stream_is_to_be_had(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("no_streams")
    with running_service(folder, JOBSERVICE_MAX_STREAMS="0") as service:
        async with Client(service.url) as client:
            jobs = [await client.submit("sleep", {"seconds": seconds}) for seconds in (0.8, 0.1)]
            found = [job async for job in client.results(job.id for job in jobs)]
    assert sorted(job.id for job in found) == sorted(job.id for job in jobs)


def test_watch_shows_a_job_to_its_end_and_exits_as_it_ended(service: RunningService) -> None:
    job_id = service.cli("submit", "--plugin", "sleep", "--field", "seconds=0.5").stdout.strip()
    watched = service.cli("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    lines = watched.stdout.splitlines()
    assert "submitted" in lines[0]
    assert any("progress  " in line and "%" in line for line in lines)
    assert "success" in lines[-1]
    events = [json.loads(line) for line in service.cli("watch", job_id, "--json").stdout.splitlines()]
    assert [event["n"] for event in events] == list(range(1, len(lines) + 1))
    behind = service.cli("watch", job_id, "--json", "--after", str(len(lines) - 1)).stdout.splitlines()
    assert [json.loads(line)["type"] for line in behind] == ["success"]
    failing = service.cli("submit", "--plugin", "sleep", "--field", "seconds=9", "--timeout-s", "0.3").stdout.strip()
    failed = service.cli("watch", failing)
    assert failed.returncode == 1
    assert "TimeLimitExceeded" in failed.stdout


def test_watch_alone_shows_all_jobs_as_it_happens(service: RunningService) -> None:
    command = [*COMMAND, "watch", "--plugin", "echo", "--type", "success", "--json", "--after", "0-0"]
    with subprocess.Popen(command, env=service.environment, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout
        try:
            job_id = service.cli("submit", "--plugin", "echo", "--payload", "{}").stdout.strip()
            for line in watcher.stdout:
                event = json.loads(line)
                assert (event["plugin"], event["type"]) == ("echo", "success")
                if event["job_id"] == job_id:
                    break
        finally:
            watcher.kill()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("01890000-0000-7000-8000-000000000000",), "01890000-0000-7000-8000-000000000000"),
        (("x", "--plugin", "echo"), "--plugin"),
        (("x", "--after", "first"), "--after"),
        (("--type", "exploded"), "--type"),
    ],
)
def test_what_cannot_be_watched_is_told(service: RunningService, arguments: tuple[str, ...], named: str) -> None:
    done = service.cli("watch", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
