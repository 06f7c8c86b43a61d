"""What stands around every handler, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from service import logs
from service.api import connections
from service.api.middleware import guard
from service.app import Service
from service.metrics import Metrics
from service.settings import Settings


@contextlib.asynccontextmanager
async def serving(handler: Handler | None, host: str = "127.0.0.1") -> AsyncIterator[str]:
    app = web.Application(middlewares=[guard(Settings(_env_file=None, host=host), Metrics())])
    if handler:
        app.router.add_route("*", "/", handler)
    runner = connections.create_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.usefixtures("own_logs")
async def test_a_fault_of_ours_is_told_by_its_id_and_its_traceback_only_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("debug", "json")  # onto the captured stream

    async def broken(request: web.Request) -> web.Response:
        structlog.contextvars.bind_contextvars(job_id="job-7")
        raise RuntimeError("secret")

    async with serving(broken) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 500
        body = await answer.text()
    assert "secret" not in body
    assert "Traceback" not in body
    problem = json.loads(body)
    assert problem["type"] == "/problems/internal-error"
    text = ""
    while text.count("request_id") < 2:  # a thread writes them: the fault, and the request it ended
        await asyncio.sleep(0.01)
        text += capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if "request_id" in line]
    assert lines
    assert {line["request_id"] for line in lines} == {problem["request_id"]}
    assert {line["job_id"] for line in lines} == {"job-7"}
    assert any("RuntimeError: secret" in line.get("exception", "") for line in lines)


async def test_ids_of_one_request_do_not_reach_the_next_on_its_connection() -> None:
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(dict(structlog.contextvars.get_contextvars()))
        structlog.contextvars.bind_contextvars(job_id="mine")
        return web.Response()

    async with serving(note) as url, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(2):
            async with session.get(url) as answer:
                await answer.read()
    assert [set(ids) for ids in seen] == [{"request_id"}] * 2
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "example.org", 421),
        ("127.0.0.1", "192.0.2.7:8080", 421),
        ("127.0.0.1", "127.0.0.1.example.org", 421),
        ("127.0.0.1", "LOCALHOST:1", 200),
        ("192.0.2.7", "192.0.2.7:8080", 200),
        ("0.0.0.0", "192.0.2.7", 200),
        ("0.0.0.0", "[2001:db8::1]:8080", 200),
        ("0.0.0.0", "example.org", 421),
        ("::", "example.org:80", 421),
        ("::1", "[::1]:8080", 200),
    ],
)
async def test_only_hosts_no_foreign_page_can_claim_are_answered(bound: str, host: str, status: int) -> None:
    async def fine(request: web.Request) -> web.Response:
        return web.Response()

    headers = {"Host": host}
    async with (
        serving(fine, bound) as url,
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers) as answer,
    ):
        assert answer.status == status


async def test_half_sent_headers_end_with_the_keepalive_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_S", 0.2)
    async with serving(None) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nHost: loc")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_service_that_is_shutting_down_takes_no_jobs_and_says_so(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, port=0, workers=1)
    async with Service.open(settings) as service, aiohttp.ClientSession(service.url) as session:
        await service.plugins.manifest("echo")
        service.jobs.intake.accepting = False
        async with session.post("/v1/jobs", json={"plugin": "echo", "payload": {}}) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert (await answer.json(content_type="application/problem+json"))["type"] == "/problems/unavailable"
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json(content_type="application/problem+json"))["errors"]
        async with session.get("/livez") as answer:
            assert answer.status == 200


async def test_a_client_that_leaves_after_its_body_still_has_its_job(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, port=0, workers=1)
    body = b'{"plugin":"echo","payload":{}}'
    async with Service.open(settings) as service, aiohttp.ClientSession(service.url) as session:
        await service.plugins.manifest("echo")
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.transport.abort()
        async with asyncio.timeout(20):
            while True:
                async with session.get("/v1/jobs") as answer:
                    if (await answer.json())["items"]:
                        break


async def test_who_leaves_while_an_answer_is_held_back_is_waited_for_no_longer_and_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, port=0, workers=1)
    async with Service.open(settings) as service, aiohttp.ClientSession(service.url) as session:
        await service.plugins.manifest("echo")
        job = {"plugin": "echo", "payload": {}, "run_at": "2100-01-01T00:00:00Z"}
        async with session.post("/v1/jobs/batch", json=[job]) as answer:
            made = await answer.json()
        batch_id, job_id = made["batch_id"], made["items"][0]["id"]
        body = json.dumps(job).encode()
        heads = (
            b"GET /v1/jobs/%s?wait=60 HTTP/1.1\r\n" % job_id.encode(),
            b"GET /v1/batches/%s?wait=60 HTTP/1.1\r\n" % batch_id.encode(),
            b"POST /v1/jobs HTTP/1.1\r\nPrefer: wait=60\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            % len(body),
        )
        before = len(asyncio.all_tasks())
        writers = []
        for head in heads:
            _, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
            writer.write(head + b"Host: localhost\r\n\r\n" + (body if head.startswith(b"POST") else b""))
            writers.append(writer)
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 1000\r\n\r\n{")
        writers.append(writer)
        async with asyncio.timeout(20):
            while len(service.jobs._events._of_ends) < len(heads) - 1:  # the wait for the batch is one for its job
                await asyncio.sleep(0.01)
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > before or service.jobs._events._of_ends:
                await asyncio.sleep(0.01)
        async with session.get(f"/v1/jobs/{job_id}") as answer:
            assert answer.status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_lost_connection_that_is_not_the_clients_is_a_fault_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: web.Request) -> web.Response:
        raise ConnectionRefusedError("what the service asks is away")

    async with serving(broken) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 500
    assert "unexpected error" in caplog.text
