"""One key, or one id of the client's choice, makes at most one job, whatever happens between two requests."""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from uuid_utils.compat import uuid7

from service.app import Service
from service.settings import Settings
from tests.api.conftest import Live, pointers, problem

JPEG = b"\xff\xd8\xff not quite a picture"


@contextlib.asynccontextmanager
async def serving(data_dir: Path, *plugins: str, **more: Any) -> AsyncIterator[aiohttp.ClientSession]:
    settings = Settings(_env_file=None, data_dir=data_dir, port=0, workers=1, **more)
    async with Service.open(settings, only_plugins=plugins) as service, aiohttp.ClientSession(service.url) as session:
        yield session


def form() -> aiohttp.FormData:
    data = aiohttp.FormData({"plugin": "echo", "count": "3"})
    data.add_field("file", JPEG, filename="a.jpg", content_type="image/jpeg")
    return data


#: Every way to submit a job under a key.
WAYS: dict[str, Callable[[], tuple[str, str, dict[str, Any]]]] = {
    "json": lambda: ("POST", "/v1/jobs", {"json": {"plugin": "echo", "payload": {"n": 1}, "tags": ["a"]}}),
    "json with bytes": lambda: (
        "POST",
        "/v1/jobs",
        {"json": {"plugin": "echo", "payload": {"file": {"$bytes": base64.b64encode(JPEG).decode()}}}},
    ),
    "form": lambda: ("POST", "/v1/jobs", {"data": form()}),
    "payload": lambda: ("POST", "/v1/plugins/echo/jobs?job.priority=1", {"json": {"n": 1}}),
    "bytes": lambda: (
        "POST",
        "/v1/plugins/echo/jobs?width=3",
        {"data": JPEG, "headers": {"Content-Type": "image/jpeg"}},
    ),
    "chosen id": lambda: (
        "PUT",
        "/v1/jobs/01890000-0000-7000-8000-000000000001",
        {"json": {"plugin": "echo", "payload": {}}},
    ),
    "batch": lambda: ("POST", "/v1/jobs/batch", {"json": [{"plugin": "echo", "payload": {"n": n}} for n in range(3)]}),
}


async def send(session: aiohttp.ClientSession, way: str) -> tuple[int, str | None, Any]:
    method, path, more = WAYS[way]()
    headers = {"Idempotency-Key": "k", **more.pop("headers", {})}
    async with session.request(method, path, headers=headers, **more) as answer:
        body = await answer.json(content_type=None)
        return answer.status, answer.headers.get("Idempotency-Replayed"), body


def ids(body: Any) -> list[str]:
    return [item["id"] for item in body["items"]] if "items" in body else [body["id"]]


@pytest.mark.parametrize("way", WAYS)
async def test_a_replay_is_answered_when_the_plugin_is_gone_or_the_queue_full(way: str, tmp_path: Path) -> None:
    async with serving(tmp_path, "echo") as session:
        status, replayed, first = await send(session, way)
        assert (status, replayed) == (202, None), first
        assert (await send(session, way))[:2] == (202, "true")
    async with serving(tmp_path, "sleep") as session:
        status, replayed, again = await send(session, way)
        assert (status, replayed, ids(again)) == (202, "true", ids(first))
    async with serving(tmp_path, "echo", max_queued=0) as session:
        status, replayed, again = await send(session, way)
        assert (status, replayed, ids(again)) == (202, "true", ids(first))
        async with session.post("/v1/jobs", json={"plugin": "echo", "payload": {}}) as answer:
            assert answer.status == 429


async def test_a_different_request_under_the_key_is_refused_whatever_else_is_wrong_with_it(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "k"}
    async with serving(tmp_path, "echo", "sleep") as session:
        assert (await send(session, "json"))[0] == 202
        for body in (
            {"plugin": "echo", "payload": {"n": 2}, "tags": ["a"]},
            {"plugin": "echo", "payload": {"n": 1}, "tags": ["b"]},
            {"plugin": "sleep", "payload": {"seconds": -1}},
            {"plugin": "never", "payload": {"n": 1}, "tags": ["a"]},
        ):
            async with session.post("/v1/jobs", json=body, headers=key) as answer:
                assert answer.status == 422
                assert (await answer.json(content_type=None))["type"] == "/problems/idempotency-key-reused"
        # Another order of keys is the same request.
        body = b'{"tags": ["a"], "payload": {"n": 1}, "plugin": "echo"}'
        async with session.post("/v1/jobs", data=body, headers=key | {"Content-Type": "application/json"}) as answer:
            assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (202, "true")


def test_an_id_of_the_clients_choice_is_its_key(live: Live) -> None:
    job_id, body = str(uuid7()), {"plugin": "echo", "payload": {"n": 1}, "tags": ["mine"]}
    path = f"/v1/jobs/{job_id}"
    before = live.rows()
    first = live.request("PUT", path, json=body)
    assert (first.status_code, first.json()["id"], first.headers["Location"]) == (202, job_id, path)
    assert live.ended(job_id)["result"] == {"n": 1}
    again = live.request("PUT", path.upper().replace("/V1/JOBS", "/v1/jobs"), json=body, headers={"Prefer": "wait=10"})
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert again.json()["id"] == job_id
    assert live.rows() == before + 1
    for other in ({**body, "priority": 1}, {"plugin": "never", "payload": {}}):
        assert problem(live.request("PUT", path, json=other), 422)["type"] == "/problems/job-id-reused"
    made = live.submit("echo", {"n": 1}, tags=["mine"])["id"]
    taken = live.request("PUT", f"/v1/jobs/{made}", json=body)
    assert problem(taken, 422)["type"] == "/problems/job-id-reused"
    assert live.rows() == before + 2


@pytest.mark.parametrize("job_id", ["x", "9b2f4a52-6a3e-4c8e-9d10-5b3f7f0c1a11", str(uuid.NAMESPACE_DNS), "0" * 36])
def test_an_id_that_is_no_uuid_of_version_7_cannot_be_chosen(live: Live, job_id: str) -> None:
    answer = live.request("PUT", f"/v1/jobs/{job_id}", json={"plugin": "echo", "payload": {}})
    assert pointers(problem(answer, 422)) == ["/job_id"]


async def test_batches_and_retries_count_towards_the_limits_of_the_queue(tmp_path: Path) -> None:
    job = {"plugin": "echo", "payload": {}}
    async with (
        serving(tmp_path, "echo", "sleep") as session,
        session.post("/v1/jobs", json=job, headers={"Prefer": "wait=60"}) as answer,
    ):
        ended = (await answer.json())["id"]
        assert answer.status == 200
    async with serving(tmp_path, "echo", "sleep", max_queued_per_plugin=2) as session:
        later = {**job, "run_at": "2999-01-01T00:00:00Z"}
        for items, status, rows in (
            ([later] * 3, 429, 0),  # more than may ever wait
            (
                [later, {**later, "plugin": "sleep", "payload": {"seconds": 1}}, {"plugin": "never", "payload": {}}],
                202,
                2,
            ),
            ([later] * 2, 429, 2),
            ([later], 202, 3),
        ):
            async with session.post("/v1/jobs/batch", json=items) as answer:
                assert answer.status == status, await answer.text()
                assert ("Retry-After" in answer.headers) is (status == 429 and len(items) <= 2)
            async with session.get("/v1/jobs?status=PENDING") as answer:
                assert len((await answer.json())["items"]) == rows
        for path, body in ((f"/v1/jobs/{ended}/retry", None), ("/v1/jobs/actions/retry", {"ids": [ended]})):
            async with session.post(path, json=body) as answer:
                assert (answer.status, "Retry-After" in answer.headers) == (429, True)
        async with session.get("/v1/jobs") as answer:
            assert len((await answer.json())["items"]) == 4
