"""The ground gives way under a running service: it says so once, loses nothing, and comes back where it can."""

from __future__ import annotations

import base64
import contextlib
import resource
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.service.conftest import Process, until


def submit(service: Process, payload: dict | None = None) -> requests.Response:
    body = {"plugin": "echo", "payload": payload or {}}
    return requests.post(f"{service.url}/v1/jobs", json=body, timeout=30)


def readiness(service: Process) -> requests.Response:
    return requests.get(f"{service.url}/readyz", timeout=10)


def lines(service: Process, event: str) -> int:
    return service.log.read_text().count(event)


def assert_away(service: Process, answer: requests.Response, fault: str, words: str) -> None:
    assert answer.status_code == 503
    assert words in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    ready = readiness(service)
    assert ready.status_code == 503
    assert words in ready.json()["detail"]
    for _ in range(20):
        assert submit(service).status_code == 503
    until(lambda: f'"fault":"{fault}"' in service.log.read_text())
    assert lines(service, "database away") == 1
    assert "Traceback" not in service.log.read_text()


def assert_back(service: Process, acknowledged: list[str]) -> None:
    until(lambda: readiness(service).status_code == 200)
    acknowledged.append(submit(service).json()["id"])
    for job in acknowledged:
        assert service.job(job, wait=30)["status"] == "SUCCESS"
    assert lines(service, "database back") == 1
    assert service.sql("SELECT count(*) FROM report_jobs") == [(len(acknowledged),)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB under this test's data."""
    data = tmp_path / "data"
    data.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", data], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield data
    finally:
        subprocess.run(["umount", "--lazy", data], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass


def test_on_a_full_disk_nothing_is_acknowledged_and_freed_space_heals(small_disk, serve):
    service = serve()
    acknowledged = [submit(service).json()["id"]]
    slow = service.submit("sleep", {"seconds": 1})
    until(lambda: service.job(slow)["status"] == "RUNNING")
    fill(small_disk / "filler")
    answer = submit(service, {"text": "x" * 50_000})
    while answer.status_code == 202:  # the log has room that it reuses
        acknowledged.append(answer.json()["id"])
        answer = submit(service, {"text": "x" * 50_000})
    assert_away(service, answer, "full", "disk is full")
    (small_disk / "filler").unlink()
    assert_back(service, [*acknowledged, slow])
    assert service.stop() == 0


def test_at_the_file_size_limit_nothing_is_acknowledged_and_a_raised_limit_heals(serve):
    service = serve()
    acknowledged = [submit(service).json()["id"]]
    size = (service.data_dir / "jobs.db-wal").stat().st_size
    old = resource.prlimit(service.popen.pid, resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    answer = submit(service, {"text": "x" * 50_000})
    while answer.status_code == 202:
        acknowledged.append(answer.json()["id"])
        answer = submit(service, {"text": "x" * 50_000})
    assert_away(service, answer, "io", "ulimit -f")
    resource.prlimit(service.popen.pid, resource.RLIMIT_FSIZE, old)
    assert_back(service, acknowledged)


def test_a_lock_from_outside_is_refused_within_the_busy_time_and_heals(serve):
    service = serve()
    acknowledged = [submit(service).json()["id"]]
    assert service.job(acknowledged[0], wait=30)["status"] == "SUCCESS"
    with subprocess.Popen(
        ["sqlite3", "-bail", service.data_dir / "jobs.db"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        # The service may be writing just now, the sums of its reports for one.
        holder.stdin.write(".timeout 20000\nBEGIN EXCLUSIVE;\nSELECT 'held';\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        answer = submit(service)
        assert_away(service, answer, "locked", "another program")
        holder.communicate("ROLLBACK;\n")
    assert_back(service, acknowledged)


@pytest.mark.parametrize("name", ["jobs.db", "jobs.db-wal"])
def test_a_file_that_was_moved_away_is_noticed_and_put_back_it_heals(serve, name):
    service = serve()
    acknowledged = [submit(service).json()["id"]]
    path = service.data_dir / name
    path.rename(path.with_suffix(".away"))
    until(lambda: readiness(service).status_code == 503)
    assert_away(service, submit(service), "gone", "is gone")
    path.with_suffix(".away").rename(path)
    assert_back(service, acknowledged)


def test_an_outcome_waits_for_the_database_while_the_service_stops(serve):
    service = serve("--log-level", "debug")
    job = service.submit("sleep", {"seconds": 2})
    until(lambda: service.job(job)["status"] == "RUNNING")
    path = service.data_dir / "jobs.db"
    path.rename(path.with_suffix(".away"))
    service.popen.send_signal(signal.SIGTERM)
    until(lambda: "shutting down" in readiness(service).text)
    until(lambda: lines(service, '"event":"outcome'))  # it could not be written
    path.with_suffix(".away").rename(path)
    assert service.popen.wait(60) == 0
    assert service.sql("SELECT status, attempt FROM report_jobs") == [("SUCCESS", 1)]


def test_a_second_signal_gives_up_an_outcome_that_cannot_be_written(serve):
    service = serve("--log-level", "debug", "--drain-s", "600")
    job = service.submit("sleep", {"seconds": 1})
    until(lambda: service.job(job)["status"] == "RUNNING")
    path = service.data_dir / "jobs.db"
    path.rename(path.with_suffix(".away"))
    until(lambda: lines(service, '"event":"outcome'))  # it could not be written
    service.popen.send_signal(signal.SIGTERM)
    until(lambda: lines(service, '"event":"stopping"'))
    assert service.stop() == 0  # the second signal
    path.with_suffix(".away").rename(path)
    service = serve()
    assert service.job(job, wait=30)["status"] == "SUCCESS"


def test_a_replaced_database_takes_no_jobs(serve):
    service = serve()
    submit(service)
    path = service.data_dir / "jobs.db"
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)
    until(lambda: readiness(service).status_code == 503)
    assert_away(service, submit(service), "gone", "replaced by another file")


def test_after_a_failed_sync_nothing_is_acknowledged_and_the_process_ends(serve):
    if shutil.which("strace") is None:
        pytest.skip("strace is needed to make a sync fail")
    service = serve()
    first = submit(service).json()["id"]
    assert service.job(first, wait=30)["status"] == "SUCCESS"
    tracer = subprocess.Popen(
        shlex.split(
            f"strace -f -qq -p {service.popen.pid} -o /dev/null -e trace=fdatasync,fsync -e signal=none "
            "-e inject=fdatasync,fsync:error=EIO"
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    acknowledged = 0
    with contextlib.suppress(requests.RequestException):
        until(lambda: "TracerPid:\t0" not in Path(f"/proc/{service.popen.pid}/status").read_text())
        acknowledged += submit(service).status_code == 202
        acknowledged += submit(service).status_code == 202
    assert service.popen.wait(20) == 1
    tracer.wait(20)
    assert tracer.stderr
    tracer.stderr.close()
    assert lines(service, "did not confirm a write") == 1
    service = serve()
    assert service.job(first)["status"] == "SUCCESS"
    assert service.sql("SELECT count(*) FROM report_jobs")[0][0] >= 1 + acknowledged


def test_a_lost_file_of_stored_bytes_is_told_for_good_and_sent_again_it_is_there(serve):
    service = serve("--inline-blob-kb", "1")
    job = {"plugin": "echo", "payload": {"file": {"$bytes": base64.b64encode(b"x" * 5_000).decode()}}}
    done = service.submit(**job)
    assert service.job(done, wait=30)["status"] == "SUCCESS"
    (path,) = [path for path in (service.data_dir / "blobs").rglob("*") if path.is_file()]
    path.unlink()

    result = f"{service.url}/v1/jobs/{done}/result?pointer=/file"
    for _ in range(2):
        answer = requests.get(result, timeout=30)
        assert (answer.status_code, answer.json()["type"]) == (410, "/problems/bytes-lost")
        assert path.name in answer.json()["detail"]
        assert "blobs" not in answer.text
    retried = requests.post(f"{service.url}/v1/jobs/{done}/retry", timeout=30).json()["id"]
    error = service.job(retried, wait=30)["error"]
    assert error["type"] == "InternalError"
    assert f"The payload is not whole. The bytes {path.name} are lost" in error["message"]
    assert lines(service, "a file of stored bytes is lost") == 1
    assert str(path.relative_to(service.data_dir.parent)) in service.log.read_text()
    assert "Traceback" not in service.log.read_text()

    service.submit(**job, run_at="2999-01-01T00:00:00Z")
    assert requests.get(result, timeout=30).content == b"x" * 5_000
