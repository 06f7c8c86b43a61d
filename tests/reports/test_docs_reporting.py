"""`docs/reporting.md` names every view and column, and its examples answer as printed, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from service.db.database import Database
from service.db.engine import sqlite_path
from service.db.statements import Statement
from service.db.view_versions import v1, v2
from service.db.views import view_names
from service.report_models import REPORTS
from tests.conftest import sql, sqlite_url
from tests.reports.example import answer, example
from tests.reports.readers import reader_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reporting.md").read_text()
VIEWS = {
    section.partition("\n")[0]: section for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
}  # by their names
VERSIONS = (v1, v2)
CATALOGUE = {
    "sqlite": "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'view'",
    "postgresql": "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    " AND table_name LIKE 'report!_%' ESCAPE '!' ORDER BY table_name, ordinal_position",
}


def catalogue(url: str) -> dict[str, tuple[str, ...]]:
    """The columns of each view that the database has, in order."""
    columns: dict[str, list[str]] = {}
    for view, column in sql(url, CATALOGUE[url.partition("+")[0]]):
        columns.setdefault(view, []).append(column)
    return {view: tuple(names) for view, names in columns.items()}


def documented(section: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_page_the_code_and_the_database_name_the_same_views_and_columns(database_url):
    assert catalogue(database_url) == v2.COLUMNS
    assert {view: documented(section) for view, section in VIEWS.items()} == v2.COLUMNS
    assert set(view_names()) == set(v2.COLUMNS)
    assert sql(database_url, "SELECT version FROM report_schema_version") == [(len(VERSIONS),)]


def test_the_service_tells_of_columns_what_the_page_does():
    for report in REPORTS.values():
        rows = re.findall(r"^\| `(\w+)` \| *([^|]*?) *\| *([^|]*?) *\|$", VIEWS[report.view], re.MULTILINE)
        told = [(name, unit, re.sub(r"\[(.*?)\]\(#.*?\)", r"\1", meaning)) for name, unit, meaning in rows]
        assert told == [(column.name, column.unit, column.meaning) for column in report.columns]


def test_every_column_has_a_meaning():
    for view, section in VIEWS.items():
        rows = re.findall(r"^\| `(\w+)` \|[^|]*\| *([^|]*?) *\|$", section, re.MULTILINE)
        assert [name for name, meaning in rows if meaning] == list(v2.COLUMNS[view])


@pytest.mark.parametrize(("before", "after"), list(itertools.pairwise(VERSIONS)))
def test_a_version_keeps_what_the_one_before_promised(before, after):
    promised = {(view, column) for view, columns in before.COLUMNS.items() for column in columns}
    kept = {(view, column) for view, columns in after.COLUMNS.items() for column in columns}
    assert promised - before.DEPRECATED <= kept


def test_a_unit_stands_in_the_name_of_every_measure():
    units = {
        "s": "_s",
        "ms": "_ms",
        "bytes": "_bytes",
        "jobs": "_count",
        "executions": "_count",
        "deliveries": "_count",
        "attempts": "_count",
        "jobs/s": "_per_s",
        "UTC": "",
    }
    for section in VIEWS.values():
        for column, unit in re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE):
            assert column.endswith(units.get(unit, "")), column


def test_the_examples_answer_as_printed(database_url, tmp_path):
    examples = re.findall(r"```sql\n(SELECT.*?)```\n```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert len(examples) == len(VIEWS)

    async def ask() -> None:
        async with example(database_url, tmp_path) as database:
            for query, printed in examples:
                assert await answer(database, query) == printed, query

    asyncio.run(ask())


def test_the_role_of_the_page_reads_the_views_and_nothing_else(postgres_url, postgres):
    sql(postgres_url, "COMMENT ON VIEW report_schema_version IS 'of an older version'")
    with reader_of(postgres_url) as reader:
        asyncio.run(_upgraded(postgres_url))
        asyncio.run(_read_as(reader))


def test_the_diagram_joins_columns_that_the_views_have():
    diagram = re.search(r"```mermaid\nerDiagram\n(.*?)```", PAGE, re.DOTALL)
    assert diagram
    lines = re.findall(r'^ +(\w+) \S+ (\w+) : "([\w, =]+)"$', diagram[1], re.MULTILINE)
    assert len(lines) == len(diagram[1].splitlines())
    for one, other, columns in lines:
        first, equals, second = columns.partition(" = ")
        of_both = [first, second] if equals else [columns, columns]
        for view, names in zip((one, other), of_both, strict=True):
            assert set(names.split(", ")) <= set(v2.COLUMNS[view]), f"{one} and {other}"


async def _upgraded(url: str) -> None:
    from service.db.migrate import upgrade

    await upgrade(url)


async def _read_as(url: str) -> None:
    reader = await asyncpg.connect(url)
    try:
        for view in view_names():
            await reader.fetch(f"SELECT * FROM {view} LIMIT 1")
        for refused in ("SELECT 1 FROM jobs", "SELECT 1 FROM blobs", "SELECT 1 FROM api_keys"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.fetch(refused)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await reader.execute("CREATE TEMP TABLE mine (a int)")
        assert await reader.fetchval("SHOW statement_timeout") == "1min"
        assert await reader.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
    finally:
        await reader.close()


def test_a_read_only_uri_reads_while_the_writer_writes_and_cannot_write(database_file, tmp_path):
    async def live() -> None:
        async with example(sqlite_url(database_file), tmp_path) as database:
            uri = f"file:{database_file}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                (before,) = reader.execute("SELECT count(*) FROM report_jobs").fetchone()
                await _submit(database)
                assert reader.execute("SELECT count(*) FROM report_jobs").fetchone() == (before,)
                reader.execute("COMMIT")
                assert reader.execute("SELECT count(*) FROM report_jobs").fetchone() == (before + 1,)
                with pytest.raises(sqlite3.OperationalError, match="readonly"):
                    reader.execute("DELETE FROM jobs")

    asyncio.run(live())


def test_the_program_of_the_page_reads_the_database(database_file, tmp_path, capsys):
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program

    async def live() -> None:
        async with example(sqlite_url(database_file), tmp_path):
            exec(program[1].replace("data/jobs.db", str(database_file)), {})

    asyncio.run(live())
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed.keys() == {"CANCELLED", "FAILED", "PENDING", "RUNNING", "SUCCESS"}


async def _submit(database: Database) -> None:
    from service.db import job_inserts
    from tests.store.test_writer import new_job

    await database.writer.write(job_inserts.insert, new_job())


def test_a_snapshot_is_whole_while_the_writer_writes_and_replaces_nothing(database_file, tmp_path):
    target = tmp_path / "copy.db"
    command = [sys.executable, "-m", "service", "snapshot", str(target), "--database-url", sqlite_url(database_file)]

    async def live() -> None:
        async with example(sqlite_url(database_file), tmp_path) as database:
            copying = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            written = 0
            while copying.returncode is None:
                await _submit(database)
                written += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(copying.wait()), 0.01)
            assert copying.returncode == 0
            assert written > 1
            count = Statement(sa.text("SELECT count(*) FROM report_jobs"))
            ((now,),) = await database.reader.fetch(count)
            ((copied,),) = sql(sqlite_url(target), "SELECT count(*) FROM report_jobs")
            assert now - written <= copied <= now

    asyncio.run(live())
    assert sql(sqlite_url(target), "PRAGMA integrity_check") == [("ok",)]
    before = target.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "File exists" in again.stderr
    assert target.read_bytes() == before
    assert sqlite_path(sqlite_url(target)) == target
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_snapshot_of_a_postgresql_database_names_the_tool_for_it(postgres_url, tmp_path):
    command = [sys.executable, "-m", "service", "snapshot", str(tmp_path / "x"), "--database-url", postgres_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pg_dump" in done.stderr
