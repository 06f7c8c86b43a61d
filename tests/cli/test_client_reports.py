"""`client.reports` and the command `report`, against a running service."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import subprocess

import pyarrow.parquet
import pytest

from service.cli.reports import _TIMES
from service.client import ApiError, Client
from service.report_models import REPORTS, ColumnType

from .conftest import ROOT, RunningService, fenced
from .relays import cutting

pytestmark = pytest.mark.xdist_group("cli")


async def test_the_client_lists_reports_and_reads_one_in_pages_and_as_a_file(service: RunningService) -> None:
    async with Client(service.url) as client:
        found = {report.name: report for report in await client.reports.list()}
        assert found["jobs"].view == "report_jobs"
        assert found["buckets"].columns[0].unit == "ms"
        rows = [row async for row in client.reports.rows("buckets")]
        assert len(rows) > 100
        assert [row async for row in client.reports.rows("buckets", columns=["up_to_ms"], limit=3)] == [
            {"up_to_ms": n} for n in range(3)
        ]
        lines = b"".join([piece async for piece in client.reports.file("buckets", "ndjson")]).splitlines()
        assert [json.loads(line) for line in lines] == rows
        with pytest.raises(ApiError) as refused:
            async for _ in client.reports.file("jobs", "csv", until="2999-01-01T00:00:00Z"):
                pass
        assert refused.value.status == 409


def test_a_report_is_a_table_or_a_file(service: RunningService) -> None:
    more = ("--tag", "reported", "--metadata", '{"of": ["ü", true, null]}')
    assert service.cli("submit", "--plugin", "echo", "--payload", "{}", *more, "--wait").returncode == 0
    listed = service.cli("report")
    assert "schema_version" in listed.stdout
    table = service.cli("report", "jobs", "--plugin", "echo")
    assert table.stdout.split()[:3] == ["job_id", "plugin", "status"]
    ids = [row["job_id"] for row in json.loads(service.cli("report", "jobs", "--plugin", "echo", "--json").stdout)]
    assert all(job_id in table.stdout for job_id in ids[:50])
    documents = service.cli(
        "report", "jobs", "--plugin", "echo", "--columns", "tags,metadata", "--limit", "9999"
    ).stdout
    assert re.search(r'^\["reported"\] +\{"of": \["ü", true, null\]\}$', documents, re.MULTILINE), documents
    for name in ("jobs.CSV", "jobs.csv", "jobs.ndjson", "jobs.parquet", "jobs.json"):
        done = service.cli("report", "jobs", "--plugin", "echo", "--columns", "job_id,tags", "-o", name)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    read = service.folder
    assert [row["job_id"] for row in csv.DictReader((read / "jobs.csv").read_text().splitlines())] == ids
    assert (read / "jobs.CSV").read_bytes() == (read / "jobs.csv").read_bytes()
    assert [json.loads(line)["job_id"] for line in (read / "jobs.ndjson").read_text().splitlines()] == ids
    assert pyarrow.parquet.read_table(read / "jobs.parquet").column("job_id").to_pylist() == ids
    assert [row["job_id"] for row in json.loads((read / "jobs.json").read_text())] == ids
    assert not list(read.glob("*.part"))


def test_a_table_that_ends_early_says_so(service: RunningService) -> None:
    short = service.cli("report", "buckets")
    assert len(short.stdout.splitlines()) == 1 + 50
    assert short.stderr == "These are the first 50 rows: --limit shows more, --format csv all of them.\n"
    chosen = service.cli("report", "buckets", "--limit", "60")
    assert (len(chosen.stdout.splitlines()), chosen.stderr) == (1 + 60, "")


def test_every_time_in_a_table_is_written_alike(service: RunningService) -> None:
    assert {
        column.name
        for report in REPORTS.values()
        for column in report.columns
        if column.type is ColumnType.TIME and not column.name.endswith("_at")
    } == _TIMES
    table = service.cli("report", "freshness", "--columns", "as_of,rates_until").stdout
    assert re.fullmatch(r"as_of +rates_until\n(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d *){2}\n", table), table


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_report_for_a_pipe_is_written_into_it(service: RunningService, form: str) -> None:
    pipe = service.folder / f"pipe.{form}"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        done = service.cli("report", "buckets", "--limit", "3", "-o", pipe)
        if not pipe.is_fifo():
            reader.kill()
        written, _ = reader.communicate()
    assert done.returncode == 0, done.stderr
    assert pipe.is_fifo()
    assert b"up_to_ms" in written


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nothing",), "There is no report 'nothing'. See: jobservice report"),
        (("jobs", "-o", "jobs"), "give --format"),
        (("jobs", "-o", "jobs.csv", "--format", "table"), "A table is for people"),
        (("nothing", "-o", "missing/jobs.csv"), "--output missing/jobs.csv: there is no folder missing."),
        (("nothing", "-o", "site", "--format", "csv"), "--output site is a folder: name a file in it."),
        (("jobs", "--until", "2999-01-01T00:00:00Z"), "The window is not over"),
        (("jobs", "--columns", "a"), "is no column of this report"),
        (("buckets", "--plugin", "echo"), "The report buckets does not take --plugin, but --columns, --limit."),
        (
            ("plugins", "--from", "2026-01-01T00:00:00Z", "--by", "created_at", "-o", "plugins.csv"),
            "The report plugins does not take --from or --by, but --columns, --plugin, --limit.",
        ),
        (
            ("hourly", "--by", "hour", "--json"),
            "The report hourly does not take --by, but --columns, --plugin, --from, --until, --limit.",
        ),
        (("--plugin", "echo"), "for one of the reports: name it"),
        (("--output", "jobs.csv"), "for one of the reports: name it"),
        (("jobs", "--json", "--format", "csv"), "--json asks for JSON, and --format"),
        (("jobs", "--json", "--output", "jobs.csv"), "for csv: leave one of them"),
        (("jobs", "--limit", "0"), "--limit"),
    ],
)
def test_what_cannot_be_reported_is_told(service: RunningService, arguments: tuple[str, ...], told: str) -> None:
    done = service.cli("report", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not list(service.folder.glob(".*.part"))


async def test_the_windows_of_the_page_go_on_behind_the_last_whole_one(service: RunningService) -> None:
    (window,) = (block for block in fenced(ROOT / "docs/reporting.md", "sh") if "LAST" in block)

    async def ends(url: str, last: str) -> str:
        script = window.replace("http://127.0.0.1:8080", url) + '\necho "$LAST"'
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", script, cwd=service.folder, env=service.environment | {"LAST": last}, stdout=subprocess.PIPE
        )
        return (await shell.communicate())[0].decode().strip()

    first = await ends(service.url, "")
    assert first > "2026"
    async with cutting(service.url, [1_000]) as (relay, _):
        assert await ends(relay, "2026-01-01T00:00:00.000Z") == "2026-01-01T00:00:00.000Z"
        assert await ends(relay, first) >= first
    assert await ends("http://127.0.0.1:9", first) == first
