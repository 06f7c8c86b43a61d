"""Streams of events over a real socket, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from service import event_tail
from service.access import Role
from service.api import streams
from service.app import open_keys
from service.db import event_reads
from service.settings import Settings
from tests.conftest import sql
from tests.following.conftest import FAR, Client, Start
from tests.sse import Message, events, messages

PATIENCE_S = 30


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def ids(heard: list[Message]) -> list[int]:
    return [int(message.id or "0") for message in heard]


async def test_a_job_is_told_from_its_first_event_to_its_last(client: Client) -> None:
    job_id = await client.submit("sleep", {"seconds": 0.3})
    heard = await client.heard(f"/v1/jobs/{job_id}/events")
    assert ids(heard) == list(range(1, len(heard) + 1))
    assert [heard[n].type for n in (0, 1, -1)] == ["submitted", "started", "success"]
    assert {message.type for message in heard[2:-1]} == {"progress"}
    for message in heard:
        assert set(message.data) == {"job_id", "plugin", "n", "type", "at", "data"}
        assert message.data["job_id"] == job_id
        assert message.data["plugin"] == "sleep"
        assert str(message.data["n"]) == message.id
        assert message.data["type"] == message.type
    assert heard[2].data["data"]["message"]

    resumed = await client.heard(f"/v1/jobs/{job_id}/events", after=heard[-3].id)
    assert resumed == heard[-2:]
    assert await client.heard(f"/v1/jobs/{job_id}/events?last_event_id={heard[-2].id}") == heard[-1:]
    # A browser opens the same address again and says in the header where it is now.
    assert await client.heard(f"/v1/jobs/{job_id}/events?last_event_id=0", after=heard[-2].id) == heard[-1:]
    async with client.get(f"/v1/jobs/{job_id}/events", after=heard[-1].id) as answer:
        assert answer.status == 204
        assert await answer.read() == b""


async def test_what_cannot_be_followed_is_told_before_anything_is_sent(client: Client) -> None:
    job_id = await client.submit(**FAR)
    for path, after, status in (
        (f"/v1/jobs/{uuid7()}/events", None, 404),
        ("/v1/jobs/nonsense/events", None, 404),
        (f"/v1/jobs/{job_id}/events", "2", 400),
        (f"/v1/jobs/{job_id}/events", "-1", 400),
        (f"/v1/jobs/{job_id}/events", "1.5", 400),
        (f"/v1/jobs/{job_id}/events", "9999999999", 400),
        (f"/v1/jobs/{job_id}/events?last_event_id=x", None, 400),
        (f"/v1/jobs/{job_id}/events?plugin=x", None, 400),
        ("/v1/events", "12", 400),
        ("/v1/events", "1-2-3", 400),
        ("/v1/events", "0-100000000000000000", 400),
        ("/v1/events", "100000000000000000-1", 400),
        ("/v1/events?type=succes", None, 400),
        ("/v1/events?type=success,", None, 400),
        ("/v1/events?plugin=", None, 400),
    ):
        async with client.get(path, after) as answer:
            assert answer.status == status, (path, after)
            assert answer.content_type == "application/problem+json"


async def test_all_jobs_are_followed_from_now_on_from_the_beginning_and_from_any_event(client: Client) -> None:
    first = await client.submit()
    await client.ended(first)
    everything = await client.heard("/v1/events", after="0-0", count=3)
    assert [(m.data["job_id"], m.type) for m in everything] == [
        (first, kind) for kind in ("submitted", "started", "success")
    ]
    async with client.get("/v1/events") as answer:
        opened = await anext(messages(answer))
        assert opened.data is None
        assert opened.id  # whoever loses the connection before the first event misses nothing
        second = await client.submit()
        live = [message async for message, _ in zip_async(events(answer), range(3))]
    assert {m.data["job_id"] for m in live if m.data["n"] > 1} == {second}
    assert [m.type for m in live if m.data["job_id"] == second] == ["submitted", "started", "success"]
    again = await client.heard("/v1/events", after=everything[-1].id, count=3)
    assert again == live
    assert (await client.heard("/v1/events", after=opened.id, count=3))[-1] == live[-1]


async def zip_async(source: Any, numbers: Any) -> Any:
    for number in numbers:
        yield await anext(source), number


async def test_filters_choose_among_all_jobs(client: Client) -> None:
    jobs = {
        plugin: await client.submit(plugin, {"seconds": 0} if plugin == "sleep" else {}) for plugin in ("echo", "sleep")
    }
    for job_id in jobs.values():
        await client.ended(job_id)

    async def heard(query: str, count: int) -> set[tuple[str, str]]:
        found = await client.heard(f"/v1/events?last_event_id=0-0&{query}", count=count)
        return {(message.data["plugin"], message.type) for message in found}

    assert await heard("plugin=sleep&type=submitted,success", 2) == {("sleep", "submitted"), ("sleep", "success")}
    assert await heard("type=started", 2) == {("echo", "started"), ("sleep", "started")}


async def test_whoever_is_far_behind_reads_from_the_database_and_catches_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_tail, "_KEPT", 2)
    jobs = [await client.submit() for _ in range(5)]
    for job_id in jobs:
        await client.ended(job_id)
    heard = await client.heard("/v1/events", after="0-0", count=15)
    for job_id in jobs:
        assert [m.data["n"] for m in heard if m.data["job_id"] == job_id] == [1, 2, 3]
    resumed = await asyncio.gather(*(client.heard("/v1/events", after=m.id, count=1) for m in heard[:-1]))
    assert [messages[0] for messages in resumed] == heard[1:]


async def test_many_followers_of_all_jobs_share_their_reads(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    of_all = event_reads.of_all

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal reads
        reads += 1
        return await of_all(*arguments, **more)

    monkeypatch.setattr(event_reads, "of_all", counted)
    async with contextlib.AsyncExitStack() as stack:
        followers = [events(await stack.enter_async_context(client.get("/v1/events"))) for _ in range(50)]
        waiting = [asyncio.ensure_future(anext(follower)) for follower in followers]
        await until(lambda: client.service.metrics.registry.get_sample_value("jobservice_event_streams") == 50)
        await asyncio.sleep(2 * event_tail.GATHER_S)
        before = reads
        job_id = await client.submit()
        assert {message.data["job_id"] for message in await asyncio.gather(*waiting)} == {job_id}
        assert reads - before <= 5


async def test_what_nobody_announced_is_found(client: Client, database_url: str) -> None:
    """Events that come without any wake-up, as when a message between processes was lost."""
    job_id = await client.submit(**FAR)
    async with client.get(f"/v1/jobs/{job_id}/events", after="1") as one, client.get("/v1/events") as every:
        heard = [asyncio.ensure_future(_first_progress(answer)) for answer in (one, every)]
        await until(lambda: client.service.metrics.registry.get_sample_value("jobservice_event_streams") == 2)
        await asyncio.sleep(2 * event_tail.GATHER_S)
        await asyncio.to_thread(_add_event, database_url, job_id)
        async with asyncio.timeout(PATIENCE_S):
            assert {message.data["data"]["message"] for message in await asyncio.gather(*heard)} == {"unheard"}


async def _first_progress(answer: Any) -> Message:
    # An open transaction of anybody on the server may keep back what came before: it is new then.
    return await anext(message async for message in events(answer) if message.type == "progress")


def _add_event(database_url: str, job_id: str) -> None:
    is_sqlite = database_url.startswith("sqlite")
    tx = "NULL" if is_sqlite else "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)"
    data = json.dumps({"fraction": 0.5, "message": "unheard"})
    insert = (
        "INSERT INTO job_events (tx, job_id, n, type, at, data) VALUES "
        f"({tx}, '{job_id}', 2, 'progress', '2026-01-01T00:00:00.000Z', '{data}')"
    )
    change = f"UPDATE jobs SET event_count = 2 WHERE id = '{job_id}'"
    if is_sqlite:
        sql(database_url, change)
        sql(database_url, insert)
    else:
        sql(database_url, f"WITH changed AS ({change}) {insert}")


async def test_what_nobody_announced_is_found_whatever_else_is_watched(client: Client, database_url: str) -> None:
    """Others watch other names on the same bus; one of them once ended the loop, and with it the service."""
    job_id = await client.submit(**FAR)
    with client.service.jobs._events.watch("something else"):
        async with client.get(f"/v1/jobs/{job_id}/events", after="1") as answer:
            heard = asyncio.ensure_future(anext(events(answer)))
            await until(lambda: client.service.metrics.registry.get_sample_value("jobservice_event_streams") == 1)
            await asyncio.to_thread(_add_event, database_url, job_id)
            async with asyncio.timeout(PATIENCE_S):
                assert (await heard).data["data"]["message"] == "unheard"
    assert client.service.health.dead_loops == []


async def test_a_stream_ends_when_its_job_is_deleted(client: Client, database_url: str) -> None:
    job_id = await client.submit(**FAR)
    async with client.get(f"/v1/jobs/{job_id}/events") as answer:
        follower = events(answer)
        assert (await anext(follower)).type == "submitted"
        for table in ("job_events", "jobs"):
            column = "id" if table == "jobs" else "job_id"
            await asyncio.to_thread(sql, database_url, f"DELETE FROM {table} WHERE {column} = '{job_id}'")
        async with asyncio.timeout(PATIENCE_S):
            assert [message async for message in follower] == []


async def test_a_stream_ends_when_its_key_is_revoked(
    start: Start, database_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ADMIT_S", 0.2)
    monkeypatch.setattr("service.key_management.TRUST_S", 0.2)
    settings = Settings(_env_file=None, database_url=database_url, data_dir=tmp_path)
    async with open_keys(settings) as keys:
        key, secret = await keys.create("follower", roles=[Role.READ])
    headers = {"Authorization": f"Bearer {secret}"}
    async with start() as client, open_keys(settings) as keys:
        async with client.get("/v1/events", headers=headers) as answer:
            assert answer.status == 200
            follower = messages(answer)
            await anext(follower)
            await asyncio.sleep(0.5)
            assert not answer.content.at_eof()
            await keys.revoke(key.prefix)
            async with asyncio.timeout(PATIENCE_S):
                assert [message async for message in follower if message.data] == []
        async with client.get("/v1/events", headers=headers) as answer:
            assert answer.status == 401


async def test_streams_end_when_the_service_stops_and_none_begins(start: Start) -> None:
    async with start(drain_s=20) as client:
        job_id = await client.submit("sleep", {"seconds": 60})
        async with client.get(f"/v1/jobs/{job_id}/events") as one, client.get("/v1/events") as every:
            streams = [messages(answer) for answer in (one, every)]
            for stream in streams:
                await anext(stream)
            client.service.following.close()
            async with asyncio.timeout(PATIENCE_S):
                for stream in streams:
                    assert all([message.type != "success" async for message in stream])
        async with client.get(f"/v1/jobs/{job_id}/events") as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
        client.service.jobs.hurry()


async def test_streams_are_limited_for_each_caller_and_in_all(start: Start) -> None:
    async with start(max_streams=3, max_streams_per_caller=2) as client, contextlib.AsyncExitStack() as stack:
        job_id = await client.submit(**FAR)
        opened = [await stack.enter_async_context(client.get("/v1/events")) for _ in range(2)]
        assert [answer.status for answer in opened] == [200, 200]
        async with client.get(f"/v1/jobs/{job_id}/events") as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) > 0
            assert (await answer.json(content_type=None))["type"] == "/problems/too-many-streams"
        opened[0].close()

        async def is_let_in() -> bool:
            async with client.get(f"/v1/jobs/{job_id}/events") as answer:
                return bool(answer.status == 200)

        async with asyncio.timeout(streams.ADMIT_S / 2):  # at once, not when it next has something to send
            while not await is_let_in():
                await asyncio.sleep(0.02)


async def test_a_quiet_stream_shows_that_it_is_alive(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(streams, "ADMIT_S", 0.1)
    job_id = await client.submit(**FAR)
    for path in (f"/v1/jobs/{job_id}/events", "/v1/events"):
        async with client.get(path) as answer, asyncio.timeout(PATIENCE_S):
            comments = []
            async for message in messages(answer):
                comments += [message.comment] if message.comment else []
                if len(comments) == 2:
                    break
            assert comments == ["still here"] * 2


async def test_a_stream_ends_after_its_time_and_is_resumed(start: Start) -> None:
    async with start(stream_s=0.5) as client:
        job_id = await client.submit(**FAR)
        async with asyncio.timeout(PATIENCE_S):
            assert len(await client.heard(f"/v1/jobs/{job_id}/events")) == 1


async def test_a_client_that_takes_nothing_is_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WRITE_S", 0.5)
    job_id = await client.submit(**FAR)
    metrics = client.service.metrics.registry
    port = int(client.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    try:
        writer.write(b"GET /v1/events?last_event_id=0-0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: metrics.get_sample_value("jobservice_event_streams") == 1)
        while metrics.get_sample_value("jobservice_slow_clients_total", {"at": "stream"}) is None:
            await asyncio.gather(*(client.submit(tags=["x" * 90], **FAR) for _ in range(50)))
        await until(lambda: metrics.get_sample_value("jobservice_event_streams") == 0)
        # Others are not held up by it.
        async with client.get(f"/v1/jobs/{job_id}/events") as answer:
            assert (await anext(events(answer))).type == "submitted"
    finally:
        writer.close()
    assert reader


async def test_head_of_a_stream_is_not_answered(client: Client) -> None:
    async with client.session.head(f"{client.url}/v1/events") as answer:
        assert answer.status == 405
