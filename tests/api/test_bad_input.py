"""What a client may get wrong: each has its 4xx, names the place, and leaves no row behind."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from typing import Any

import pytest

from tests.api.conftest import MAX_BODY_MB, Live, pointers, problem

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PNG = {"Content-Type": "image/png"}
TOO_MUCH = b"x" * (int(MAX_BODY_MB * 1_000_000) + 1)
PICTURE = base64.b64encode(b"picture").decode()


def job(plugin: Any = "echo", payload: Any = None, **options: Any) -> bytes:
    return json.dumps({"plugin": plugin, "payload": {} if payload is None else payload, **options}).encode()


def form(**parts: bytes) -> bytes:
    sections = (
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts.items()
    )
    return b"".join(sections) + b"--x--\r\n"


BAD = {
    "no body": (JSON, b"", 400, [""]),
    "malformed JSON": (JSON, b'{"plugin": "echo", ', 400, [""]),
    "NaN": (JSON, b'{"plugin": "echo", "payload": {"a": [0, NaN]}}', 400, ["/payload/a/1"]),
    "an infinity by overflow": (JSON, b'{"plugin": "echo", "payload": {"a": 1e999}}', 400, ["/payload/a"]),
    "a key twice": (JSON, b'{"plugin": "echo", "payload": {"a": 1, "a": 2}}', 400, ["/payload/a"]),
    "100,000 levels": (JSON, b'{"plugin": "echo", "payload": ' + b'{"a":' * 100_000, 400, [""]),
    "65 levels": (JSON, job(payload={"a": json.loads("[" * 64 + "]" * 64)}), 400, ["/payload/a" + "/0" * 62]),
    "an integer of 65 bits": (JSON, job(payload={"a": 2**63}), 400, ["/payload/a"]),
    "an integer of 5,000 digits": (JSON, b'{"plugin": "echo", "payload": {"a": ' + b"9" * 5_000 + b"}}", 400, None),
    "a lone surrogate": (JSON, b'{"plugin": "echo", "payload": {"a": "\\ud800"}}', 400, ["/payload/a"]),
    "a byte order mark": (JSON, b"\xef\xbb\xbf" + job(), 400, [""]),
    "UTF-16": (JSON, job().decode().encode("utf-16"), 400, [""]),
    "an announced foreign charset": ({"Content-Type": "application/json; charset=utf-16"}, job(), 415, []),
    "U+0000": (JSON, job(payload={"a": "\0"}), 422, ["/payload/a"]),
    "a reserved key": (JSON, job(payload={"a": {"$blob": {}}}), 422, ["/payload/a"]),
    "an array for a body": (JSON, b"[]", 422, [""]),
    "a wrong type": (JSON, job(plugin=5), 422, ["/plugin"]),
    "an array for a payload": (JSON, job(payload=[1]), 422, ["/payload"]),
    "no plugin": (JSON, b'{"payload": {}}', 422, ["/plugin"]),
    "no payload": (JSON, b'{"plugin": "echo"}', 422, ["/payload"]),
    "an unknown field": (JSON, job(surprise=1), 422, ["/surprise"]),
    "an unknown plugin": (JSON, job(plugin="nope"), 422, ["/plugin"]),
    "too high a priority": (JSON, job(priority=101), 422, ["/priority"]),
    "too many tags": (JSON, job(tags=["a"] * 21), 422, ["/tags"]),
    "too long a tag": (JSON, job(tags=["a" * 101]), 422, ["/tags/0"]),
    "too much metadata": (JSON, job(metadata={"a": "x" * 16_384}), 422, ["/metadata"]),
    "a time without an offset": (JSON, job(run_at="2026-01-01T00:00:00"), 422, ["/run_at"]),
    "a payload field of a wrong type": (JSON, job("sleep", {"seconds": "long"}), 422, ["/payload/seconds"]),
    "an unknown payload field": (JSON, job("sleep", {"minutes": 1}), 422, ["/payload/minutes"]),
    "no image": (JSON, job("thumbnail", {"mime_type": "image/png"}), 422, ["/payload/image"]),
    "invalid base64": (
        JSON, job("thumbnail", {"image": "!", "mime_type": "image/png"}), 422, ["/payload/image"],
    ),
    "invalid marked base64": (
        JSON, job("echo", {"image": {"$bytes": "a"}, "mime_type": "image/png"}), 422, ["/payload/image"],
    ),
    "an empty image": (JSON, job("thumbnail", {"image": "", "mime_type": "image/png"}), 422, ["/payload/image"]),
    "an image without mime_type": (JSON, job("thumbnail", {"image": PICTURE}), 422, ["/payload/mime_type"]),
    "an image without mime_type, untyped": (JSON, job("echo", {"image": PICTURE}), 422, ["/payload/mime_type"]),
    "an empty mime_type": (
        JSON, job("thumbnail", {"image": PICTURE, "mime_type": ""}), 422, ["/payload/mime_type"],
    ),
    "a body of another kind": ({"Content-Type": "text/plain"}, job(), 415, []),
    "a body of curl's default kind": ({"Content-Type": "application/x-www-form-urlencoded"}, job(), 415, []),
    "a body of no kind": ({}, job(), 415, []),
    "a compressed body": ({**JSON, "Content-Encoding": "gzip"}, gzip.compress(job()), 415, []),
    "a body too large": (JSON, TOO_MUCH, 413, []),
    "a form too large": (FORM, form(plugin=b"echo", a=TOO_MUCH), 413, []),
    "too many parts": (FORM, form(plugin=b"echo", **{f"f{n}": b"" for n in range(64)}), 413, []),
    "a form without boundary": ({"Content-Type": "multipart/form-data"}, form(plugin=b"echo"), 400, []),
    "a truncated form": (FORM, form(plugin=b"echo", image=b"abc")[:-9], 400, []),
    "a form without plugin": (FORM, form(a=b"b"), 422, ["/plugin"]),
    "a form with an unknown plugin": (FORM, form(plugin=b"nope"), 422, ["/plugin"]),
    "a form with malformed options": (FORM, form(plugin=b"echo", job=b"{"), 400, ["/job"]),
    "a form with unfit options": (FORM, form(plugin=b"echo", job=b'{"priority": 101}'), 422, ["/job/priority"]),
    "a form with an unfit payload": (FORM, form(plugin=b"echo", payload=b"[]"), 422, ["/payload"]),
    "a form with a key twice": (FORM, form(plugin=b"echo", payload=b'{"a":1,"a":1}'), 400, ["/payload/a"]),
    "a form with a payload that its plugin refuses": (
        FORM, form(plugin=b"sleep", payload=b'{"seconds": -1}'), 422, ["/payload/seconds"],
    ),
    "a form with a field that its plugin refuses": (FORM, form(plugin=b"sleep", seconds=b"-1"), 422, ["/seconds"]),
    "a form with a reserved key": (
        FORM, form(plugin=b"echo", payload=b'{"a/b": {"$blob": {}}}', c=b"1"), 422, ["/payload/a~1b"],
    ),
    "a form with a field twice": (FORM, form(plugin=b"echo", payload=b'{"a": 1}', a=b"1"), 422, ["/a"]),
    "a form with a part twice": (FORM, form(**{"a/b": b""})[:-7] + form(**{"a/b": b""}), 400, ["/a~1b"]),
    "a form with text that is none": (FORM, form(plugin=b"echo", a=b"\xff"), 400, ["/a"]),
    "a form with an unfit field": (FORM, form(plugin=b"sleep", seconds=b"long"), 422, ["/seconds"]),
    "an empty key": ({**JSON, "Idempotency-Key": ""}, job(), 400, ["/Idempotency-Key"]),
    "too long a key": ({**JSON, "Idempotency-Key": "k" * 256}, job(), 400, ["/Idempotency-Key"]),
    "a key with a space": ({**JSON, "Idempotency-Key": "a b"}, job(), 400, ["/Idempotency-Key"]),
    "a foreign origin": ({**JSON, "Origin": "http://evil.example"}, job(), 403, []),
    "an opaque origin": ({**JSON, "Origin": "null"}, job(), 403, []),
    "an origin that is none": ({**JSON, "Origin": "http://[x"}, job(), 403, []),
    "a foreign host": ({**JSON, "Host": "evil.example"}, job(), 421, []),
    "a host that only begins like ours": ({**JSON, "Host": "localhost.evil.example:80"}, job(), 421, []),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_submission_is_refused_by_place_without_a_row(live: Live, name: str) -> None:
    headers, body, status, places = BAD[name]
    before = live.rows()
    answer = problem(live.post("/v1/jobs", data=body, headers=headers), status)
    if places is not None:
        assert pointers(answer) == places
    assert live.rows() == before


BAD_PLUGIN_CALLS = {
    "malformed JSON": ("thumbnail", JSON, b"{", 400, [""]),
    "an array": ("echo", JSON, b"[]", 422, [""]),
    "a field in the query beside JSON": ("echo?a=1", JSON, b"{}", 400, ["/a"]),
    "an unfit option": ("echo?job.priority=high", JSON, b"{}", 400, ["/job.priority"]),
    "an option out of range": ("echo?job.priority=101", JSON, b"{}", 422, ["/job.priority"]),
    "an unknown option": ("echo?job.a/b=1", JSON, b"{}", 422, ["/job.a~1b"]),
    "metadata that is no object": ("echo?job.metadata=[]", JSON, b"{}", 422, ["/job.metadata"]),
    "a query parameter twice": ("thumbnail?width=1&width=2", PNG, b"x", 400, ["/width"]),
    "an unfit field": ("thumbnail?width=wide", PNG, b"x", 422, ["/width"]),
    "an unknown field": ("thumbnail?depth=1", PNG, b"x", 422, ["/depth"]),
    "an empty image": ("thumbnail", PNG, b"", 422, ["/image"]),
    "nothing at all": ("thumbnail", {}, b"", 422, ["/image", "/mime_type"]),
    "bytes of no kind": ("thumbnail", {}, b"x", 422, ["/mime_type"]),
    "curl's default kind": (
        "thumbnail", {"Content-Type": "application/x-www-form-urlencoded"}, b"x", 415, [],
    ),
    "too large a body": ("thumbnail", PNG, TOO_MUCH, 413, []),
    "an unknown plugin": ("nope", PNG, b"x", 404, []),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PLUGIN_CALLS)
def test_a_bad_call_of_a_plugin_is_refused_by_place_without_a_row(live: Live, name: str) -> None:
    path, headers, body, status, places = BAD_PLUGIN_CALLS[name]
    before = live.rows()
    plugin, _, query = path.partition("?")
    answer = problem(live.post(f"/v1/plugins/{plugin}/jobs?{query}", data=body, headers=headers), status)
    assert pointers(answer) == places
    assert live.rows() == before


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "unknown-route"),
        ("GET", "/v2/jobs", 404, "unknown-route"),
        ("GET", "/v1/jobs/", 404, "unknown-route"),
        ("PUT", "/v1/jobs", 405, "wrong-method"),
        ("OPTIONS", "/v1/jobs", 405, "wrong-method"),
        ("PROPFIND", "/v1/jobs", 405, "wrong-method"),
        ("DELETE", "/livez", 405, "wrong-method"),
        ("GET", "/v1/jobs?state=RUNNING", 400, "malformed-request"),
        ("GET", "/v1/jobs?status=running", 400, "malformed-request"),
        ("GET", "/v1/jobs?limit=0", 400, "malformed-request"),
        ("GET", "/v1/jobs?limit=1&limit=2", 400, "malformed-request"),
        ("GET", "/v1/jobs?cursor=%00", 400, "malformed-request"),
        ("GET", "/v1/jobs?plugin=%ff", 200, None),
        ("GET", "/livez?x=1", 400, "malformed-request"),
        ("POST", "/v1/jobs?x=1", 400, "malformed-request"),
    ],
)
def test_a_wrong_call_is_a_problem_too(live: Live, method: str, path: str, status: int, kind: str | None) -> None:
    answer = live.request(method, path, headers=JSON)
    if kind is None:
        assert answer.status_code == status
        return
    assert problem(answer, status)["type"] == f"/problems/{kind}"
    if status == 405:
        assert "GET" in answer.headers["Allow"]


TOO_LONG = "The address of the request, or one of its headers, is too long: each may have 8190 bytes."


@pytest.mark.parametrize(
    ("path", "pointer", "message"),
    [
        ("/v1/jobs/0?wait=nan", "/wait", "must be a finite number"),
        ("/v1/batches/0?wait=nan", "/wait", "must be a finite number"),
        (
            "/v1/reports/jobs?from=2026-02-01T00:00:00Z&until=2026-01-01T00:00:00Z",
            "/from",
            "must not be later than until",
        ),
        (
            "/v1/reports/hourly?from=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00%2B01:00",
            "/from",
            "must not be later than until",
        ),
    ],
)
def test_a_parameter_that_can_mean_nothing_is_refused(live: Live, path: str, pointer: str, message: str) -> None:
    (place,) = problem(live.get(path), 400)["errors"]
    assert (place["pointer"], place["message"]) == (pointer, message)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("job.priority=x", [("/job.priority", "must be an integer")]),
        ("job.timeout_s=NaN", [("/job.timeout_s", "must be a number")]),
        ("job.max_attempts=", [("/job.max_attempts", "must be an integer")]),
        ("job.metadata=x", [("/job.metadata", "must be a JSON object")]),
        (
            'job.metadata={"a"}',
            [("/job.metadata", "must be a JSON object: Expecting ':' delimiter (line 1, column 5)")],
        ),
        ('job.metadata={"a":1,"a":1}', [("/job.metadata", "must be a JSON object: /a: the key is given twice")]),
    ],
)
def test_an_option_in_a_query_is_told_what_it_must_be(live: Live, query: str, told: list[tuple[str, str]]) -> None:
    answer = problem(live.post(f"/v1/plugins/echo/jobs?{query}", json={}), 400)
    assert [(place["pointer"], place["message"]) for place in answer["errors"]] == told


def test_a_job_that_could_never_start_is_refused_by_every_way_in(live: Live) -> None:
    times = {"run_at": "2999-01-02T00:00:00Z", "expires_at": "2999-01-02T00:59:00+01:00"}
    before = live.rows()
    ways = {
        "/expires_at": live.post("/v1/jobs", json={"plugin": "echo", "payload": {}, **times}),
        "/job/expires_at": live.post(
            "/v1/jobs", files={"plugin": (None, "echo"), "job": (None, json.dumps(times), "application/json")}
        ),
        "/job.expires_at": live.post(
            "/v1/plugins/echo/jobs", params={f"job.{name}": time for name, time in times.items()}, json={}
        ),
    }
    for pointer, answer in ways.items():
        assert pointers(problem(answer, 422)) == [pointer]
    batch = live.post("/v1/jobs/batch", json=[{"plugin": "echo", "payload": {}, **times}])
    assert pointers(problem(batch, 422)["items"][0]["problem"]) == ["/0/expires_at"]
    assert live.rows() == before
    live.submit("echo", {}, run_at=times["run_at"], expires_at=times["run_at"])
    live.submit("echo", {}, expires_at="2001-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("GET", "/v1/jobz?wait=1", "There is no GET /v1/jobz here; /docs shows what there is."),
        ("PUT", "/v1/jobs", "There is no PUT /v1/jobs here, but GET, HEAD and POST."),
        ("GET", "/v1/jobs/batch", "There is no GET /v1/jobs/batch here, but POST."),
        ("DELETE", "/v1/plugins/echo", "There is no DELETE /v1/plugins/echo here, but GET and HEAD."),
        ("GET", "/" + "n" * 1_000, f"There is no GET /{'n' * 199} here; /docs shows what there is."),
    ],
)
def test_a_call_that_there_is_not_is_named_with_those_that_there_are(
    live: Live, method: str, path: str, detail: str
) -> None:
    assert live.request(method, path).json()["detail"] == detail


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "Duplicate 'Host' header"),
        (b"GET /livez HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
        (b"BREW /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "Invalid method"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n", "Invalid header token."),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", "Invalid header value"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", TOO_LONG),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 10_000 + b"\r\n", "Too many headers"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", TOO_LONG),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "HTTPS traffic on an HTTP port"),
        (
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            "Transfer-Encoding can't be present with Content-Length.",
        ),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "Content-Length."),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xd9\xa3\r\n\r\n", "Content-Length."),
        (
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            "",
        ),
    ],
)
def test_what_is_not_sound_http_is_a_400_problem_that_says_why(live: Live, request_bytes: bytes, words: str) -> None:
    status, headers, body = live.raw(request_bytes)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == json.loads(body)["request_id"]
    assert words in json.loads(body)["detail"]
    assert "\n" not in json.loads(body)["detail"]
    assert b"Traceback" not in body


@pytest.mark.parametrize("line", [b"POST /nowhere", b"POST /livez", b"DELETE /v1/plugins/echo"])
def test_an_expectation_of_what_is_no_call_is_refused_as_a_problem(live: Live, line: bytes) -> None:
    head = line + b" HTTP/1.1\r\nHost: localhost\r\nExpect: magic\r\nContent-Length: 2\r\n\r\n"
    status, headers, body = live.raw(head + b"{}")
    assert (status, headers["content-type"]) == (417, "application/problem+json")
    assert json.loads(body)["type"] == "/problems/malformed-request"


def test_a_body_too_large_is_refused_while_it_is_read(live: Live) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    announced = b"Content-Length: 1000000000000\r\n\r\n"
    status, headers, _ = live.raw(head + announced)
    assert status == 413
    assert headers["connection"] == "close"
    endless = b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    endless += (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 40
    status, headers, _ = live.raw(head + endless)
    assert status == 413
    assert headers["connection"] == "close"
    form_head = head.replace(b"application/json", b"multipart/form-data; boundary=x")
    status, _, _ = live.raw(form_head + endless)
    assert status == 413


def test_a_body_too_large_is_not_even_asked_for(live: Live) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    status, _, body = live.raw(head + b"Content-Length: 1000000000\r\n\r\n")
    assert status == 413
    assert json.loads(body)["type"] == "/problems/too-large"


def test_a_body_that_ends_early_leaves_no_row(live: Live) -> None:
    before = live.rows()
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with pytest.raises((IndexError, ConnectionError)):
        live.raw(head + job(), then_close=True)
    assert live.get("/livez").status_code == 200
    assert live.rows() == before


def test_a_hostile_file_name_is_not_kept(live: Live) -> None:
    for name in ("../../../etc/passwd", "..\\..\\x", "con", "a\u202egnp.exe", "n" * 4_000, "%2e%2e%2f", '"; x="y'):
        answer = live.post("/v1/jobs", files={"plugin": (None, "echo"), "image": (name, b"data", "image/png")})
        assert answer.status_code == 202, answer.text
        assert name not in answer.text
        assert not list(live.data_dir.parent.rglob("passwd"))


def test_every_answer_carries_the_browsers_fences_and_an_id(live: Live) -> None:
    for answer in (live.get("/livez"), live.get("/nowhere"), live.get("/v1/jobs?x=1"), live.request("PUT", "/livez")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.headers["X-Request-Id"]


def test_a_request_id_is_taken_from_the_client_if_it_is_sane(live: Live) -> None:
    assert live.get("/livez", headers={"X-Request-Id": "order-7.a_b"}).headers["X-Request-Id"] == "order-7.a_b"
    for insane in ("a b", "x" * 65, "\u00e9".encode().decode("latin-1"), "<script>"):
        answer = live.get("/livez", headers={"X-Request-Id": insane})
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-Id"])


def test_the_own_origin_is_welcome_under_every_name_of_the_loopback(live: Live) -> None:
    port = live.netloc.split(":")[1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
        answer = live.post("/v1/jobs", data=job(), headers={**JSON, "Host": host, "Origin": f"http://{host}"})
        assert answer.status_code == 202, answer.text


def test_a_half_sent_body_ends_after_its_time(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.bodies.WINDOW_S", 0.2)
    before = live.rows()
    started = time.monotonic()
    status, headers, body = live.raw(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    assert status == 408
    assert json.loads(body)["type"] == "/problems/body-timeout"
    assert headers["connection"] == "close"
    assert time.monotonic() - started < 10
    assert live.rows() == before


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        (
            *("GET", "/v1/events?type=success,nonsense", None, 400),
            "must be one of submitted, started, progress, cancel_requested, released, retrying, lost, success, failed, "
            "cancelled; several have commas between them",
        ),
        ("GET", "/v1/reports/jobs?format=xml", None, 400, "must be 'json', 'csv', 'ndjson' or 'parquet'"),
        ("GET", "/v1/reports/jobs?by=started_at", None, 400, "must be 'finished_at' or 'created_at'"),
        (
            *("POST", "/v1/webhooks", {"url": "https://example.com/", "events": ["nonsense"]}, 422),
            "must be 'job.success', 'job.failed' or 'job.cancelled'",
        ),
    ],
)
def test_a_value_out_of_a_few_is_refused_with_all_of_them(
    live: Live, method: str, path: str, body: Any, status: int, message: str
) -> None:
    (place,) = problem(live.request(method, path, json=body), status)["errors"]
    assert place["message"] == message


@pytest.mark.parametrize(
    ("method", "path", "body", "messages"),
    [
        ("POST", "/v1/jobs/actions/cancel", {"ids": []}, ["must have 1 or more items"]),
        ("POST", "/v1/jobs/actions/cancel", {"ids": ["a"], "limit": 0}, ["must be at least 1"]),
        ("PUT", "/v1/plugins/echo/limits", {"rate_per_s": 1e-9}, ["must be at least 0.000001"]),
        (
            *("POST", "/v1/plugins/echo/pause", {"intake": "yes", "reason": ""}),
            ["must be true or false", "must have 1 or more characters"],
        ),
        (
            *(
                "POST",
                "/v1/jobs",
                {"plugin": "echo", "payload": {}, "priority": 101, "timeout_s": 0, "tags": ["a"] * 21},
            ),
            ["must be at most 100", "must be greater than 0", "must have at most 20 items"],
        ),
        (
            *("POST", "/v1/jobs", {"plugin": "p" * 201, "payload": {}, "timeout_s": 2e9, "max_attempts": 1.5}),
            ["must be at most 1000000000", "must be an integer", "must have at most 200 characters"],
        ),
        (
            *("GET", "/v1/webhooks/01890a5d-ac96-774b-bcce-b302099a8057/deliveries?status=delivered&limit=x", None),
            ["must be 'PENDING', 'DELIVERED' or 'EXHAUSTED'", "must be an integer"],
        ),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057?wait=long", None, ["must be a number"]),
    ],
)
def test_what_does_not_fit_is_told_in_words_of_requests(
    live: Live, method: str, path: str, body: Any, messages: list[str]
) -> None:
    places = problem(live.request(method, path, json=body), 422 if body else 400)["errors"]
    assert [place["message"] for place in places] == messages


def test_a_name_that_is_empty_has_a_place(live: Live) -> None:
    body = {"plugin": "echo", "payload": {}, "": 1}
    for answer, status, pointer in (
        (live.post("/v1/jobs", json=body), 422, "/"),
        (
            live.post("/v1/jobs", json={**body, "": 1, "webhook": {"url": "https://example.com/", "": 1}}),
            422,
            "/webhook/",
        ),
        (live.post("/v1/plugins/echo/jobs?job.=1", json={}), 422, "/job."),
        (live.get("/v1/jobs?=1"), 400, "/"),
    ):
        assert {"pointer": pointer, "message": "is not known here"} in problem(answer, status)["errors"]
