from __future__ import annotations

import base64
import concurrent.futures
import json
import re
import time
import uuid

import pytest
import requests

from tests.api.conftest import Live, pointers, problem

RECORD = {
    "id", "plugin", "plugin_version", "status", "priority", "tags", "metadata", "attempt", "max_attempts", "progress",
    "batch_id", "parent_id", "schedule_id", "webhook_id", "payload", "result", "error", "created_at", "run_at",
    "expires_at", "started_at", "finished_at", "links", "queue_position", "eta_s",
}  # fmt: skip


def test_a_job_is_accepted_with_its_place_and_runs(live: Live) -> None:
    answer = live.post("/v1/jobs", json={"plugin": "echo", "payload": {"text": "hello"}, "tags": ["a"], "priority": 3})
    assert answer.status_code == 202
    record = answer.json()
    assert set(record) == RECORD
    assert answer.headers["Location"] == f"/v1/jobs/{record['id']}" == record["links"]["self"]
    ended = live.ended(record["id"])
    assert set(ended) == RECORD
    assert ended["status"] == "SUCCESS"
    assert ended["payload"] == ended["result"] == {"text": "hello"}
    assert ended["tags"] == ["a"]
    assert ended["priority"] == 3
    assert ended["error"] is None
    assert ended["attempt"] == 1


def test_a_picture_goes_in_by_all_three_ways(live: Live, png: bytes) -> None:
    answers = [
        live.post(
            "/v1/jobs",
            json={
                "plugin": "thumbnail",
                "payload": {
                    "image": {"$bytes": base64.b64encode(png).decode()},
                    "mime_type": "image/png",
                    "width": 64,
                },
            },
        ),
        live.post(
            "/v1/jobs",
            files={"image": ("../../page.png", png, "image/png")},
            data={"plugin": "thumbnail", "width": "64"},
        ),
        live.post("/v1/plugins/thumbnail/jobs?width=64", data=png, headers={"Content-Type": "image/png"}),
    ]
    results = []
    for answer in answers:
        assert answer.status_code == 202, answer.text
        job = live.ended(answer.json()["id"])
        assert job["status"] == "SUCCESS", job["error"]
        assert job["payload"]["width"] == 64
        assert job["payload"]["mime_type"] == "image/png"
        assert job["payload"]["image"]["size"] == len(png)
        assert live.get(job["payload"]["image"]["url"]).content == png
        results.append(live.get(job["links"]["result"]))
    first = results[0]
    assert first.headers["Content-Type"] == "image/jpeg"
    job_id = first.url.split("/")[-2]
    assert first.headers["Content-Disposition"] == f'attachment; filename="thumbnail-{job_id}.jpg"'
    assert first.content.startswith(b"\xff\xd8\xff")
    assert {answer.content for answer in results} == {first.content}


def test_bytes_stand_in_records_as_references_that_lead_to_them(live: Live, png: bytes) -> None:
    submitted = live.post("/v1/plugins/thumbnail/jobs", data=png, headers={"Content-Type": "image/png"}).json()
    job = live.ended(submitted["id"])
    reference = job["result"]["image"]
    assert set(reference) == {"sha256", "size", "media_type", "url"}
    assert reference["url"] == f"/v1/jobs/{job['id']}/result?pointer=/image"
    as_json = live.get(job["links"]["result"], headers={"Accept": "application/json"})
    assert as_json.json() == job["result"]
    raw = live.get(reference["url"])
    assert len(raw.content) == reference["size"]
    assert raw.headers["Content-Disposition"] == 'attachment; filename="image.jpg"'
    assert raw.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert live.get(job["links"]["payload"]).json() == job["payload"]
    nowhere = problem(live.get(job["links"]["payload"] + "?pointer=/nothing"), 404)
    assert nowhere["type"] == "/problems/unknown-file"
    problem(live.get(job["links"]["payload"] + "?pointer=nothing"), 400)


def test_lines_of_a_header_that_is_a_list_are_one_list(live: Live, png: bytes) -> None:
    host = f"Host: {live.netloc}\r\nConnection: close\r\n".encode()
    body = b'{"plugin": "echo", "payload": {}}'
    post = b"POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body) + host
    status, headers, _ = live.raw(post + b"Prefer: respond-async\r\nPrefer: wait=30\r\n\r\n" + body)
    assert (status, headers["preference-applied"]) == (200, "wait=30")
    path = headers["location"].encode()
    known = live.get(path.decode()).headers["ETag"].encode()
    status, _, _ = live.raw(
        b'GET %s HTTP/1.1\r\n%bIf-None-Match: "other"\r\nIf-None-Match: %b\r\n\r\n' % (path, host, known)
    )
    assert status == 304
    job = live.ended(
        live.post("/v1/plugins/thumbnail/jobs", data=png, headers={"Content-Type": "image/png"}).json()["id"]
    )
    result = job["links"]["result"].encode()
    accept = b"Accept: image/*;q=0.1\r\nAccept: application/json\r\n\r\n"
    _, headers, _ = live.raw(b"GET %s HTTP/1.1\r\n%b%b" % (result, host, accept))
    assert headers["content-type"].startswith("application/json")


def test_any_other_header_may_have_one_line(live: Live) -> None:
    before = live.rows()
    body = b'{"plugin": "echo", "payload": {}}'
    status, _, answer = live.raw(
        b"POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        + f"Host: {live.netloc}\r\n".encode()
        + b"Connection: close\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n"
        + body
    )
    assert (status, json.loads(answer)["errors"][0]["pointer"]) == (400, "/Idempotency-Key")
    assert live.rows() == before


def test_reserved_parts_of_a_form_hold_options_and_payload(live: Live) -> None:
    answer = live.post(
        "/v1/jobs",
        files={
            "plugin": (None, "echo"),
            "job": (None, '{"priority": 7, "tags": ["form"]}'),
            "payload": (None, '{"n": 1}'),
            "more": (None, "text"),
        },
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["priority"] == 7
    assert answer.json()["payload"] == {"n": 1, "more": "text"}


def test_the_body_of_a_plugins_call_is_the_payload(live: Live) -> None:
    answer = live.post("/v1/plugins/echo/jobs?job.priority=-4&job.tags=a&job.tags=b", json={"n": 1})
    assert answer.status_code == 202, answer.text
    assert answer.json()["payload"] == {"n": 1}
    assert answer.json()["priority"] == -4
    assert answer.json()["tags"] == ["a", "b"]


def test_a_plugins_call_without_body_takes_its_fields_from_the_query(live: Live) -> None:
    answer = live.post("/v1/plugins/sleep/jobs?seconds=0")
    assert answer.status_code == 202, answer.text
    assert live.ended(answer.json()["id"])["status"] == "SUCCESS"


def test_a_preferred_wait_answers_with_the_ended_job(live: Live) -> None:
    answer = live.post("/v1/jobs", json={"plugin": "echo", "payload": {}}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert answer.json()["status"] == "SUCCESS"
    assert answer.json()["result"] == {}
    slow = live.post("/v1/jobs", json={"plugin": "sleep", "payload": {"seconds": 30}}, headers={"Prefer": "wait=0"})
    assert slow.status_code == 202
    assert live.post(slow.json()["links"]["cancel"]).status_code in (200, 202)


def test_a_result_that_is_not_there_yet_is_202_and_then_409_when_cancelled(live: Live) -> None:
    job = live.submit("sleep", {"seconds": 60}, run_at="2100-01-01T00:00:00Z")
    pending = live.get(job["links"]["result"])
    assert pending.status_code == 202
    assert int(pending.headers["Retry-After"]) > 0
    cancelled = live.post(job["links"]["cancel"])
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "CANCELLED"
    assert live.post(job["links"]["cancel"]).status_code == 200
    assert problem(live.get(job["links"]["result"]), 409)["type"] == "/problems/job-cancelled"


def test_a_running_job_is_stopped(live: Live) -> None:
    job = live.submit("sleep", {"seconds": 60})
    deadline = time.monotonic() + 30
    while live.get(job["links"]["self"]).json()["status"] == "PENDING":
        assert time.monotonic() < deadline
    assert live.post(job["links"]["cancel"]).status_code in (200, 202)
    assert live.ended(job["id"])["status"] == "CANCELLED"


def test_a_failed_job_is_data_and_its_result_a_problem_with_the_error(live: Live) -> None:
    submitted = live.post("/v1/plugins/thumbnail/jobs", data=b"no picture", headers={"Content-Type": "image/png"})
    job = live.ended(submitted.json()["id"])
    assert job["status"] == "FAILED"
    assert set(job["error"]) == {"type", "message", "plugin", "details", "timestamp"}
    assert job["error"]["type"] == "ValidationError"
    failed = problem(live.get(job["links"]["result"]), 422)
    assert failed["error"] == job["error"]
    assert problem(live.post(job["links"]["cancel"]), 409)["type"] == "/problems/wrong-state"


def test_attempts_tell_what_was_measured_and_nothing_internal(live: Live) -> None:
    job = live.ended(live.submit("echo", {})["id"])
    (attempt,) = live.get(job["links"]["attempts"]).json()["items"]
    assert attempt["attempt"] == 1
    assert attempt["outcome"] == "SUCCESS"
    assert attempt["run_s"] >= 0
    assert not {"traceback", "output", "owner", "worker_pid"} & set(attempt)


def test_a_long_poll_ends_with_the_job(live: Live) -> None:
    job = live.submit("sleep", {"seconds": 0.3})
    assert live.get(job["links"]["self"] + "?wait=30").json()["status"] == "SUCCESS"
    later = live.submit("echo", {}, run_at="2100-01-01T00:00:00Z")
    assert live.get(later["links"]["self"] + "?wait=0.1").json()["status"] == "PENDING"
    live.post(later["links"]["cancel"])


def test_a_list_is_walked_by_its_links(live: Live) -> None:
    tag = f"walk-{uuid.uuid4()}"
    made = [live.submit("echo", {"n": n}, tags=[tag])["id"] for n in range(5)]
    found: list[str] = []
    path = f"/v1/jobs?tag={tag}&limit=2"
    while path:
        answer = live.get(path)
        assert len(answer.json()["items"]) <= 2
        found += [item["id"] for item in answer.json()["items"]]
        assert not {"payload", "result"} & set(answer.json()["items"][0])
        path = answer.links["next"]["url"] if answer.links else ""
        assert bool(path) is bool(answer.json()["next"])
    assert found == made[::-1]
    live.ended(made[-1])
    assert live.get(f"/v1/jobs?tag={tag}&status=FAILED").json() == {"items": [], "next": None}


def test_one_key_makes_one_job_however_often_it_is_posted_at_once(live: Live) -> None:
    key = str(uuid.uuid4())
    body = json.dumps({"plugin": "echo", "payload": {"key": key}})
    before = live.rows()

    def post(_: int) -> requests.Response:
        return live.post("/v1/jobs", data=body, headers={"Content-Type": "application/json", "Idempotency-Key": key})

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(post, range(32)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert live.rows() == before + 1
    other = live.post("/v1/jobs", json={"plugin": "echo", "payload": {}}, headers={"Idempotency-Key": key})
    assert problem(other, 422)["type"] == "/problems/idempotency-key-reused"
    assert live.rows() == before + 1


def test_plugins_tell_what_they_take(live: Live) -> None:
    items = {item["name"]: item for item in live.get("/v1/plugins").json()["items"]}
    assert {"echo", "sleep", "thumbnail"} <= set(items)
    plugin = live.get(items["thumbnail"]["links"]["self"]).json()
    assert plugin["state"] == "available"
    assert plugin["healthy"] is True
    assert plugin["input_schema"]["properties"]["image"]["contentEncoding"] == "base64"
    assert {"name", "version", "description", "distribution", "reason", "limits", "metrics"} <= set(plugin)


def test_the_process_tells_how_it_is(live: Live) -> None:
    assert live.get("/livez").json() == {"status": "ok"}
    assert live.get("/readyz").json() == {"status": "ready"}
    metrics = live.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain")
    assert re.search(r'jobservice_http_requests_total\{.*route="/livez".*\} [1-9]', metrics.text)


@pytest.mark.parametrize("path", ["/livez", "/v1/jobs", "/v1/plugins/echo"])
def test_head_is_get_without_a_body(live: Live, path: str) -> None:
    answer = live.request("HEAD", path)
    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize("suffix", ["", "/result", "/payload", "/attempts", "/artifacts/a"])
@pytest.mark.parametrize("job_id", ["019a0000-0000-7000-8000-000000000000", "x", "%00", "..%2f..", "é" * 50])
def test_an_unknown_job_is_404_whatever_its_id_looks_like(live: Live, job_id: str, suffix: str) -> None:
    assert problem(live.get(f"/v1/jobs/{job_id}{suffix}"), 404)["type"] == "/problems/unknown-job"


def test_an_unknown_file_of_a_known_job_is_404(live: Live) -> None:
    job = live.submit("echo", {})
    assert problem(live.get(job["links"]["self"] + "/artifacts/a.txt"), 404)["type"] == "/problems/unknown-file"


def test_an_unknown_plugin_is_404_in_the_path_and_422_in_the_body(live: Live) -> None:
    problem(live.get("/v1/plugins/nope"), 404)
    problem(live.post("/v1/plugins/nope/jobs", json={}), 404)
    problem(live.post("/v1/plugins/nope/jobs", data=b"x", headers={"Content-Type": "image/png"}), 404)
    assert pointers(problem(live.post("/v1/jobs", json={"plugin": "nope", "payload": {}}), 422)) == ["/plugin"]
    form = live.post("/v1/jobs", files={"plugin": (None, "nope"), "a": (None, "b")})
    assert pointers(problem(form, 422)) == ["/plugin"]
