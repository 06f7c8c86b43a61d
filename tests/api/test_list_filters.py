"""The filters of the list of jobs, over a real server."""

from __future__ import annotations

import time

import pytest

from tests.api.conftest import Live

FAR = "2999-01-01T00:00:00Z"


def submit(live: Live, **options: object) -> dict[str, object]:
    response = live.post("/v1/jobs", json={"plugin": "echo", "payload": {}, "run_at": FAR, **options})
    assert response.status_code == 202, response.text
    job: dict[str, object] = response.json()
    return job


def ids(live: Live, **filters: object) -> list[object]:
    response = live.get("/v1/jobs", params=filters)
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["items"]]


def test_tags_find_new_jobs_and_their_retries_page_by_page(live: Live) -> None:
    name = f"tag-{time.time_ns()}"
    made = [submit(live, tags=[name, "other"])["id"] for _ in range(5)]
    submit(live, tags=["other"])
    assert ids(live, tag=name) == made[::-1]
    first = live.get("/v1/jobs", params={"tag": name, "limit": 3}).json()
    assert [job["id"] for job in first["items"]] == made[:1:-1]
    assert ids(live, tag=name, cursor=first["next"]) == made[1::-1]
    assert live.post(f"/v1/jobs/{made[0]}/cancel").status_code in (200, 202)
    again = live.post(f"/v1/jobs/{made[0]}/retry")
    assert again.status_code in (201, 202), again.text
    assert ids(live, tag=name) == [again.json()["id"], *made[::-1]]
    assert ids(live, tag=name, status="CANCELLED") == [made[0]]
    assert ids(live, tag=name, plugin="sleep") == []


def test_the_time_of_a_job_is_where_its_id_stands(live: Live) -> None:
    name, jobs = f"time-{time.time_ns()}", []
    for _ in range(3):
        jobs.append(submit(live, tags=[name]))
        time.sleep(0.003)  # so that no two share a millisecond
    one, two, three = (job["id"] for job in jobs)
    assert ids(live, tag=name, created_after=jobs[0]["created_at"]) == [three, two]
    assert ids(live, tag=name, created_before=jobs[2]["created_at"]) == [two, one]
    window = {"created_after": jobs[0]["created_at"], "created_before": jobs[2]["created_at"]}
    assert ids(live, tag=name, **window) == [two]
    assert ids(live, created_before="2001-01-01T00:00:00Z") == []


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z"])
def test_the_ends_of_time_are_times(live: Live, moment: str) -> None:
    for name in ("created_after", "created_before"):
        assert live.get("/v1/jobs", params={name: moment}).status_code == 200
