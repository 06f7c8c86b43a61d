from __future__ import annotations

import itertools
from datetime import datetime

import pytest
import requests

from tests.service.conftest import Process, until

pytestmark = pytest.mark.xdist_group("retries")  # share a service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One for all tests here: none of them stops it, and each looks at its own job."""
    data_dir = tmp_path_factory.mktemp("retries") / "data"
    process = Process(data_dir, "--retry-base-s", "0.1", plugins=["fails_before", "exits"])
    yield process
    process.close()


def outcomes(service, job):
    return [attempt["outcome"] for attempt in service.attempts(job)]


def test_a_job_that_fails_is_tried_again_until_it_succeeds(service):
    job = service.submit("fails_before", {"attempt": 3}, max_attempts=5)
    record = service.job(job, wait=30)
    assert (record["status"], record["result"], record["attempt"]) == ("SUCCESS", {"attempt": 3}, 3)
    assert outcomes(service, job) == ["FAILED", "FAILED", "SUCCESS"]
    spans = [(attempt["started_at"], attempt["finished_at"]) for attempt in service.attempts(job)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    kinds = [kind for (kind,) in service.sql(f"SELECT type FROM job_events WHERE job_id = '{job}' ORDER BY n")]
    assert kinds == ["submitted", *["started", "retrying"] * 2, "started", "success"]


def test_a_job_with_no_attempts_left_fails_with_its_last_error(service):
    job = service.submit("fails_before", {"attempt": 9}, max_attempts=2)
    record = service.job(job, wait=30)
    assert (record["status"], record["error"]["message"]) == ("FAILED", "not at attempt 2")
    assert outcomes(service, job) == ["FAILED", "FAILED"]


def test_a_job_is_tried_once_unless_it_asks_for_more(service):
    job = service.submit("fails_before", {"attempt": 2})
    record = service.job(job, wait=30)
    assert (record["status"], record["attempt"], record["max_attempts"]) == ("FAILED", 1, 1)


def test_a_worker_that_dies_under_its_job_uses_an_attempt(service):
    job = service.submit("exits", {"code": 3}, max_attempts=2)
    record = service.job(job, wait=30)
    assert (record["status"], record["error"]["type"]) == ("FAILED", "WorkerCrashed")
    assert outcomes(service, job) == ["FAILED", "FAILED"]


def test_a_plugin_may_say_that_another_attempt_is_of_no_use(service):
    job = service.submit("fails_before", {"attempt": 2, "says": {"retryable": False}}, max_attempts=5)
    assert service.job(job, wait=30)["status"] == "FAILED"
    assert outcomes(service, job) == ["FAILED"]


@pytest.mark.parametrize("says", [{"retryable": "no"}, {"retry_after_s": -1}, {"retry_after_s": "soon"}])
def test_what_an_exception_says_of_itself_in_other_types_is_not_heard(service, says):
    job = service.submit("fails_before", {"attempt": 2, "says": says}, max_attempts=2)
    assert service.job(job, wait=30)["status"] == "SUCCESS"


def test_a_plugin_may_say_when_another_attempt_is_of_use(service):
    job = service.submit("fails_before", {"attempt": 2, "says": {"retry_after_s": 1.5}}, max_attempts=2)
    assert service.job(job, wait=30)["status"] == "SUCCESS"
    first, second = service.attempts(job)
    waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["finished_at"])
    assert 1.5 <= waited.total_seconds() < 5


def test_a_job_that_waits_for_its_next_attempt_is_cancelled_at_once(service):
    job = service.submit("fails_before", {"attempt": 2, "says": {"retry_after_s": 600}}, max_attempts=2)
    until(lambda: service.sql(f"SELECT 1 FROM job_events WHERE job_id = '{job}' AND type = 'retrying'"))
    waiting = service.job(job)
    assert (waiting["status"], waiting["attempt"], waiting["error"]) == ("PENDING", 1, None)
    assert waiting["run_at"] > waiting["started_at"]
    assert requests.post(f"{service.url}/v1/jobs/{job}/cancel", timeout=30).status_code == 200
    assert service.job(job)["status"] == "CANCELLED"


@pytest.mark.parametrize("count", [0, 101, 1.5, "two"])
def test_an_impossible_number_of_attempts_is_refused(service, count):
    body = {"plugin": "echo", "payload": {}, "max_attempts": count}
    answer = requests.post(f"{service.url}/v1/jobs", json=body, timeout=30)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/max_attempts"


def test_a_form_may_ask_for_attempts_too(service):
    parts = {
        name: (None, text)
        for name, text in {"plugin": "fails_before", "job": '{"max_attempts": 2}', "payload": '{"attempt": 2}'}.items()
    }
    answer = requests.post(f"{service.url}/v1/jobs", files=parts, timeout=30)
    assert service.job(answer.json()["id"], wait=30)["status"] == "SUCCESS"
