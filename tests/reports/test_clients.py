"""Real clients read a live database under load: each answers what the database holds, and no submission fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
import requests

from service.db.views import view_names
from tests.conftest import Postgres, sql, sqlite_url
from tests.reports.clients import ON_POSTGRESQL, ON_SQLITE, Client, Rows, duckdb_extension, rows_of
from tests.reports.load import loaded
from tests.reports.readers import reader_of
from tests.service.conftest import Process, until

# One group: each service is started once, not once for each process of the test run.
pytestmark = pytest.mark.xdist_group("clients")

PAGE = (Path(__file__).parents[2] / "docs/reporting-clients.md").read_text()
FILE = "data/jobs.db"  # what the page calls them
SERVER = "postgresql://reporting:choose-one@db.example.com/jobs"

#: More than a driver looks at before it decides of what type a column is.
SCHEDULED = 1_100

COUNTS = "SELECT plugin, submitted_count, succeeded_count, failed_count FROM report_plugins ORDER BY plugin"
JOBS = """
    SELECT CAST(job_id AS text), status, queue_s, run_s, error_type, cancel_reason FROM report_jobs ORDER BY job_id"""
FAILURES = """
    SELECT plugin, error_type, message_pattern, job_count, CAST(last_job_id AS text) FROM report_failures
    ORDER BY plugin"""
SIZES = " UNION ALL ".join(f"SELECT '{view}' AS name, count(*) AS size FROM {view}" for view in view_names())
NOT_FOLDED = """
    SELECT (SELECT count(*) FROM report_jobs WHERE status IN ('SUCCESS', 'FAILED', 'CANCELLED')),
           (SELECT count(*) FROM report_jobs)
    EXCEPT SELECT sum(succeeded_count + failed_count + cancelled_count), sum(submitted_count) FROM report_plugins"""


@dataclasses.dataclass(frozen=True)
class Place:
    """A live service, and where its database is: for the tests, and for a client."""

    service: Process
    url: str
    reader: str

    def begin(self) -> None:
        """Make many jobs that wait for their time, the newest of them cancelled, and some that end."""
        run_at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        jobs = [{"plugin": "echo", "payload": {}, "run_at": run_at}] * SCHEDULED
        batch = requests.post(f"{self.service.url}/v1/jobs/batch", json=jobs, timeout=60)
        assert batch.status_code == 202, batch.text
        newest = requests.get(f"{self.service.url}/v1/jobs?limit=1", timeout=30).json()["items"][0]["id"]
        assert requests.post(f"{self.service.url}/v1/jobs/{newest}/cancel", timeout=30).status_code == 200
        hook = {"url": "https://receiver.example/jobs", "events": ["job.cancelled"]}  # hears of nothing from now on
        assert requests.post(f"{self.service.url}/v1/webhooks", json=hook, timeout=30).status_code == 201
        with loaded(self.service.url):
            pass
        self.rest()

    def rest(self) -> None:
        """Return once every job that may run has ended, and the reports tell of all."""
        moving = "SELECT 1 FROM jobs WHERE status = 'RUNNING' OR (status = 'PENDING' AND due) LIMIT 1"
        until(lambda: not sql(self.url, moving) and not sql(self.url, NOT_FOLDED), timeout_s=60)

    def rows(self, query: str) -> Rows:
        return rows_of(sql(self.url, query))


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("clients") / "data"
    with _served(directory) as service:
        path = directory / "jobs.db"
        place = Place(service, sqlite_url(path), str(path))
        place.begin()
        yield place


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Place]:
    name = postgres.new(postgres.template)
    url = postgres.url(name)
    with contextlib.ExitStack() as stack:
        stack.callback(postgres.drop, name)
        reader = stack.enter_context(reader_of(url))
        service = _served(tmp_path_factory.mktemp("clients") / "data", "--database-url", url)
        place = Place(stack.enter_context(service), url, reader)
        place.begin()
        yield place


@contextlib.contextmanager
def _served(directory: Path, *options: str) -> Iterator[Process]:
    with contextlib.closing(Process(directory, *options, "--workers", "2", plugins=["raises"])) as service:
        yield service
        assert service.stop() == 0


def needs(program: str) -> pytest.MarkDecorator:
    """Where CI is true, a missing program fails instead."""
    missing = shutil.which(program) is None and os.environ.get("CI") != "true"
    return pytest.mark.skipif(missing, reason=f"there is no {program}")


CLIENTS = [
    pytest.param(database, client, id=f"{client.name} on {database}", marks=needs_of)
    for database, clients in (("sqlite", ON_SQLITE), ("postgresql", ON_POSTGRESQL))
    for client in clients
    for needs_of in [[needs(client.name)] if client.name in ("sqlite3", "psql") else []]
]


@pytest.mark.parametrize(("database", "client"), CLIENTS)
def test_a_client_reads_every_view_while_jobs_come_and_tells_what_the_database_holds(
    database: str, client: Client, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(database)
    before = int(place.rows("SELECT count(*) FROM report_jobs")[0][0])
    with loaded(place.service.url) as load:
        for view in view_names():
            assert client.read(place.reader, f"SELECT * FROM {view}"), view
        ((seen,),) = client.read(place.reader, "SELECT count(*) FROM report_jobs")
        assert before <= int(seen)
    place.rest()
    assert int(place.rows("SELECT sum(submitted_count) FROM report_plugins")[0][0]) == before + load.answers[202]
    for query in (COUNTS, JOBS, FAILURES, f"SELECT name, size FROM ({SIZES}) AS sizes ORDER BY name"):
        assert client.read(place.reader, query) == place.rows(query), query
    assert client.read(place.reader, "SELECT count(*) FROM report_jobs WHERE cancel_reason IS NOT NULL") == [("1",)]


@pytest.mark.parametrize(("database", "client"), CLIENTS)
def test_a_client_cannot_write(database: str, client: Client, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(database)
    jobs = place.rows("SELECT count(*) FROM jobs")
    refused = r"(?i)read.?only|permission denied|not valid 'read' queries"
    with pytest.raises((Exception, AssertionError), match=refused):
        client.ask(place.reader, f"DELETE FROM {client.prefix}jobs")
    assert place.rows("SELECT count(*) FROM jobs") == jobs


PROGRAMS = [
    pytest.param(
        "postgresql" if SERVER in program else "sqlite",
        language,
        program,
        id=f"{section.partition(chr(10))[0]} {number}",
        marks=[needs(name) for name in re.findall(r"^(sqlite3|psql)\b", program)],
    )
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    for number, (language, program) in enumerate(re.findall(r"```(sh|python)\n(.*?)```", section, re.DOTALL), 1)
    if not section.startswith("Datasette\n")  # has a test of its own
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which DuckDB finds the extensions that it would fetch otherwise."""
    home = tmp_path_factory.mktemp("home")
    with duckdb.connect() as database:
        ((platform,),) = database.execute("PRAGMA platform").fetchall()
    extensions = home / ".duckdb/extensions" / f"v{duckdb.__version__}" / platform
    extensions.mkdir(parents=True)
    for kind in ("sqlite", "postgres"):
        shutil.copy(duckdb_extension(kind), extensions)
    return home


@pytest.mark.parametrize(("database", "language", "program"), PROGRAMS)
def test_a_program_of_the_page_answers_while_jobs_come_and_tells_what_the_database_holds(
    database: str, language: str, program: str, request: pytest.FixtureRequest, home: Path, tmp_path: Path
) -> None:
    place: Place = request.getfixturevalue(database)
    text = program.replace(FILE, place.reader).replace(SERVER, place.reader)
    with loaded(place.service.url):
        _run(language, text, home, tmp_path)
    place.rest()
    printed = _run(language, text, home, tmp_path)
    for plugin, submitted, succeeded, failed in place.rows(COUNTS):
        counts = [succeeded] if "jobs.parquet" in program else [submitted, succeeded, failed]
        assert re.search(rf"{plugin}\W+" + r"\W+".join(counts) + r"\b", printed), f"{plugin} {counts}\n{printed}"


def _run(language: str, program: str, home: Path, directory: Path) -> str:
    interpreter = {"sh": ("bash", "-euc"), "python": (sys.executable, "-W", "error", "-c")}[language]
    done = subprocess.run(
        [*interpreter, program],
        cwd=directory,
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{program}\n{done.stderr}"
    return done.stdout


def test_the_page_has_a_program_for_each_client_and_database() -> None:
    found = {(parameters.values[0], str(parameters.id).rpartition(" ")[0]) for parameters in PROGRAMS}
    clients = {"Command line", "DuckDB", "pandas", "polars"}
    assert found == {(database, client) for database in ("sqlite", "postgresql") for client in clients}
