"""`dashboards/datasette.yaml` in the real Datasette, on a database that a service writes to meanwhile."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from playwright.sync_api import expect, sync_playwright

from service.db.view_versions import v2
from tests.api.browser import LAUNCH, Watch, needs_browser
from tests.conftest import sql
from tests.reports.load import loaded
from tests.reports.test_clients import Place, sqlite

__all__ = ["sqlite"]

pytestmark = pytest.mark.xdist_group("clients")

ROOT = Path(__file__).parents[2]
METADATA = ROOT / "dashboards/datasette.yaml"
PAGE = (ROOT / "docs/reporting-clients.md").read_text()
DESCRIBED = yaml.safe_load(METADATA.read_text())
QUERIES = DESCRIBED["databases"]["jobs"]["queries"]
CHARTS = DESCRIBED["plugins"]["datasette-dashboards"]["jobs"]["charts"]


class Datasette:
    """A Datasette that runs, and a visitor who opened the link that it printed."""

    def __init__(self, printed: str) -> None:
        running, link = re.search(r"running on (http://\S+)", printed), re.search(r"/-/auth-token\?\S+", printed)
        assert running, printed
        assert link, printed
        self.url = running[1]
        self.session = requests.Session()
        assert self.session.get(self.url + link[0], timeout=30).status_code == 200

    def ask(self, query: str, **parameters: str) -> list[dict[str, object]]:
        answer = self.session.get(f"{self.url}/jobs/{query}.json", params={"_shape": "array", **parameters}, timeout=30)
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, object]] = answer.json()
        return rows


@pytest.fixture(scope="module")
def datasette(sqlite: Place) -> Iterator[Datasette]:
    command = [sys.executable, "-m", "datasette", sqlite.reader, "--metadata", str(METADATA), "--root", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        printed = ""
        while "running on" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        # It says a line a request: somebody must take them.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Datasette(printed)
        process.terminate()
        process.wait(30)


def test_every_query_answers_while_jobs_come(datasette: Datasette, sqlite: Place) -> None:
    with loaded(sqlite.service.url):
        for name, query in QUERIES.items():
            assert datasette.ask(name), name
            page = datasette.session.get(f"{datasette.url}/jobs/{name}", timeout=30)
            assert page.status_code == 200
            assert query["title"] in page.text
            assert query["description"] in page.text
            assert "<tbody>" in page.text, name


def test_the_answers_are_those_of_the_api(datasette: Datasette, sqlite: Place) -> None:
    sqlite.rest()
    before = _total(datasette.ask("success-by-plugin"), "submitted_count")
    with loaded(sqlite.service.url) as load:
        assert _total(datasette.ask("success-by-plugin"), "submitted_count") >= before
    sqlite.rest()
    failed = _listed(sqlite, "FAILED")
    plugins = datasette.ask("success-by-plugin")
    assert _total(plugins, "failed_count") == len(failed)
    assert _total(plugins, "submitted_count") == before + load.answers[202]
    for status, column in (("SUCCESS", "succeeded_count"), ("CANCELLED", "cancelled_count")):
        assert _total(plugins, column) == len(_listed(sqlite, status))
    assert datasette.ask("newest-failures")[0]["job_id"] == failed[0]
    (kind,) = datasette.ask("failures")
    assert (kind["plugin"], kind["job_count"], kind["last_job_id"] in failed) == ("raises", len(failed), True)
    of_echo = datasette.ask("hours", plugin="echo")
    assert _total(of_echo, "failed_count") == 0
    assert _total(of_echo, "submitted_count") > 1_000
    assert [row["state"] for row in datasette.ask("workers")] == ["working"]
    assert {row["run_s"] for row in datasette.ask("slowest-jobs")} <= {
        run_s for (run_s,) in sql(sqlite.url, "SELECT run_s FROM report_jobs")
    }


def _total(rows: list[dict[str, object]], column: str) -> int:
    return sum(int(str(row[column])) for row in rows)


def _listed(place: Place, status: str) -> list[str]:
    """The ids of all jobs of a status, newest first, as the API lists them."""
    ids: list[str] = []
    path = f"/v1/jobs?status={status}&limit=500"
    while path:
        answer = requests.get(place.service.url.rstrip("/") + path, timeout=30).json()
        ids += [job["id"] for job in answer["items"]]
        path = f"/v1/jobs?status={status}&limit=500&cursor={answer['next']}" if answer["next"] else ""
    return ids


def test_nobody_sees_anything_without_the_link(datasette: Datasette) -> None:
    for path in ("/", "/jobs", "/jobs.json?sql=select+1", "/jobs/jobs.json", "/jobs/backlog", "/-/dashboards/jobs"):
        assert requests.get(datasette.url + path, timeout=30).status_code == 403, path


def test_it_cannot_write(datasette: Datasette) -> None:
    answer = datasette.session.get(f"{datasette.url}/jobs.json", params={"sql": "DELETE FROM jobs"}, timeout=30)
    assert answer.status_code == 400


@needs_browser
def test_the_dashboard_draws_its_charts_while_jobs_come(datasette: Datasette, sqlite: Place) -> None:
    drawn = [chart for chart in CHARTS.values() if chart["library"] == "vega-lite"]
    tables = [chart for chart in CHARTS.values() if chart["library"] == "table"]
    with sync_playwright() as playwright, loaded(sqlite.service.url):
        browser = playwright.chromium.launch(**LAUNCH)
        context = browser.new_context()
        context.add_cookies(
            [
                {"name": cookie.name, "value": str(cookie.value), "url": datasette.url}
                for cookie in datasette.session.cookies
            ]
        )
        page = context.new_page()
        expect.set_options(timeout=30_000)
        watch = Watch(page, datasette.url)
        page.goto(datasette.url + "/-/dashboards/jobs")
        for chart in CHARTS.values():
            expect(page.get_by_text(chart["title"], exact=True).first).to_be_visible()
        expect(page.locator("svg.marks")).to_have_count(len(drawn))
        for picture in page.locator("svg.marks").all():
            # Each has marks that stand for rows, beside its axes.
            expect(picture.locator(".mark-rect.role-mark path, .mark-symbol.role-mark path").first).to_be_attached()
        expect(page.locator("table tbody tr")).not_to_have_count(0)
        assert page.locator("table").count() == len(tables)
        expect(page.locator("#chart-submitted")).to_have_text(re.compile(r"\s*\d{4}\s*"))
        browser.close()
    assert watch.foreign == []
    assert [said for said in watch.complaints if not said.startswith("WARN")] == []  # of a newer Vega-Lite


def test_the_queries_are_of_views_and_the_page_names_each() -> None:
    tables = re.compile(r"\b(?:FROM|JOIN) (\w+)")
    texts = [query["sql"] for query in QUERIES.values()] + [chart["query"] for chart in CHARTS.values()]
    assert {name for text in texts for name in tables.findall(text)} <= set(v2.COLUMNS)
    assert set(re.findall(r"`/jobs/([\w-]+)`", PAGE)) == set(QUERIES)
    placed = {name for row in DESCRIBED["plugins"]["datasette-dashboards"]["jobs"]["layout"] for name in row}
    assert placed == set(CHARTS)
    assert {chart["db"] for chart in CHARTS.values()} == {"jobs"}
