"""What a record says beside its row: its version, and its place in the queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from service.db import queue_depth
from tests.conftest import sql
from tests.following.conftest import FAR, Client, Start
from tests.store.test_jobs import claim, insert
from tests.store.test_writer import new_job


async def test_a_record_that_is_known_already_is_not_sent_again(client: Client) -> None:
    job_id = await client.submit("echo", {"text": "x" * 1000})
    await client.ended(job_id)
    path = f"/v1/jobs/{job_id}"
    async with client.get(path) as answer:
        assert answer.status == 200
        etag = answer.headers["ETag"]
    assert etag.startswith("W/")
    for known in (etag, f'"other", {etag}', "*", f'W/"999", {etag}', etag.removeprefix("W/")):
        async with client.get(path, headers={"If-None-Match": known}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
            assert answer.headers["ETag"] == etag
    for known in ('W/"1"', etag.strip('W/"'), "nonsense", '"' * 3):
        async with client.get(path, headers={"If-None-Match": known}) as answer:
            assert answer.status == 200
            assert (await answer.json())["id"] == job_id


async def test_every_change_of_a_job_gives_its_record_another_version(client: Client) -> None:
    job_id = await client.submit("sleep", {"seconds": 0.5})
    versions, bodies = set(), set()
    while True:
        async with client.get(f"/v1/jobs/{job_id}") as answer:
            body = await answer.text()
            versions.add(answer.headers["ETag"])
            bodies.add((answer.headers["ETag"], body))
        if '"SUCCESS"' in body:
            break
    assert len(versions) > 3
    assert len(bodies) == len(versions)


async def test_a_wait_ends_when_the_job_is_not_as_the_client_knows_it(client: Client) -> None:
    job_id = await client.submit("sleep", {"seconds": 30})
    path = f"/v1/jobs/{job_id}?wait=20"
    known, started = 'W/"1"', time.monotonic()
    for _ in range(3):
        async with client.get(path, headers={"If-None-Match": known}) as answer:
            assert answer.status == 200
            assert (await answer.json())["status"] in ("PENDING", "RUNNING")
            assert answer.headers["ETag"] != known
            known = answer.headers["ETag"]
    assert time.monotonic() - started < 15

    scheduled = await client.submit(**FAR)
    async with client.get(f"/v1/jobs/{scheduled}") as answer:
        known = answer.headers["ETag"]
    async with client.get(f"/v1/jobs/{scheduled}?wait=0.3", headers={"If-None-Match": known}) as answer:
        assert answer.status == 304
    await client.session.post(f"{client.url}/v1/jobs/{job_id}/cancel")


async def test_whoever_knows_a_deleted_job_is_told_at_once_of_another_under_its_id(client: Client) -> None:
    path = f"/v1/jobs/{uuid7()}"

    async def call(method: str, path: str, **more: Any) -> str:
        async with client.session.request(method, client.url + path, **more) as answer:
            assert answer.ok, await answer.text()
            return answer.headers.get("ETag", "")

    job = {"plugin": "echo", "payload": {}, **FAR}
    await call("PUT", path, json=job)
    known = await call("GET", path)
    await call("POST", f"{path}/cancel")
    await call("DELETE", path)
    await call("PUT", path, json=job)
    async with asyncio.timeout(5):
        now = await call("GET", f"{path}?wait=30", headers={"If-None-Match": known})
    assert now != known
    assert now.partition(".")[0] == known.partition(".")[0]  # as many events


async def test_a_waiting_job_knows_its_place_and_about_when_it_starts(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.throughput.SAMPLE_S", 0.2)
    async with start(workers=1) as client:

        async def place(job_id: str) -> tuple[str, int | None, float | None]:
            async with client.get(f"/v1/jobs/{job_id}") as answer:
                record = await answer.json()
            return record["status"], record["queue_position"], record["eta_s"]

        running = await client.submit("sleep", {"seconds": 60})
        while (await place(running))[0] != "RUNNING":
            await asyncio.sleep(0.02)
        assert await place(running) == ("RUNNING", None, None)
        waiting = [await client.submit("sleep", {"seconds": 0.2}) for _ in range(3)]
        first = await client.submit("sleep", {"seconds": 0.2}, priority=10)
        scheduled = await client.submit(**FAR)
        assert [await place(job_id) for job_id in (first, *waiting)] == [("PENDING", n, None) for n in range(4)]
        assert await place(scheduled) == ("PENDING", None, None)

        many = [await client.submit("sleep", {"seconds": 0.2}) for _ in range(20)]
        await client.session.post(f"{client.url}/v1/jobs/{running}/cancel")
        async with asyncio.timeout(30):
            while (found := await place(many[-1]))[2] is None:
                await asyncio.sleep(0.05)
        _, ahead, eta_s = found
        assert ahead is not None
        assert eta_s is not None
        assert 0.1 < eta_s / (ahead + 1) < 10  # each takes at least 0.2 s, on one worker


async def test_nobody_says_when_a_job_starts_whose_plugin_is_held_back(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.throughput.SAMPLE_S", 0.05)

    async def place(client: Client, job_id: str) -> tuple[str, int | None, float | None]:
        async with client.get(f"/v1/jobs/{job_id}") as answer:
            record = await answer.json()
        return record["status"], record["queue_position"], record["eta_s"]

    async def control(client: Client, method: str, path: str, body: Any) -> None:
        async with client.session.request(method, f"{client.url}/v1/plugins/{path}", json=body) as answer:
            assert answer.ok, await answer.text()

    async def until_a_rate_is_known(client: Client) -> None:
        await client.ended(await client.submit("echo"))
        while client.service.following._throughput.seconds_for(1) is None:
            await asyncio.sleep(0.01)

    async with start() as client, asyncio.timeout(30):
        await control(client, "POST", "sleep/pause", {})
        await until_a_rate_is_known(client)
        job_id = await client.submit("sleep", {"seconds": 0})
        assert await place(client, job_id) == ("PENDING", 0, None)
        await control(client, "PUT", "sleep/limits", {"rate_per_s": 0.001})
        await control(client, "POST", "sleep/resume", None)
        await client.ended(job_id)
        job_id = await client.submit("sleep", {"seconds": 0})
        assert await place(client, job_id) == ("PENDING", 0, None)
    await asyncio.to_thread(sql, database_url, "DELETE FROM plugin_controls")
    async with start(plugins=["echo"]) as client, asyncio.timeout(30):
        await until_a_rate_is_known(client)
        assert await place(client, job_id) == ("PENDING", 0, None)


async def test_places_are_counted_by_an_index_and_to_an_end(database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_depth, "MOST_AHEAD", 2)
    ids = await insert(database, *(new_job() for _ in range(5)))
    places = [await queue_depth.count_ahead(database.reader, job_id) for job_id in ids]
    assert places == [0, 1, 2, None, None]
    await claim(database, limit=1)
    places = [await queue_depth.count_ahead(database.reader, job_id) for job_id in ids]
    assert places == [None, 0, 1, 2, None]


def test_a_place_is_found_without_reading_jobs(database_file) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(database_file)) as connection:
        statement = queue_depth._COUNT_AHEAD.sqlite
        values = statement.bind(job_id="j", most=10)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", values)]
    assert "SEARCH jobs USING INDEX ix_jobs_claimable (rank<?)" in plan, plan
