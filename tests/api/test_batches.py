"""Many jobs in one request: an outcome for each, all that are acceptable in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from aiohttp import web
from yarl import URL

from service import job_batches
from service.api import connections
from service.app import Service
from service.db.database import Database
from service.events import EventBus
from service.job_batches import JobBatches
from service.models import JobStatus
from service.settings import Settings
from tests.api.conftest import Live, pointers, problem, serving
from tests.store.test_jobs import claim, end, insert
from tests.store.test_writer import new_job

GOOD = {"plugin": "echo", "payload": {"text": "hello"}}
NDJSON = {"Content-Type": "application/x-ndjson"}


def post(live: Live, items: Any, **headers: str) -> requests.Response:
    return live.post("/v1/jobs/batch", json=items, headers=headers)


def results(live: Live, batch_id: str) -> list[dict[str, Any]]:
    answer = live.get(f"/v1/batches/{batch_id}/results")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_every_item_has_an_outcome_and_only_the_acceptable_ones_a_row(live: Live) -> None:
    before = live.rows()
    answer = post(
        live,
        [
            GOOD,
            {"plugin": "echo"},
            {"plugin": "never", "payload": {}},
            {"plugin": "sleep", "payload": {"seconds": "long"}},
            {**GOOD, "payload": {"file": {"$bytes": "aGVsbG8="}}, "tags": ["t"], "priority": 7},
            7,
            {**GOOD, "colour": 1},
            {"plugin": "echo", "payload": {"$blob": 1}},
        ],
    )
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 6)
    assert answer.headers["Location"] == f"/v1/batches/{body['batch_id']}" == body["links"]["self"]
    assert [item["index"] for item in body["items"]] == list(range(8))
    assert [item["replayed"] for item in body["items"] if "id" in item] == [False, False]
    found = {item["index"]: item["problem"] for item in body["items"] if "problem" in item}
    assert {index: (one["type"].rpartition("/")[2], one["status"], pointers(one)) for index, one in found.items()} == {
        1: ("invalid-content", 422, ["/1/payload"]),
        2: ("unknown-plugin", 422, ["/2/plugin"]),
        3: ("invalid-payload", 422, ["/3/payload/seconds"]),
        5: ("invalid-content", 422, ["/5"]),
        6: ("invalid-content", 422, ["/6/colour"]),
        7: ("invalid-payload", 422, ["/7/payload"]),
    }
    assert live.rows() == before + 2
    state = live.get(f"/v1/batches/{body['batch_id']}?wait=30").json()
    assert state["total"] == 2
    assert state["counts"] == {"PENDING": 0, "RUNNING": 0, "SUCCESS": 2, "FAILED": 0, "CANCELLED": 0}
    assert state["finished_at"] >= state["created_at"]
    first, second = (item["id"] for item in body["items"] if "id" in item)
    lines = results(live, body["batch_id"])
    assert [line["id"] for line in lines] == [first, second]
    assert lines[0] == {"id": first, "plugin": "echo", "status": "SUCCESS", "result": {"text": "hello"}, "error": None}
    assert live.get(lines[1]["result"]["file"]["url"]).content == b"hello"
    record = live.ended(second)
    assert (record["batch_id"], record["tags"], record["priority"]) == (body["batch_id"], ["t"], 7)


def test_the_same_as_lines(live: Live) -> None:
    text = "\n".join(
        [json.dumps(GOOD), "", json.dumps({"plugin": "never", "payload": {}}), json.dumps(GOOD) + "\r", ""]
    )
    answer = live.post("/v1/jobs/batch", data=text, headers=NDJSON)
    assert answer.status_code == 202, answer.text
    assert ["id" in item for item in answer.json()["items"]] == [True, False, True]
    before = live.rows()
    for second, why in ((b"{", "(line 3, column 2)"), (b'{"a": "\xff"}', "(line 3, byte 7)")):
        broken = live.post("/v1/jobs/batch", data=json.dumps(GOOD).encode() + b"\n\n" + second + b"\n", headers=NDJSON)
        (place,) = problem(broken, 400)["errors"]
        assert place["pointer"] == "/1"
        assert place["message"].endswith(why)
    twice = live.post("/v1/jobs/batch", data='{"plugin": "a", "payload": {"b": 1, "b": 2}}', headers=NDJSON)
    assert pointers(problem(twice, 400)) == ["/0/payload/b"]
    assert live.rows() == before


def test_what_is_no_batch_is_refused(live: Live) -> None:
    before = live.rows()
    for items in ([], {}, [GOOD] * 5_001):
        assert pointers(problem(post(live, items), 422)) == [""]
    many = "\n".join(['{"plugin":"echo","payload":{}}'] * 5_002)
    assert pointers(problem(live.post("/v1/jobs/batch", data=many, headers=NDJSON), 422)) == [""]
    values = [{"plugin": "echo", "payload": {"n": [0] * 50_000}}] * 6
    assert problem(post(live, values), 400)["type"] == "/problems/malformed-json"
    lines = "\n".join(map(json.dumps, values))
    assert problem(live.post("/v1/jobs/batch", data=lines, headers=NDJSON), 400)["type"] == "/problems/malformed-json"
    refused = problem(post(live, [{"plugin": "never", "payload": {}}, 1]), 422)
    assert refused["type"] == "/problems/batch-refused"
    assert [item["problem"]["status"] for item in refused["items"]] == [422, 422]
    assert live.rows() == before


def test_a_keyed_batch_makes_its_jobs_once(live: Live) -> None:
    key, before = str(uuid.uuid4()), live.rows()
    items = [{**GOOD, "payload": {"n": n}} for n in range(3)]
    first = post(live, items, **{"Idempotency-Key": key})
    again = post(live, items, **{"Idempotency-Key": key})
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["batch_id"] == first.json()["batch_id"]
    assert [item["id"] for item in again.json()["items"]] == [item["id"] for item in first.json()["items"]]
    assert all(item["replayed"] for item in again.json()["items"])
    changed = post(live, [items[0], items[2], {"plugin": "never", "payload": {}}], **{"Idempotency-Key": key})
    assert changed.status_code == 202
    assert [item.get("problem", {}).get("type") for item in changed.json()["items"]] == [
        None,
        "/problems/idempotency-key-reused",
        "/problems/idempotency-key-reused",
    ]
    # One item by itself has the key that it had in the batch.
    alone = live.post("/v1/jobs", json=items[1], headers={"Idempotency-Key": f"{key}#1"})
    assert alone.headers["Idempotency-Replayed"] == "true"
    assert live.rows() == before + 3


def test_keys_of_items_count_within_and_across_batches(live: Live) -> None:
    key, before = str(uuid.uuid4()), live.rows()
    items = [{**GOOD, "idempotency_key": key}, GOOD, {**GOOD, "idempotency_key": key}]
    first = post(live, items).json()
    assert [item["replayed"] for item in first["items"]] == [False, False, True]
    assert first["items"][0]["id"] == first["items"][2]["id"]
    again = post(live, [{**GOOD, "idempotency_key": key}, {**GOOD, "idempotency_key": key, "priority": 1}]).json()
    assert again["items"][0] == {"index": 0, "id": first["items"][0]["id"], "replayed": True}
    assert again["items"][1]["problem"]["type"] == "/problems/idempotency-key-reused"
    assert again["batch_id"] == first["batch_id"]
    assert live.rows() == before + 2


@pytest.mark.parametrize("path", ["", "/results"])
@pytest.mark.parametrize("batch_id", ["x", "0" * 40, "01890000-0000-7000-8000-000000000000"])
def test_a_batch_that_never_was_is_not_found(live: Live, path: str, batch_id: str) -> None:
    assert problem(live.get(f"/v1/batches/{batch_id}{path}"), 404)["type"] == "/problems/unknown-batch"


LATE = """
import pathlib
import time

while not pathlib.Path({gate!r}).exists():  # as long as the test wants it to load
    time.sleep(0.01)


def late(n: int) -> dict[str, int]:
    return {{"n": n}}
"""


def test_a_batch_whose_plugin_is_still_loading_is_asked_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, metadata = tmp_path / "gate", tmp_path / "site/late-1.0.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "site/late.py").write_text(LATE.format(gate=str(gate)))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[service.plugins]\nlate = late:late\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("service.plugin_management.LOADING_PATIENCE_S", 0.1)
    late, good = {"plugin": "late", "payload": {"n": 1}}, {"plugin": "echo", "payload": {}}
    wrong = {"plugin": "never", "payload": {}}
    with serving(tmp_path / "data", only_plugins={"echo", "late"}) as live:
        try:
            while live.get("/v1/plugins/echo").json()["state"] == "loading":  # it is there before the late one
                time.sleep(0.02)
            none = [post(live, items) for items in ([late], [wrong, late, late])]
            some = post(live, [good, late], **{"Idempotency-Key": "k"})
        finally:
            gate.touch()
        monkeypatch.setattr("service.plugin_management.LOADING_PATIENCE_S", 60)
        rest = post(live, [good, late], **{"Idempotency-Key": "k"})
    for refused in none:
        assert problem(refused, 503)["type"] == "/problems/plugin-unavailable"
        assert int(refused.headers["Retry-After"]) > 0
    # What can be taken is taken: the others come with the same key again.
    assert (some.status_code, some.json()["items"][1]["problem"]["status"]) == (202, 503)
    assert [item["replayed"] for item in rest.json()["items"]] == [True, False]


async def test_results_go_out_in_pages_as_fast_as_the_client_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, port=0, workers=2)
    payloads = [{"n": n, "text": "x" * 20_000} for n in range(450)]
    async with (
        Service.open(settings, only_plugins={"echo"}) as service,
        aiohttp.ClientSession(service.url, read_bufsize=2**20) as session,
    ):
        lines = "\n".join(json.dumps({"plugin": "echo", "payload": payload}) for payload in payloads)
        async with session.post("/v1/jobs/batch", data=io.BytesIO(lines.encode()), headers=NDJSON) as answer:
            assert answer.status == 202, await answer.text()
            batch = await answer.json()
        counts: dict[str, int] = {}
        async with asyncio.timeout(100):
            while counts.get("SUCCESS") != len(payloads):
                async with session.get(f"{batch['links']['self']}?wait=60") as answer:
                    counts = (await answer.json())["counts"]
        async with session.get(batch["links"]["results"]) as answer:
            found = [json.loads(line) for line in (await answer.text()).splitlines()]
        assert [line["result"] for line in found] == payloads
        assert [line["id"] for line in found] == [item["id"] for item in batch["items"]]
        async with session.head(batch["links"]["results"]) as answer:
            assert (answer.status, await answer.read()) == (200, b"")

        # A client that takes nothing is given up: it gets what was on its way, and never the end.
        given_up = asyncio.Event()
        abort = connections._abort

        def noticed(request: web.Request) -> None:
            abort(request)
            given_up.set()

        monkeypatch.setattr(connections, "PIECE_S", 0.5)
        monkeypatch.setattr(connections, "_abort", noticed)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", URL(service.url or "").port))
            request = f"GET {batch['links']['results']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await loop.sock_sendall(slow, request.encode())
            received = b""
            async with asyncio.timeout(60):
                await given_up.wait()
                with contextlib.suppress(ConnectionError):
                    while data := await loop.sock_recv(slow, 65_536):
                        received += data
        assert received.startswith(b"HTTP/1.1 200")
        assert len(received) < sum(map(len, map(json.dumps, payloads)))
        assert not received.endswith(b"0\r\n\r\n")
        async with session.get("/metrics") as answer:
            assert 'jobservice_slow_clients_total{at="answer"} 1.0' in await answer.text()


async def test_who_waits_for_a_batch_misses_no_end_between_the_read_and_the_watch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_batches, "_LOOK_AGAIN_S", 60)
    events = EventBus()
    new = new_job()
    new.batch_id = str(uuid.uuid4())
    await insert(database, new)
    (job,) = await claim(database)
    read = job_batches.job_batches.newest_active

    async def read_just_before_its_end(*place: Any) -> str | None:
        newest = await read(*place)
        if newest is not None:
            await end(database, job)
            events.job_changed(job.id)
        return newest

    monkeypatch.setattr(job_batches.job_batches, "newest_active", read_just_before_its_end)
    async with asyncio.timeout(30):
        state = await JobBatches(database, events).wait_for(new.batch_id, 60)
    assert state.counts[JobStatus.SUCCESS] == 1
