"""What a database cannot hold has one verdict, whichever database it is."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from service.calls import current_call
from service.models import JobStatus
from tests.jobs.test_contract_edges import execute, returning

__all__ = ["execute"]


@pytest.mark.parametrize(
    "value",
    [
        "a\0b",
        "\ud800",
        float("nan"),
        float("inf"),
        2**63,
        -(2**63) - 1,
        {"a\0": 1},
        {"\udfff": 1},
        {1, 2},
        JobStatus.SUCCESS,
        Counter("a"),
    ],
    ids=[
        *("NUL", "lone surrogate", "NaN", "infinity", "2^63", "-2^63-1", "NUL key", "surrogate key", "set"),
        *("a kind of text", "a kind of dict"),
    ],
)
async def test_a_result_that_no_database_holds_is_invalid_output(jobs, execute, value):
    execute(returning(({"deep": [{"value": value}]}, {})))
    job_id = await jobs.create_job("p", {})
    result, error = await jobs.run_job(job_id)
    assert (result, error["error"]["type"]) == ({}, "InvalidOutput")
    record = await jobs.get_record(job_id)
    assert (record.status, record.error["type"], record.result) == ("FAILED", "InvalidOutput", None)


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        -(2**63),
        1.5e300,
        5e-324,
        1e16,
        -0.0,
        0.1,
        "\U0001f600\u2028\x7f",
        "",
        [],
        {},
        None,
        {"": [None, True]},
    ],
)
async def test_a_result_that_every_database_holds_comes_back_equal(jobs, execute, value):
    execute(returning(({"value": value}, {})))
    job_id = await jobs.create_job("p", {"value": value})
    assert await jobs.run_job(job_id) == ({"value": value}, {})
    record = await jobs.get_record(job_id)
    assert (record.payload, record.result) == ({"value": value}, {"value": value})


async def test_an_error_that_no_database_holds_is_told_without_what_cannot_be_held(jobs, execute):
    error = {"type": "ExecutionError", "message": "a\0b\ud800", "details": {"x": "\0"}}
    execute(returning(({}, {"error": error})))
    job_id = await jobs.create_job("p", {})
    await jobs.run_job(job_id)
    record = await jobs.get_record(job_id)
    assert (record.error["type"], record.error["message"]) == ("ExecutionError", "ab?")


async def test_what_a_plugin_printed_is_kept_without_what_cannot_be_held(jobs, execute):
    async def behave(payload):
        report = current_call.get().report
        report.output, report.traceback = "out\0put\ud800", "trace\0back"
        return {}, {"error": {"type": "ExecutionError", "message": "no"}}

    execute(behave)
    job_id = await jobs.create_job("p", {})
    await jobs.run_job(job_id)
    (attempt,) = await jobs.list_attempts(job_id)
    assert (attempt.outcome, attempt.output, attempt.traceback) == ("FAILED", "output?", "traceback")


async def test_progress_that_no_database_holds_is_shown_without_what_cannot_be_held(jobs, execute):
    async def behave(payload):
        current_call.get().on_progress(0.5, "half\0way")
        while (await jobs.get_record(job_id)).progress is None:
            await asyncio.sleep(0.01)
        return {}, {}

    execute(behave)
    job_id = await jobs.create_job("p", {})
    await jobs.run_job(job_id)
    assert (await jobs.get_record(job_id)).progress.message == "halfway"
