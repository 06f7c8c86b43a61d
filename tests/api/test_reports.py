"""Reports over a real socket, on both databases: forms read back by other readers, windows, tenants, roles."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from service.access import Role
from service.api.report_formats import CsvEncoder
from service.db.view_versions.v2 import COLUMNS
from service.report_models import REPORTS, ColumnType
from tests.auth.conftest import Guarded, eventually, guarded, start

__all__ = ["guarded", "start"]

OF_OPERATORS = {"workers", "storage"}
OF_ADMINS = {"webhooks"}
EARLY = "2000-01-01T00:00:00Z"


async def read(running: Guarded, key: str, path: str, **headers: str) -> bytes:
    answer = await raw(running, key, path, **headers)
    assert answer[0] == 200, answer
    return answer[2]


async def raw(running: Guarded, key: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    headers["Authorization"] = f"Bearer {key}"
    async with running._session.get(f"{running.url}/v1/reports{path}", headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.read()


async def pages(running: Guarded, key: str, path: str) -> list[dict[str, Any]]:
    """All rows, page after page, along the links."""
    rows, place = [], path
    while place:
        _, headers, body = await raw(running, key, place)
        answer = json.loads(body)
        rows += answer["items"]
        assert bool(answer["next"]) is ("Link" in headers)
        place = headers["Link"][1:].partition(">")[0].removeprefix("/v1/reports") if answer["next"] else ""
    return rows


async def finished(running: Guarded, key: str, count: int, **options: Any) -> list[str]:
    """Ids of jobs that have ended and are in the reports."""
    sent = [await running.submit(key, payload={"n": n}, **options) for n in range(count)]
    ids = [answer.json()["id"] for answer in sent]
    for job_id in ids:
        await running.request("GET", f"/v1/jobs/{job_id}?wait=30", key)

    async def are_counted() -> bool:
        return len(await pages(running, key, f"/jobs?columns=job_id&from={EARLY}")) >= count

    await eventually(are_counted)
    return ids


def test_the_reports_are_the_views_column_by_column() -> None:
    assert {report.view: tuple(each.name for each in report.columns) for report in REPORTS.values()} == dict(COLUMNS)


async def test_every_report_is_the_same_in_every_form(guarded: Guarded) -> None:
    key = await guarded.key("default", Role.ADMIN)
    odd = 'a "quoted",\r\n=tag'
    await finished(guarded, key, 3, tags=[odd], metadata={"of": ["é", None]})
    listed = {item["name"]: item for item in json.loads(await read(guarded, key, ""))["items"]}
    assert listed.keys() == REPORTS.keys()
    for name, report in REPORTS.items():
        # What follows a clock may have changed between two answers.
        columns = [each for each in report.columns if not each.name.startswith(("as_of", "rates", "beat", "oldest"))]
        query = "?columns=" + ",".join(each.name for each in columns) if columns else "?columns=as_of"
        rows = await pages(guarded, key, f"/{name}{query}&limit=7")
        lines = await read(guarded, key, f"/{name}{query}", Accept="application/x-ndjson")
        table = pyarrow.parquet.read_table(io.BytesIO(await read(guarded, key, f"/{name}{query}&format=parquet")))
        text = (await read(guarded, key, f"/{name}{query}", Accept="text/csv")).decode()
        head, *records = csv.reader(io.StringIO(text, newline=""))
        if not columns:
            continue
        if name != "backlog":
            assert [json.loads(line) for line in lines.splitlines()] == rows
        assert head == table.column_names == [each.name for each in columns]
        assert len(records) == table.num_rows == len(rows)
        for row, record, typed in zip(rows, records, table.to_pylist(), strict=True):
            for column, cell in zip(columns, record, strict=True):
                value = row[column.name]
                assert _of_csv(column.type, cell) == value, (name, column.name)
                assert _of_parquet(column.type, typed[column.name]) == value, (name, column.name)
    assert (await pages(guarded, key, "/jobs?columns=tags,metadata"))[0] == {
        "tags": [odd], "metadata": {"of": ["é", None]},
    }  # fmt: skip


def _of_csv(kind: ColumnType, cell: str) -> Any:
    if cell == "":
        return None
    readers: dict[ColumnType, Any] = {ColumnType.INTEGER: int, ColumnType.NUMBER: float, ColumnType.JSON: json.loads}
    return readers.get(kind, str)(cell)


def _of_parquet(kind: ColumnType, value: Any) -> Any:
    if kind is ColumnType.TIME and value is not None:
        assert isinstance(value, datetime)
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.loads(value) if kind is ColumnType.JSON else value


def test_nothing_and_empty_text_are_two_things_in_csv() -> None:
    columns = REPORTS["jobs"].columns[:2]
    encoder = CsvEncoder(columns)
    assert encoder.page([(None, ""), ("", None)]) + encoder.end() == b'job_id,tenant\r\n,""\r\n"",\r\n'
    alone = CsvEncoder(columns[:1])
    assert alone.page([(None,)]) == b'job_id\r\n""\r\n'
    assert CsvEncoder(columns).end() == b"job_id,tenant\r\n"


@pytest.mark.parametrize("report", ["jobs", "attempts"])
async def test_windows_have_every_job_once_while_jobs_are_ending(guarded: Guarded, report: str) -> None:
    key = await guarded.key("acme", *Role)
    stop = asyncio.Event()
    sent: list[str] = []

    async def submit() -> None:
        while not stop.is_set():
            sent.append((await guarded.submit(key)).json()["id"])

    submitting = [asyncio.create_task(submit()) for _ in range(2)]
    seen: list[str] = []
    begin, count = EARLY, 0
    async with asyncio.timeout(60):
        while count < 3:
            path = f"/{report}?from={begin}&columns=job_id&format=ndjson"
            status, headers, body = await raw(guarded, key, path)
            if status == 409:  # nothing was counted yet
                continue
            end = headers["Report-Until"]
            lines = [json.loads(line)["job_id"] for line in body.splitlines()]
            again = await pages(guarded, key, f"/{report}?from={begin}&until={end}&columns=job_id&limit=50")
            assert [row["job_id"] for row in again] == lines, "a closed window has changed"
            seen += lines
            count += bool(lines)
            begin = end
    stop.set()
    await asyncio.gather(*submitting)

    async def has_the_rest() -> bool:
        nonlocal begin
        _, headers, body = await raw(guarded, key, f"/{report}?from={begin}&columns=job_id&format=ndjson")
        seen.extend(json.loads(line)["job_id"] for line in body.splitlines())
        begin = headers["Report-Until"]
        return len(seen) >= len(sent)

    await eventually(has_the_rest)
    assert sorted(seen) == sorted(sent)


async def test_a_window_that_is_not_over_is_not_given_out(guarded: Guarded) -> None:
    key = await guarded.key("default", Role.REPORT, Role.SUBMIT, Role.READ)
    await finished(guarded, key, 1)
    for by in ("finished_at", "created_at"):
        status, headers, body = await raw(guarded, key, f"/jobs?until=2999-01-01T00:00:00Z&by={by}")
        problem = json.loads(body)
        assert (status, problem["type"], headers["Retry-After"]) == (409, "/problems/report-window-open", "1")
        assert problem["errors"][0]["pointer"] == "/until"
    answer = json.loads(await read(guarded, key, f"/jobs?by=created_at&from={EARLY}"))
    assert answer["items"] == []  # a minute has not passed
    assert answer["until"] < answer["as_of"]


async def test_a_tenant_sees_its_own_rows_alone(guarded: Guarded) -> None:
    keys = {tenant: await guarded.key(tenant, Role.ADMIN) for tenant in ("default", "acme", "globex")}
    made = {tenant: set(await finished(guarded, key, 2)) for tenant, key in keys.items() if tenant != "globex"}
    made["globex"] = set()
    hook = {"url": "https://example.com/hook"}
    assert (await guarded.request("POST", "/v1/webhooks", keys["acme"], json=hook)).status == 201
    for tenant, key in keys.items():
        for name in ("jobs", "attempts"):
            for query in ("?limit=1", f"?from={EARLY}", f"?limit=1&from={EARLY}"):
                rows = await pages(guarded, key, f"/{name}{query}")
                assert {row["job_id"] for row in rows} == made[tenant], (tenant, name, query)
        for name, report in REPORTS.items():
            if report.column("tenant"):
                rows = await pages(guarded, key, f"/{name}")
                assert {row["tenant"] for row in rows} <= {tenant}
                lines = (await read(guarded, key, f"/{name}?format=ndjson")).splitlines()
                assert {json.loads(line)["tenant"] for line in lines} <= {tenant}
    cursor = json.loads(await read(guarded, keys["acme"], "/jobs?limit=1"))["next"]
    assert {row["tenant"] for row in await pages(guarded, keys["default"], f"/jobs?cursor={cursor}")} <= {"default"}


async def test_a_key_reads_the_reports_of_its_role_and_tenant(guarded: Guarded) -> None:
    everybodys = REPORTS.keys() - OF_OPERATORS - OF_ADMINS
    for tenant, role, allowed in (
        ("default", Role.REPORT, everybodys | OF_OPERATORS),
        ("acme", Role.REPORT, everybodys),
        ("default", Role.ADMIN, REPORTS.keys()),
        ("acme", Role.ADMIN, everybodys | OF_ADMINS),
        ("default", Role.READ, set()),
    ):
        key = await guarded.key(tenant, role)
        found = {name for name in REPORTS if (await raw(guarded, key, f"/{name}"))[0] == 200}
        assert found == allowed, (tenant, role)
        status, _, body = await raw(guarded, key, "")
        if role is Role.READ:
            assert status == 403
        else:
            assert {item["name"] for item in json.loads(body)["items"]} == allowed


def _cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


SOME_ID = "01890000-0000-7000-8000-000000000000"


UNFIT = [
    ("/jobs?columns=secret", "/columns"),
    ("/jobs?columns=job_id,", "/columns"),
    ("/jobs?format=xml", "/format"),
    ("/jobs?limit=0", "/limit"),
    ("/jobs?limit=99999999999999999999", "/limit"),
    ("/jobs?by=run_at", "/by"),
    ("/jobs?from=yesterday", "/from"),
    ("/jobs?tenant=acme", "/tenant"),
    ("/hourly?by=hour", "/by"),
    ("/plugins?from=2026-01-01T00:00:00Z", "/from"),
    ("/storage?plugin=echo", "/plugin"),
    ("/jobs?plugin=%00", "/plugin"),
    ("/jobs?cursor=x", "/cursor"),
    ("/freshness?cursor=" + _cursor(None), "/cursor"),
    ("/jobs?cursor=" + _cursor(None), "/cursor"),
    ("/jobs?cursor=" + _cursor(None, "no id"), "/cursor"),
    ("/jobs?cursor=" + _cursor(None, SOME_ID, 1), "/cursor"),
    ("/jobs?cursor=" + _cursor("2026-01-01T00:00:00.000Z", SOME_ID), "/cursor"),
    ("/attempts?cursor=" + _cursor(None, SOME_ID, 2**63), "/cursor"),
    ("/attempts?cursor=" + _cursor(None, SOME_ID, True), "/cursor"),
    ("/hourly?cursor=" + _cursor(None, "2026-13-01T00:00:00.000Z", "a", "b"), "/cursor"),
    ("/plugins?cursor=" + _cursor(None, "a\0", "b"), "/cursor"),
    ("/jobs?cursor=" + _cursor({"a": 1}, SOME_ID), "/cursor"),
]


async def test_what_does_not_fit_is_refused_by_name(guarded: Guarded) -> None:
    key = await guarded.key("default", Role.ADMIN)
    for path, pointer in UNFIT:
        status, _, body = await raw(guarded, key, path)
        assert (status, json.loads(body)["errors"][0]["pointer"]) == (400, pointer), path


async def test_a_report_or_form_that_there_is_not(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await guarded.key("default", Role.ADMIN)
    for path in ("/nothing", "/report_jobs", "/jobs/1"):
        assert (await raw(guarded, key, path))[0] == 404
    status, _, body = await raw(guarded, key, "/jobs", Accept="text/html")
    assert (status, json.loads(body)["type"]) == (406, "/problems/not-acceptable")
    for accept, expected in (
        ("text/html, */*;q=0.1", "application/json"),
        ("text/csv;q=0.9, application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("text/*", "text/csv; charset=utf-8"),
    ):
        assert (await raw(guarded, key, "/buckets", Accept=accept))[1]["Content-Type"] == expected

    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where the extra is not installed
    status, _, body = await raw(guarded, key, "/buckets?format=parquet")
    assert status == 406
    assert "pip install 'jobservice[parquet]'" in json.loads(body)["detail"]
