"""The edges of `(result, error)` and of `run_job`; `execute_plugin` is patched as in the seed's tests."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from service.codec import MAX_JSON_BYTES, encode
from service.db import job_changes, job_inserts, job_leases, plugin_metrics
from service.db.statements import Statement
from service.errors import JobNotFoundError, JobStateError, NotStorableError, ServiceUnavailableError
from service.models import JobQuery
from service.plugin_management import PluginManagementService
from tests.conftest import sql
from tests.store.test_writer import new_job


@pytest.fixture
def execute(monkeypatch):
    """Make `execute_plugin` behave like the coroutine function given; counts its calls."""

    def patch(behave):
        calls = []

        async def fake_execute(self, plugin_name, payload):
            calls.append(payload)
            return await behave(payload)

        monkeypatch.setattr(PluginManagementService, "execute_plugin", fake_execute)
        return calls

    return patch


def returning(pair):
    async def behave(payload):
        return pair

    return behave


ENVELOPE = {"error": {"type": "ExecutionError", "message": "no"}}


async def test_an_empty_result_is_a_success(jobs, execute):
    execute(returning(({}, {})))
    job_id = await jobs.create_job("p", {})
    assert await jobs.run_job(job_id) == ({}, {})
    job = await jobs.get_job(job_id)
    assert (job["status"], job["result"], job["error"]) == ("SUCCESS", {}, None)


@pytest.mark.parametrize(
    "pair",
    [
        ({"a": 1}, ENVELOPE),
        ({}, {"error": "text"}),
        ({}, {"error": {"type": "X"}}),
        ({}, {"error": {"message": "x"}}),
        ({}, {"error": {"type": 1, "message": "x"}}),
        ({}, {"type": "X", "message": "unwrapped"}),
        (None, {}),
        ({}, None),
        ([], {}),
        ({"a": 1},),
        ({"a": 1}, {}, {}),
        {"a": 1},
        None,
    ],
    ids=repr,
)
async def test_a_malformed_pair_fails_the_job_as_our_fault(jobs, execute, pair):
    execute(returning(pair))
    job_id = await jobs.create_job("p", {})
    result, error = await jobs.run_job(job_id)
    job = await jobs.get_job(job_id)
    assert result == {}
    assert error == job["error"]
    assert (job["status"], job["result"]) == ("FAILED", None)
    assert job["error"]["error"]["type"] == "InternalError"
    assert job["error"]["error"]["message"]


@pytest.mark.parametrize("value", [float("nan"), "\0", "\ud800", 2**63, {1: 2}, {"$blob": 1}, (1,), {1, 2}], ids=repr)
async def test_a_result_no_database_holds_fails_the_job_by_name(jobs, execute, value):
    execute(returning(({"deep": [value]}, {})))
    job_id = await jobs.create_job("p", {})
    _, error = await jobs.run_job(job_id)
    assert error["error"]["type"] == "InvalidOutput"
    assert "/deep/0" in error["error"]["message"]
    assert (await jobs.get_job(job_id))["status"] == "FAILED"


async def test_an_error_is_completed_and_nothing_private_is_kept(jobs, execute):
    execute(returning(({}, {"error": {**ENVELOPE["error"], "traceback": "secret line"}, "_internal": "secret"})))
    job_id = await jobs.create_job("p", {})
    _, error = await jobs.run_job(job_id)
    assert set(error["error"]) == {"type", "message", "plugin", "details", "timestamp"}
    assert error["error"]["plugin"] == "p"
    assert "secret" not in encode((await jobs.get_job(job_id))["error"])


async def test_an_exception_out_of_execute_plugin_fails_the_job_without_its_text(jobs, execute):
    async def behave(payload):
        raise RuntimeError("a secret path")

    execute(behave)
    job_id = await jobs.create_job("p", {})
    _, error = await jobs.run_job(job_id)
    assert error["error"]["type"] == "InternalError"
    assert "secret" not in encode(error)


@pytest.mark.parametrize("times", [2, 5])
async def test_asked_for_at_once_the_plugin_runs_once(jobs, execute, times):
    release = asyncio.Event()

    async def behave(payload):
        await release.wait()
        return {"n": 1}, {}

    calls = execute(behave)
    job_id = await jobs.create_job("p", {})
    asked = [asyncio.create_task(jobs.run_job(job_id)) for _ in range(times)]
    while not calls:
        await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*asked) == [({"n": 1}, {})] * times
    assert len(calls) == 1


async def test_run_again_a_finished_job_returns_what_is_recorded(jobs, execute):
    calls = execute(returning(({"image": b"1" * 5_000}, {})))
    job_id = await jobs.create_job("p", {})
    first = await jobs.run_job(job_id)
    assert await jobs.run_job(job_id) == first == ({"image": b"1" * 5_000}, {})
    assert len(calls) == 1


async def test_run_again_a_failed_job_returns_the_recorded_error(jobs, execute):
    calls = execute(returning(({}, ENVELOPE)))
    job_id = await jobs.create_job("p", {})
    assert await jobs.run_job(job_id) == await jobs.run_job(job_id)
    assert len(calls) == 1


async def test_a_cancelled_caller_leaves_the_job_to_finish(jobs, execute):
    release = asyncio.Event()

    async def behave(payload):
        await release.wait()
        return {"n": 1}, {}

    calls = execute(behave)
    job_id = await jobs.create_job("p", {})
    caller = asyncio.create_task(jobs.run_job(job_id))
    while not calls:
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    release.set()
    assert await jobs.run_job(job_id) == ({"n": 1}, {})
    assert len(calls) == 1


async def test_a_running_job_is_cancelled_and_its_execution_stopped(jobs, execute):
    stopped = asyncio.Event()

    async def behave(payload):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    calls = execute(behave)
    job_id = await jobs.create_job("p", {})
    caller = asyncio.create_task(jobs.run_job(job_id))
    while not calls:
        await asyncio.sleep(0)
    await jobs.cancel_job(job_id)
    with pytest.raises(JobStateError):
        await caller
    assert stopped.is_set()
    record = await jobs.get_record(job_id)
    assert (record.status, record.cancel_reason) == ("CANCELLED", "requested while running")
    assert [attempt.outcome for attempt in await jobs.list_attempts(job_id)] == ["CANCELLED"]
    assert (await jobs.cancel_job(job_id)).status == "CANCELLED"


async def test_a_job_stopped_before_its_first_step_never_runs_and_goes_back(jobs, execute):
    calls = execute(returning(({}, {})))
    job_id = await jobs.create_job("p", {})
    jobs.hurry()
    assert await jobs.claim_and_start(1, {}, {"p"}) == 1
    await jobs.drain(5)
    assert (await jobs.get_record(job_id)).status == "PENDING"
    assert calls == []


async def test_a_job_ordered_while_the_service_stops_is_refused_and_stays(jobs, execute):
    calls = execute(returning(({}, {})))
    job_id = await jobs.create_job("p", {})
    jobs.hurry()
    with pytest.raises(ServiceUnavailableError):
        await jobs.run_job(job_id)
    await jobs.drain(5)
    assert (await jobs.get_record(job_id)).status == "PENDING"
    assert calls == []


async def test_a_pending_job_is_cancelled_at_once_and_cannot_be_run(jobs, execute):
    calls = execute(returning(({}, {})))
    job_id = await jobs.create_job("p", {})
    assert (await jobs.cancel_job(job_id)).status == "CANCELLED"
    with pytest.raises(JobStateError):
        await jobs.run_job(job_id)
    assert calls == []


async def test_a_finished_job_cannot_be_cancelled(jobs, execute):
    execute(returning(({}, {})))
    job_id = await jobs.create_job("p", {})
    await jobs.run_job(job_id)
    with pytest.raises(JobStateError):
        await jobs.cancel_job(job_id)
    assert (await jobs.get_job(job_id))["status"] == "SUCCESS"


async def test_a_drained_job_goes_back_with_its_attempt_and_keeps_its_fence(jobs, execute):
    async def behave(payload):
        await asyncio.Event().wait()

    execute(behave)
    job_id = await jobs.create_job("p", {})
    caller = asyncio.create_task(jobs.run_job(job_id))
    while not jobs.running:
        await asyncio.sleep(0)
    caller.cancel()
    await jobs.drain(0)
    record = await jobs.get_record(job_id)
    assert (record.status, record.attempt, record.fence) == ("PENDING", 0, 1)
    assert [attempt.outcome for attempt in await jobs.list_attempts(job_id)] == ["RELEASED"]


@pytest.mark.parametrize(
    "job_id", ["00000000-0000-7000-8000-000000000000", "", "nonsense", "x" * 5_000, "../../etc/passwd", "\0"]
)
async def test_an_unknown_id_is_a_lookup_error_everywhere(jobs, job_id):
    for call in (jobs.get_job, jobs.get_record, jobs.run_job, jobs.cancel_job, jobs.list_attempts):
        with pytest.raises(JobNotFoundError) as caught:
            await call(job_id)
        assert isinstance(caught.value, LookupError)


async def test_records_are_copies(jobs, execute):
    async def behave(payload):
        payload["image"] = b"changed by the plugin"
        payload["nested"]["x"] = 2
        return {"list": [1]}, {}

    execute(behave)
    payload = {"image": b"123", "mime_type": "image/png", "nested": {"x": 1}}
    job_id = await jobs.create_job("p", payload)
    payload["nested"]["x"] = 9
    result, _ = await jobs.run_job(job_id)
    result["list"].append(2)
    first = await jobs.get_job(job_id)
    first["payload"]["image"] = b"changed by a reader"
    first["result"]["list"].append(3)
    again = await jobs.get_job(job_id)
    assert again["payload"] == {"image": b"123", "mime_type": "image/png", "nested": {"x": 1}}
    assert again["result"] == {"list": [1]}


@pytest.mark.parametrize("payload", [{"x": float("inf")}, {"x": b"".join}, {"a": {"$bytes": "QQ=="}}, {"k\0": 1}])
async def test_a_payload_no_database_holds_is_refused_and_leaves_no_row(jobs, database_file, payload):
    with pytest.raises(NotStorableError):
        await jobs.create_job("p", payload)
    assert (await jobs.list_jobs(JobQuery())).items == []


async def test_bytes_anywhere_in_a_payload_come_back_as_bytes(jobs):
    payload = {"image": b"\x00\xff" * 2_000, "mime_type": "image/png", "more": [b"", {"deep": b"abc"}], "text": "abc"}
    job_id = await jobs.create_job("p", payload)
    assert (await jobs.get_job(job_id))["payload"] == payload
    record = await jobs.get_record(job_id)
    assert record.payload["image"]["$blob"]["media_type"] == "image/png"
    assert record.payload["more"][1]["deep"]["$blob"]["media_type"] == "application/octet-stream"


async def test_a_late_outcome_changes_nothing_and_is_counted(jobs, execute, database):
    release = asyncio.Event()

    async def behave(payload):
        await release.wait()
        return {"late": True}, {}

    execute(behave)
    job_id = await jobs.create_job("p", {})
    caller = asyncio.create_task(jobs.run_job(job_id))
    while not jobs.running:
        await asyncio.sleep(0)
    # Another process takes the job over: it believes this one to be gone.
    taken = await database.writer.write(job_leases.recover, str(uuid.uuid4()))
    assert [run.id for run in taken] == [job_id]
    release.set()
    await caller
    record = await jobs.get_record(job_id)
    assert (record.status, record.result) == ("PENDING", None)
    assert jobs._metrics.stale_writes._value.get() == 1


async def test_metrics_count_executions_and_one_failure_is_not_ill_health(jobs, execute, database):
    outcomes = iter([({}, {}), ({}, ENVELOPE), ({}, {})])

    async def behave(payload):
        return next(outcomes)

    execute(behave)
    for _ in range(3):
        await jobs.run_job(await jobs.create_job("p", {}))
    metrics = (await plugin_metrics.load(database.reader))["p"]
    assert (metrics.success_count, metrics.error_count, metrics.consecutive_errors) == (2, 1, 0)
    assert metrics.last_used_at is not None


async def test_an_outcome_waits_for_a_database_that_is_locked(jobs, execute, database, database_file):
    async def hurry(tx, items):
        await tx.fetch(Statement(sa.text("PRAGMA busy_timeout = 50")))
        return [None] * len(items)

    await database.writer.write(hurry, None)
    outside = sqlite3.connect(database_file, isolation_level=None)

    async def behave(payload):
        outside.execute("BEGIN IMMEDIATE")
        return {"n": 1}, {}

    execute(behave)
    job_id = await jobs.create_job("p", {})
    running = asyncio.create_task(jobs.run_job(job_id))
    with capture_logs() as logs:
        while not any("not written yet" in line["event"] for line in logs):
            await asyncio.sleep(0.01)
    outside.execute("ROLLBACK")
    outside.close()
    assert await running == ({"n": 1}, {})
    assert (await jobs.get_record(job_id)).status == "SUCCESS"


async def test_bytes_that_cannot_be_stored_fail_the_job_and_say_so(jobs, execute, tmp_path):
    execute(returning(({"file": b"x" * 5_000}, {})))
    (tmp_path / "blobs").write_text("a file where the directory should be")
    job_id = await jobs.create_job("p", {})
    _, error = await jobs.run_job(job_id)
    record = await jobs.get_record(job_id)
    assert (record.status, record.error["type"]) == ("FAILED", "InternalError")
    assert "blobs" in record.error["message"]
    assert error == {"error": record.error}


async def test_a_caller_cancelled_at_any_moment_leaves_no_job_running(jobs, execute):
    execute(returning(({"n": 1}, {})))
    for turns in range(40):
        job_id = await jobs.create_job("p", {})
        caller = asyncio.create_task(jobs.run_job(job_id))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        caller.cancel()
        await asyncio.wait([caller])
        assert await jobs.run_job(job_id) == ({"n": 1}, {})


async def test_a_payload_whose_json_no_worker_could_be_sent_makes_no_job(jobs):
    room = MAX_JSON_BYTES - len(encode({"text": ""}))
    for text in ("x" * (room + 1), "\u00e9" * (room // 2 + 1)):
        with pytest.raises(NotStorableError, match="bytes of JSON"):
            await jobs.create_job("p", {"text": text})
    await jobs.create_job("p", {"text": "x" * (room - 100), "image": b"beside it"})
    assert len((await jobs.list_jobs(JobQuery())).items) == 1


async def test_all_jobs_become_due_whose_time_has_come_however_many(jobs, database, database_url):
    await database.writer.write(job_inserts.insert_batch, [new_job() for _ in range(job_changes.PROMOTE_PAGE + 1)])
    await asyncio.to_thread(sql, database_url, "UPDATE jobs SET due = false")
    await jobs.promote_and_expire()
    assert await asyncio.to_thread(sql, database_url, "SELECT count(*) FROM jobs WHERE NOT due") == [(0,)]
