from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.service.conftest import Process, until


def test_killed_it_loses_nothing_and_leaves_no_worker(serve):
    service = serve("--workers", "2")
    running = [service.submit("sleep", {"seconds": 30}) for _ in range(2)]
    pending = [service.submit("echo", {"n": n}) for n in range(20)]
    until(lambda: all(service.job(job)["status"] == "RUNNING" for job in running))
    workers = until(service.workers)
    service.kill()
    killed_at = time.monotonic()
    until(lambda: not set(workers) & set(service.workers()), timeout_s=2)
    assert time.monotonic() - killed_at < 2

    service = serve("--workers", "4")
    until(lambda: all(service.job(job)["status"] == "RUNNING" for job in running), timeout_s=5)
    for n, job in enumerate(pending):
        assert service.job(job, wait=30)["status"] == "SUCCESS"
        assert requests.get(f"{service.url}/v1/jobs/{job}/result", timeout=30).json() == {"n": n}
    for job in running:
        first, second = service.attempts(job)
        assert (first["outcome"], second["outcome"]) == ("LOST", None)
        assert requests.post(f"{service.url}/v1/jobs/{job}/cancel", timeout=30).status_code in (200, 202)
        assert service.job(job, wait=30)["status"] == "CANCELLED"
    assert service.stop() == 0


def test_told_to_stop_it_lets_running_jobs_finish(serve):
    service = serve()
    job = service.submit("sleep", {"seconds": 1})
    until(lambda: service.job(job)["status"] == "RUNNING")
    assert service.stop() == 0
    assert service.sql("SELECT status FROM report_jobs") == [("SUCCESS",)]
    assert service.sql("SELECT count(*) FROM instances WHERE stopped_at IS NULL") == [(0,)]


def test_without_standard_streams_it_works_and_ends_in_order(serve):
    service = serve(prefix=["sh", "-c", 'exec "$@" <&- 2>&-', "-"])
    assert service.job(service.submit("echo"), wait=30)["status"] == "SUCCESS"
    assert service.stop() == 0


def test_what_does_not_finish_in_time_goes_back_unharmed(serve):
    service = serve("--drain-s", "0.2")
    job = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(job)["status"] == "RUNNING")
    assert service.stop() == 0
    assert service.sql("SELECT status, attempt FROM report_jobs") == [("PENDING", 0)]
    service = serve()
    until(lambda: service.job(job)["status"] == "RUNNING")
    assert [attempt["outcome"] for attempt in service.attempts(job)] == ["RELEASED", None]


def test_a_job_claimed_while_the_service_stops_goes_back_unharmed(serve):
    """The claim is committed, but nobody has heard of it when the signal comes."""
    service = serve("--drain-s", "0", failpoints="claim.after_commit=delay(1.5)@*")
    service.submit("sleep", {"seconds": 60})
    until(lambda: service.sql("SELECT status FROM report_jobs") == [("RUNNING",)])
    assert service.stop() == 0
    assert service.sql("SELECT status, attempt, error_type FROM report_jobs") == [("PENDING", 0, None)]


def test_jobs_of_a_missing_plugin_are_told_of_until_they_fail(serve):
    service = serve("--workers", "1")
    jobs = [service.submit("sleep", {"seconds": 60}) for _ in range(2)]
    until(lambda: service.job(jobs[0])["status"] == "RUNNING")
    assert ready(service) == {"status": "ready"}
    service.kill()

    service = serve("--plugin-wait-s", "2", built_in=["echo"])
    (warning,) = until(lambda: ready(service).get("warnings"))
    assert "a plugin that is not installed here" in warning
    assert "sleep" not in warning  # anybody may ask
    line = '"jobs":{"sleep":2},"event":"jobs wait for plugins that are not installed here"'
    until(lambda: line in service.log.read_text())
    for job in jobs:
        assert service.job(job, wait=20)["error"]["type"] == "PluginError"
    until(lambda: ready(service) == {"status": "ready"})


def ready(service: Process) -> dict[str, Any]:
    return requests.get(f"{service.url}/readyz", timeout=5).json()


def test_a_second_signal_ends_the_patience(serve):
    service = serve("--drain-s", "60")
    job = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(job)["status"] == "RUNNING")
    service.popen.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in service.log.read_text())
    assert service.stop() == 0
    assert service.sql("SELECT status FROM report_jobs") == [("PENDING",)]


def test_while_it_stops_it_takes_no_jobs_and_says_so(serve):
    service = serve()
    service.submit("sleep", {"seconds": 2})
    until(lambda: service.sql("SELECT 1 FROM report_jobs WHERE status = 'RUNNING'"))
    service.popen.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in service.log.read_text())
    until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 503)
    refused = requests.post(f"{service.url}/v1/jobs", json={"plugin": "echo", "payload": {}}, timeout=5)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert service.popen.wait(30) == 0
    assert service.sql("SELECT count(*) FROM report_jobs") == [(1,)]


def test_a_second_service_on_the_same_data_is_refused_in_one_line(serve):
    service = serve()
    second = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(service.data_dir)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert str(service.popen.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert len(second.stderr.strip().splitlines()) <= 2
    assert requests.get(f"{service.url}/readyz", timeout=5).status_code == 200


def test_a_port_in_use_is_said_in_one_line(serve, tmp_path):
    service = serve()
    port = service.url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", port, "--data-dir", str(tmp_path / "other")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert port in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("elsewhere", [False, True])
def test_where_it_listens_and_where_its_data_is_are_said_in_one_write(tmp_path, elsewhere):
    # A pipe of packets: a read gives what was written at once.
    reading, writing = os.pipe2(os.O_DIRECT)
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    place = f"{tmp_path}/data"
    if elsewhere:
        command += ["--database-url", f"sqlite+aiosqlite:///{tmp_path}/x.db"]
        place += f", the database is {tmp_path}/x.db"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=writing, stderr=subprocess.DEVNULL) as service:
        os.close(writing)
        said = os.read(reading, 4096).decode()
        os.close(reading)
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert re.fullmatch(rf"jobservice \S+ listens on \S+\ndata is in {re.escape(place)}\n", said), said


def test_without_a_shared_database_there_is_nothing_to_only_work_for(tmp_path):
    command = [sys.executable, "-m", "service", "work", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "`jobservice serve` runs them itself" in done.stderr
    assert not (tmp_path / "data").exists()


def test_jobs_due_later_run_when_they_are_due(serve):
    service = serve()
    now = time.time()
    later = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now + 2)) + ".000Z"
    job = service.submit("echo", {"n": 1}, run_at=later)
    record = service.job(job, wait=20)
    assert record["status"] == "SUCCESS"
    assert record["started_at"] >= later


def test_a_plugins_concurrency_is_kept(serve):
    service = serve("--workers", "4", plugins=["one_at_a_time"])
    jobs = [service.submit("one_at_a_time", {"seconds": 0.1}) for _ in range(4)]
    for job in jobs:
        assert service.job(job, wait=30)["status"] == "SUCCESS"
    spans = service.sql("SELECT started_at, finished_at FROM report_jobs ORDER BY started_at")
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_running_service_keeps_the_books_and_closes_them_when_it_stops(serve):
    service = serve()
    assert service.job(service.submit("echo"), wait=30)["status"] == "SUCCESS"
    until(lambda: service.sql("SELECT succeeded_count FROM report_plugins") == [(1,)])
    assert service.job(service.submit("echo"), wait=30)["status"] == "SUCCESS"
    assert service.stop() == 0
    assert service.sql("SELECT succeeded_count FROM report_plugins") == [(2,)]


def connections(service: Process) -> float:
    metrics = requests.get(f"{service.url}/metrics", timeout=30).text
    return float(re.search(r"^jobservice_connections (\S+)$", metrics, re.MULTILINE)[1])


def test_whoever_waits_for_a_job_when_the_service_stops_is_told_how_it_is_then(serve):
    service = serve("--drain-s", "0.5")
    job = {"plugin": "sleep", "payload": {"seconds": 60}}
    (batched,) = requests.post(f"{service.url}/v1/jobs/batch", json=[job], timeout=30).json()["items"]
    batch = service.job(batched["id"])["batch_id"]
    with ThreadPoolExecutor() as threads:
        held = [
            threads.submit(
                requests.post, f"{service.url}/v1/jobs", json=job, headers={"Prefer": "wait=50"}, timeout=60
            ),
            threads.submit(requests.get, f"{service.url}/v1/jobs/{batched['id']}?wait=50", timeout=60),
            threads.submit(requests.get, f"{service.url}/v1/batches/{batch}?wait=50", timeout=60),
        ]
        until(lambda: len(service.sql("SELECT 1 FROM report_jobs WHERE status = 'RUNNING'")) == 2)
        until(lambda: connections(service) == len(held) + 1)  # the one that asks is counted too
        assert service.stop() == 0
        submitted, got, followed = (answer.result() for answer in held)
    assert [answer.status_code for answer in (submitted, got, followed)] == [202, 200, 200]
    assert submitted.json()["status"] == got.json()["status"] == "PENDING"
    assert followed.json()["finished_at"] is None
