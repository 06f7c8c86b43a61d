"""The calls on schedules, and those by which operators control plugins, against a live service."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Live, pointers, problem

HOURLY: dict[str, Any] = {"plugin": "echo", "payload": {"n": 1}, "cron": "0 * * * *"}


@pytest.fixture
def schedules(live: Live) -> Iterator[Live]:
    """The service without a schedule or control, before and after."""

    def clear() -> None:
        for item in live.get("/v1/schedules").json()["items"]:
            assert live.request("DELETE", item["links"]["self"]).status_code == 204
        for name in ("echo", "sleep"):
            live.post(f"/v1/plugins/{name}/resume")
            live.request("PUT", f"/v1/plugins/{name}/limits", json={})

    clear()
    yield live
    clear()


def create(live: Live, name: str = "s", **more: Any) -> dict[str, Any]:
    answer = live.post("/v1/schedules", json={"name": name, **HOURLY, **more})
    assert answer.status_code == 201, answer.text
    record: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == record["links"]["self"]
    return record


def test_a_schedule_is_recorded_changed_and_deleted(schedules: Live) -> None:
    options = {"priority": 2, "tags": ["nightly"], "metadata": {"a": 1}, "expires_after_s": 60, "max_attempts": 3}
    made = create(schedules, timezone="Europe/Berlin", misfire="all", options=options)
    assert (made["cron"], made["every_s"], made["timezone"], made["misfire"]) == (
        "0 * * * *",
        None,
        "Europe/Berlin",
        "all",
    )
    assert made["options"] == {**options, "timeout_s": None}
    assert made["payload"] == {"n": 1}
    assert made["next_at"] > made["created_at"]
    assert (made["paused"], made["last_at"], made["last_job_id"], made["links"]["last_job"]) == (
        False,
        None,
        None,
        None,
    )
    path = made["links"]["self"]
    assert schedules.get(path).json() == made
    (listed,) = schedules.get("/v1/schedules").json()["items"]
    assert listed == {name: value for name, value in made.items() if name != "payload"}

    body = {"name": "other", "plugin": "echo", "payload": {}, "every_s": 3600.0}
    changed = schedules.request("PUT", path, json=body).json()
    assert (changed["name"], changed["cron"], changed["every_s"]) == ("other", None, 3600)
    assert (changed["id"], changed["created_at"]) == (made["id"], made["created_at"])
    assert schedules.request("DELETE", path).status_code == 204
    for method in ("GET", "DELETE"):
        assert problem(schedules.request(method, path), 404)["type"] == "/problems/unknown-schedule"


def test_a_schedule_ticks_and_its_jobs_run(schedules: Live) -> None:
    body = {"name": "every", "plugin": "echo", "payload": {"n": 1}, "every_s": 1, "options": {"tags": ["every"]}}
    made = schedules.post("/v1/schedules", json=body).json()
    end = time.monotonic() + 30
    while (record := schedules.get(made["links"]["self"]).json())["last_job_id"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    job = schedules.ended(record["last_job_id"])
    assert (job["status"], job["result"], job["tags"]) == ("SUCCESS", {"n": 1}, ["every"])
    assert job["schedule_id"] == record["id"]
    assert record["links"]["last_job"] == job["links"]["self"]


def test_pause_and_resume(schedules: Live) -> None:
    links = create(schedules)["links"]
    for _ in range(2):
        paused = schedules.post(links["pause"]).json()
        assert (paused["paused"], paused["next_at"]) == (True, None)
    assert schedules.request("PUT", links["self"], json={"name": "s", **HOURLY}).json()["next_at"] is None
    for _ in range(2):
        resumed = schedules.post(links["resume"]).json()
        assert resumed["paused"] is False
        assert resumed["next_at"]


def test_run_makes_one_job_now(schedules: Live) -> None:
    made = create(schedules, options={"tags": ["now"], "expires_after_s": 3600})
    schedules.post(made["links"]["pause"])
    answer = schedules.post(made["links"]["run"])
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == job["links"]["self"]
    assert job["tags"] == ["now"]
    assert schedules.ended(job["id"])["result"] == {"n": 1}
    assert schedules.get(made["links"]["self"]).json()["last_job_id"] is None


def test_bytes_of_a_payload_are_kept_by_reference(schedules: Live) -> None:
    payload = {"data": {"$bytes": "aGVsbG8="}}
    made = create(schedules, plugin="echo", payload=payload)
    reference = made["payload"]["data"]
    assert reference["size"] == 5
    assert schedules.get(reference["url"]).content == b"hello"
    assert schedules.get(made["links"]["payload"]).json() == {"data": reference}
    missing = schedules.get(made["links"]["payload"] + "?pointer=/none")
    assert problem(missing, 404)["type"] == "/problems/unknown-file"
    job = schedules.ended(schedules.post(made["links"]["run"]).json()["id"])
    assert job["status"] == "SUCCESS"
    assert job["payload"]["data"]["sha256"] == reference["sha256"]


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"cron": "61 * * * *"}, ["/cron"]),
        ({"cron": "* * * * * *"}, ["/cron"]),
        ({"timezone": "Mars/Olympus"}, ["/timezone"]),
        ({"every_s": 1}, ["/cron", "/every_s"]),
        ({"cron": 1}, ["/cron"]),
        ({"misfire": "never"}, ["/misfire"]),
        ({"misfire": {}}, ["/misfire"]),
        ({"name": ""}, ["/name"]),
        ({"name": "a/b"}, ["/name"]),
        ({"starts_at": "tomorrow"}, ["/starts_at"]),
        ({"starts_at": "2030-01-02T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z"}, ["/ends_at"]),
        ({"ends_at": "2020-01-01T00:00:00Z"}, [""]),
        ({"plugin": "none"}, ["/plugin"]),
        ({"plugin": "sleep", "payload": {"seconds": "x"}}, ["/payload/seconds"]),
        ({"payload": {"$blob": 1}}, ["/payload"]),
        ({"payload": {"text": "x" * 300_000}}, ["/payload"]),
        ({"options": {"run_at": "2030-01-01T00:00:00Z"}}, ["/options/run_at"]),
        ({"options": {"expires_after_s": 0}}, ["/options/expires_after_s"]),
        ({"unknown": 1}, ["/unknown"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(schedules: Live, change: dict[str, Any], places: list[str]) -> None:
    answer = schedules.post("/v1/schedules", json={"name": "s", **HOURLY, **change})
    assert pointers(problem(answer, 422)) == places
    assert schedules.get("/v1/schedules").json()["items"] == []


def test_neither_cron_nor_every_s_is_refused(schedules: Live) -> None:
    body = {"name": "s", "plugin": "echo", "payload": {}}
    assert pointers(problem(schedules.post("/v1/schedules", json=body), 422)) == ["/cron", "/every_s"]


def test_a_name_is_taken_once(schedules: Live) -> None:
    create(schedules)
    assert problem(schedules.post("/v1/schedules", json={"name": "s", **HOURLY}), 409)["type"] == (
        "/problems/schedule-exists"
    )
    other = create(schedules, "t")
    answer = schedules.request("PUT", other["links"]["self"], json={"name": "s", **HOURLY})
    assert problem(answer, 409)["type"] == "/problems/schedule-exists"


# --- controls of plugins ---


def control(live: Live, plugin: str = "echo") -> dict[str, Any]:
    found: dict[str, Any] = live.get(f"/v1/plugins/{plugin}").json()["control"]
    return found


def test_a_paused_plugin_starts_no_jobs_until_it_is_resumed(schedules: Live) -> None:
    paused = schedules.post("/v1/plugins/echo/pause", json={"reason": "a new model"}).json()["control"]
    assert (paused["paused"], paused["intake"], paused["reason"]) == (True, False, "a new model")
    assert control(schedules) == paused
    waiting = schedules.submit("echo", {"n": 1})
    assert schedules.ended(schedules.submit("sleep", {"seconds": 0})["id"])["status"] == "SUCCESS"
    assert schedules.get(f"/v1/jobs/{waiting['id']}").json()["status"] == "PENDING"
    assert schedules.post("/v1/plugins/echo/resume").json()["control"]["paused"] is False
    assert schedules.ended(waiting["id"])["status"] == "SUCCESS"


def test_a_plugin_that_is_paused_for_intake_refuses_jobs_and_says_why(schedules: Live) -> None:
    made = create(schedules)
    schedules.post("/v1/plugins/echo/pause", json={"intake": True, "reason": "a new model"})
    for answer in (
        schedules.post("/v1/jobs", json={"plugin": "echo", "payload": {}}),
        schedules.post("/v1/plugins/echo/jobs", json={}),
        schedules.post(made["links"]["run"]),
    ):
        body = problem(answer, 409)
        assert body["type"] == "/problems/plugin-paused"
        assert "a new model" in body["detail"]
    assert schedules.post("/v1/jobs", json={"plugin": "sleep", "payload": {"seconds": 0}}).status_code == 202
    schedules.post("/v1/plugins/echo/pause")
    assert schedules.post("/v1/jobs", json={"plugin": "echo", "payload": {}}).status_code == 202


def test_limits_are_set_as_a_whole_and_shown(schedules: Live) -> None:
    limits = {"concurrency": 2, "rate_per_s": 0.5}
    set_ = schedules.request("PUT", "/v1/plugins/sleep/limits", json=limits).json()["control"]
    assert (set_["concurrency"], set_["rate_per_s"], set_["burst"]) == (2, 0.5, 1)
    assert control(schedules, "sleep") == set_
    set_ = schedules.request("PUT", "/v1/plugins/sleep/limits", json={"concurrency": None}).json()["control"]
    assert (set_["concurrency"], set_["rate_per_s"], set_["burst"]) == (None, None, None)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"concurrency": 0}, "/concurrency"),
        ({"concurrency": True}, "/concurrency"),
        ({"rate_per_s": 0}, "/rate_per_s"),
        ({"burst": 1}, "/burst"),
        ({"other": 1}, "/other"),
    ],
)
def test_limits_that_make_no_sense_are_refused(schedules: Live, body: dict[str, Any], place: str) -> None:
    assert pointers(problem(schedules.request("PUT", "/v1/plugins/echo/limits", json=body), 422)) == [place]


def test_an_unknown_plugin_cannot_be_controlled(schedules: Live) -> None:
    for method, path in (("POST", "pause"), ("POST", "resume"), ("PUT", "limits")):
        answer = schedules.request(method, f"/v1/plugins/none/{path}", json={} if path != "resume" else None)
        assert problem(answer, 404)["type"] == "/problems/unknown-plugin"


def test_with_a_limit_of_one_no_two_jobs_run_at_once(schedules: Live) -> None:
    schedules.request("PUT", "/v1/plugins/sleep/limits", json={"concurrency": 1})
    jobs = [schedules.submit("sleep", {"seconds": 0.2})["id"] for _ in range(4)]
    ended = sorted((schedules.ended(job) for job in jobs), key=lambda job: str(job["started_at"]))
    for before, after in itertools.pairwise(ended):
        assert before["finished_at"] <= after["started_at"]


def test_a_key_that_a_run_would_not_keep_to_is_refused(live: Live) -> None:
    made = live.post("/v1/schedules", json={"name": "keyless", "plugin": "echo", "payload": {}, "every_s": 9_000})
    before = live.rows()
    answer = live.post(f"/v1/schedules/{made.json()['id']}/run", headers={"Idempotency-Key": "k"})
    (place,) = problem(answer, 400)["errors"]
    assert place["pointer"] == "/Idempotency-Key"
    assert place["message"] == "is not taken here: each run of a schedule makes a job"
    assert live.rows() == before
