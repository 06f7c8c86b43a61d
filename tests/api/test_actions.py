"""What is done to jobs that are there: retry and delete one; cancel, retry and delete many."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from tests.api.conftest import Live, pointers, problem

FAR = {"run_at": "2999-01-01T00:00:00Z"}


def act(live: Live, action: str, key: str | None = None, **body: Any) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = live.post(f"/v1/jobs/actions/{action}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    assert report["action"] == action
    assert report["dry_run"] is body.get("dry_run", False)
    return report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {item["id"]: item["outcome"] for item in report["items"]}


def failed(live: Live, tag: str, count: int) -> list[str]:
    """Ids of jobs that have FAILED."""
    past = "2020-01-01T00:00:00Z"
    made = [live.submit("echo", {"n": n}, tags=[tag], expires_at=past)["id"] for n in range(count)]
    assert {live.ended(job_id)["status"] for job_id in made} == {"FAILED"}
    return made


def rows(live: Live, text: str, *values: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{live.data_dir / 'jobs.db'}?mode=ro", uri=True) as connection:
        found = connection.execute(text, values).fetchall()
    connection.close()
    return found


def test_a_retry_is_a_new_job_with_the_same_input_and_options(live: Live, png: bytes) -> None:
    answer = live.post(
        "/v1/plugins/thumbnail/jobs?width=64&job.tags=a&job.tags=b&job.priority=7&job.timeout_s=9&job.max_attempts=2"
        '&job.metadata={"order":1}&job.expires_at=2999-01-01T00:00:00Z',
        data=png,
        headers={"Content-Type": "image/png"},
    )
    old = live.ended(answer.json()["id"])
    retried = live.post(f"/v1/jobs/{old['id']}/retry")
    assert retried.status_code == 202, retried.text
    new = retried.json()
    assert retried.headers["Location"] == f"/v1/jobs/{new['id']}"
    assert new["id"] > old["id"]
    assert new["parent_id"] == old["id"]
    for name in ("plugin", "plugin_version", "tags", "priority", "max_attempts", "metadata"):
        assert new[name] == old[name], name
    assert new["payload"]["image"] == {**old["payload"]["image"], "url": f"/v1/jobs/{new['id']}/payload?pointer=/image"}
    assert rows(live, "SELECT timeout_s, expires_at, due FROM jobs WHERE id = ?", new["id"]) == [(9.0, None, 1)]
    ended = live.ended(new["id"])
    assert (ended["status"], ended["result"]["width"]) == ("SUCCESS", 64)
    assert live.get(ended["payload"]["image"]["url"]).content == png
    assert live.get(f"/v1/jobs/{old['id']}").json() == old


def test_a_retry_waits_as_a_submission_does(live: Live) -> None:
    old = live.ended(live.submit("echo", {"n": 1})["id"])
    answer = live.post(f"/v1/jobs/{old['id']}/retry", headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=30")
    assert (answer.json()["status"], answer.json()["parent_id"]) == ("SUCCESS", old["id"])


def test_a_retry_has_its_own_key_and_needs_a_job_that_has_ended(live: Live) -> None:
    old, key = live.ended(live.submit("echo", {"n": 1})["id"]), {"Idempotency-Key": str(uuid.uuid4())}
    url = f"/v1/jobs/{old['id']}/retry"
    first, again = (live.post(url, headers=key) for _ in range(2))
    assert [first.headers.get("Idempotency-Replayed"), again.headers.get("Idempotency-Replayed")] == [None, "true"]
    assert first.json()["id"] == again.json()["id"]
    other = live.ended(live.submit("echo", {"n": 1})["id"])
    for path, body in ((f"/v1/jobs/{other['id']}/retry", None), ("/v1/jobs", {"plugin": "echo", "payload": {"n": 1}})):
        reused = live.post(path, json=body, headers=key)
        assert problem(reused, 422)["type"] == "/problems/idempotency-key-reused"
    live.ended(first.json()["id"])
    assert live.request("DELETE", f"/v1/jobs/{old['id']}").status_code == 204
    assert live.post(url, headers=key).json()["id"] == first.json()["id"]
    assert problem(live.post(url), 404)["type"] == "/problems/unknown-job"
    waiting = live.submit("echo", {}, **FAR)["id"]
    assert problem(live.post(f"/v1/jobs/{waiting}/retry"), 409)["type"] == "/problems/wrong-state"


def test_a_deleted_job_leaves_nothing_behind(live: Live) -> None:
    job_id = live.ended(live.submit("echo", {"n": 1})["id"])["id"]
    answer = live.request("DELETE", f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for text in ("jobs WHERE id", "job_attempts WHERE job_id", "job_events WHERE job_id"):
        assert rows(live, f"SELECT count(*) FROM {text} = ?", job_id) == [(0,)]
    assert problem(live.get(f"/v1/jobs/{job_id}"), 404)
    assert problem(live.request("DELETE", f"/v1/jobs/{job_id}"), 404)["type"] == "/problems/unknown-job"
    waiting = live.submit("echo", {}, **FAR)["id"]
    assert problem(live.request("DELETE", f"/v1/jobs/{waiting}"), 409)["type"] == "/problems/wrong-state"
    assert live.get(f"/v1/jobs/{waiting}").json()["status"] == "PENDING"


def test_each_job_of_an_action_has_its_outcome(live: Live) -> None:
    waiting, ended = live.submit("echo", {}, **FAR)["id"], live.ended(live.submit("echo", {})["id"])["id"]
    running = live.submit("sleep", {"seconds": 60})["id"]
    while live.get(f"/v1/jobs/{running}").json()["status"] != "RUNNING":
        pass
    never = str(uuid7())
    ids = [waiting, ended, running, never, "x", waiting.upper()]
    planned = act(live, "cancel", ids=ids, dry_run=True)
    assert outcomes(planned) == {
        waiting: "would-cancel", ended: "wrong-state", running: "would-cancel", never: "unknown", "x": "unknown",
    }  # fmt: skip
    assert (planned["matched"], planned["done"], planned["more"]) == (3, 0, False)
    done = act(live, "cancel", ids=ids)
    assert outcomes(done) in [
        {waiting: "cancelled", ended: "wrong-state", running: now, never: "unknown", "x": "unknown"}
        for now in ("stopping", "cancelled")
    ]
    assert (done["matched"], done["done"]) == (3, 2)
    assert live.ended(running)["status"] == "CANCELLED"
    assert set(outcomes(act(live, "cancel", ids=[waiting, running])).values()) == {"cancelled"}
    still = live.submit("echo", {}, **FAR)["id"]
    retried = act(live, "retry", ids=[ended, still, never])
    assert outcomes(retried) == {ended: "retried", still: "wrong-state", never: "unknown"}
    assert live.ended(retried["items"][0]["new_id"])["parent_id"] == ended
    deleted = act(live, "delete", ids=[ended, still, never])
    assert outcomes(deleted) == {ended: "deleted", still: "wrong-state", never: "unknown"}
    assert problem(live.get(f"/v1/jobs/{ended}"), 404)


def test_a_filter_is_worked_off_in_several_calls(live: Live) -> None:
    tag = str(uuid.uuid4())
    waiting = [live.submit("echo", {"n": n}, tags=[tag], **FAR)["id"] for n in range(5)]
    live.submit("echo", {}, **FAR)
    planned = act(live, "cancel", filter={"tag": tag}, dry_run=True, limit=2)
    assert outcomes(planned) == {waiting[0]: "would-cancel", waiting[1]: "would-cancel"}
    assert planned["more"] is True
    done = [act(live, "cancel", filter={"tag": tag, "plugin": "echo"}, limit=2) for _ in range(4)]
    assert [(report["done"], report["more"]) for report in done] == [(2, True), (2, True), (1, False), (0, False)]
    assert [item["id"] for report in done for item in report["items"]] == waiting
    assert act(live, "delete", filter={"tag": tag, "status": "PENDING"})["matched"] == 0
    assert act(live, "delete", filter={"tag": tag, "error_type": "Expired"})["matched"] == 0
    assert act(live, "delete", filter={"tag": tag, "created_after": "2999-01-01T00:00:00Z"})["matched"] == 0
    assert act(live, "delete", filter={"tag": tag, "status": "CANCELLED"}, limit=4)["more"] is True
    assert act(live, "delete", filter={"tag": tag})["done"] == 1


def test_a_repeated_retry_of_many_doubles_none(live: Live) -> None:
    tag, key = str(uuid.uuid4()), str(uuid.uuid4())
    old = failed(live, tag, 5)
    by_ids = [act(live, "retry", key, ids=old[:2]) for _ in range(2)]
    assert by_ids[0] == by_ids[1]
    assert set(outcomes(by_ids[0]).values()) == {"retried"}
    # Those that were retried under this key are left out, and so are their retries, whatever becomes of them.
    reports = [act(live, "retry", key, filter={"tag": tag}, limit=2) for _ in range(3)]
    assert [[item["id"] for item in report["items"]] for report in reports] == [old[2:4], old[4:], []]
    assert [report["more"] for report in reports] == [True, False, False]
    children = rows(live, "SELECT parent_id FROM jobs WHERE parent_id IS NOT NULL AND tags LIKE ?", f"%{tag}%")
    assert Counter(parent for (parent,) in children) == dict.fromkeys(old, 1)
    assert act(live, "retry", filter={"tag": tag, "status": "FAILED"}, dry_run=True)["matched"] == 5


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({}, [""]),
        ({"ids": ["x"], "filter": {"tag": "a"}}, [""]),
        ({"ids": []}, ["/ids"]),
        ({"ids": ["x"] * 1_001}, ["/ids"]),
        ({"ids": [1]}, ["/ids/0"]),
        ({"filter": {}}, ["/filter"]),
        ({"filter": {"colour": 1}}, ["/filter/colour"]),
        ({"filter": {"status": "GONE"}}, ["/filter/status"]),
        ({"filter": {"tag": "a"}, "limit": 0}, ["/limit"]),
        ({"filter": {"tag": "a"}, "limit": 1_001}, ["/limit"]),
        ({"filter": {"tag": "a"}, "dry_run": "no"}, ["/dry_run"]),
        ([], [""]),
    ],
)
def test_an_action_that_does_not_say_which_jobs_is_refused(live: Live, body: Any, places: list[str]) -> None:
    for action in ("cancel", "retry", "delete"):
        assert pointers(problem(live.post(f"/v1/jobs/actions/{action}", json=body), 422)) == places


def test_an_unknown_action_is_no_route(live: Live) -> None:
    assert problem(live.post("/v1/jobs/actions/paint", json={"ids": ["x"]}), 404)


def test_a_repeated_retry_is_answered_whatever_has_become_of_its_plugin(live: Live) -> None:
    old, key = live.ended(live.submit("echo", {"n": 1})["id"]), {"Idempotency-Key": str(uuid.uuid4())}
    first = live.post(f"/v1/jobs/{old['id']}/retry", headers=key).json()
    assert live.post("/v1/plugins/echo/pause", json={"intake": True}).status_code == 200
    try:
        again = live.post(f"/v1/jobs/{old['id']}/retry", headers=key)
        assert (again.status_code, again.json()["id"]) == (202, first["id"])
        assert problem(live.post(f"/v1/jobs/{old['id']}/retry"), 409)["type"] == "/problems/plugin-paused"
    finally:
        live.post("/v1/plugins/echo/resume")


def test_jobs_of_a_batch_are_retried_under_the_key_of_the_batch(live: Live) -> None:
    tag, key = str(uuid.uuid4()), str(uuid.uuid4())
    late = {"plugin": "echo", "payload": {}, "tags": [tag], "expires_at": "2020-01-01T00:00:00Z"}
    made = live.post("/v1/jobs/batch", json=[late, late], headers={"Idempotency-Key": key}).json()
    for item in made["items"]:
        assert live.ended(item["id"])["status"] == "FAILED"
    assert act(live, "retry", key, filter={"tag": tag})["done"] == 2
    assert act(live, "retry", key, filter={"tag": tag})["done"] == 0


def test_retries_under_a_longer_key_are_retried_under_one_with_which_it_begins(live: Live) -> None:
    tag, key = str(uuid.uuid4()), str(uuid.uuid4())
    (old,) = failed(live, tag, 1)
    (first,) = act(live, "retry", f"{key}#1", ids=[old])["items"]
    live.ended(first["new_id"])
    assert outcomes(act(live, "retry", key, filter={"tag": tag})) == {old: "retried", first["new_id"]: "retried"}
