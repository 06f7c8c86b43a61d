"""`dashboards/grafana.json` is of Grafana's own types, and each of its queries answers on PostgreSQL."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
from datetime import datetime
from numbers import Number
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from grafana_foundation_sdk.cog import encoder, plugins, runtime
from grafana_foundation_sdk.models.dashboard import Dashboard, VariableType

from service.db.view_versions import v2
from tests.reports.example import example
from tests.reports.readers import reader_of

DASHBOARD = json.loads((Path(__file__).parents[2] / "dashboards/grafana.json").read_text())
PANELS = DASHBOARD["panels"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
SOURCE = {"type": "grafana-postgresql-datasource", "uid": "${datasource}"}
COLUMNS_OF_A_GRID = 24

#: The days of the example's history.
FROM, TO = "2030-01-01T00:00:00Z", "2030-01-05T00:00:00Z"


def lost(written: Any, read: Any, place: str = "") -> list[str]:
    """Where something of `written` is not as it was after Grafana's types have read it."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [
            each
            for key in written
            for each in (lost(written[key], read[key], f"{place}/{key}") if key in read else [f"{place}/{key}"])
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [each for n, pair in enumerate(zip(written, read, strict=True)) for each in lost(*pair, f"{place}/{n}")]
    return [] if written == read else [place]


def through_grafanas_types(dashboard: dict[str, Any]) -> list[str]:
    plugins.register_default_plugins()
    read = Dashboard.from_json(copy.deepcopy(dashboard))
    return lost(dashboard, json.loads(json.dumps(read, cls=encoder.JSONEncoder)))


def overlaps(panels: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Titles of panels that share a cell of the grid."""
    return [
        (one["title"], other["title"])
        for one, other in itertools.combinations(panels, 2)
        if _cells(one) & _cells(other)
    ]


def _cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return set(itertools.product(columns, rows))


def test_it_is_read_by_grafanas_types_without_loss() -> None:
    assert through_grafanas_types(DASHBOARD) == []
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert {panel["type"] for panel in PANELS} <= set(runtime.Runtime().panelcfg_variants)
    assert {variable["type"] for variable in VARIABLES.values()} <= set(VariableType)


def test_what_grafana_does_not_know_is_found() -> None:
    planted = copy.deepcopy(DASHBOARD)
    planted["panels"][0]["gridpos"] = {}
    planted["panels"][0]["fieldConfig"]["defaults"]["unity"] = "s"
    planted["panels"][1]["options"]["colourMode"] = "value"
    assert through_grafanas_types(planted) == [
        "/panels/0/fieldConfig/defaults/unity", "/panels/0/gridpos", "/panels/1/options/colourMode",
    ]  # fmt: skip
    planted["panels"][1]["gridPos"] = planted["panels"][0]["gridPos"]
    assert overlaps(planted["panels"]) == [(PANELS[0]["title"], PANELS[1]["title"])]


def test_each_panel_has_a_place_of_its_own_and_one_query_of_the_chosen_database() -> None:
    assert overlaps(PANELS) == []
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS_OF_A_GRID
        assert min(place["w"], place["h"]) > 0
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == SOURCE
        (target,) = panel["targets"]
        assert target["datasource"] == SOURCE
        assert (target["refId"], target["rawQuery"], target["editorMode"]) == ("A", True, "code")
        assert target["format"] == ("time_series" if panel["type"] == "timeseries" else "table")
    for unique in ("id", "title"):
        assert len({panel[unique] for panel in PANELS}) == len(PANELS)
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == SOURCE["type"]


def expanded(query: str, chosen: dict[str, list[str]]) -> str:
    """A query as Grafana sends it: macros as its documents say, and a variable of many values as quoted ones."""
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{FROM}' AND '{TO}'", query)
    for name, values in chosen.items():
        query = re.sub(rf"\${name}\b", ",".join(f"'{value}'" for value in values), query)
    assert "$" not in query, query
    return query


def test_every_query_answers_what_its_panel_needs(postgres_url: str, tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        async with example(postgres_url, tmp_path):
            reader = await asyncpg.connect(url)
            try:
                chosen = {
                    name: [str(value) for (value,) in await reader.fetch(variable["query"])]
                    for name, variable in VARIABLES.items()
                    if variable["type"] == "query"
                }
                assert chosen == {"tenant": ["acme", "default"], "plugin": ["classify", "ocr", "thumbnail"]}
                answers = {
                    panel["title"]: await reader.fetch(expanded(panel["targets"][0]["rawSql"], chosen))
                    for panel in PANELS
                }
                sums = await reader.fetchrow(
                    "SELECT sum(submitted_count), sum(succeeded_count), sum(failed_count), sum(cancelled_count)"
                    " FROM report_plugins"
                )
            finally:
                await reader.close()
        for panel in PANELS:
            _check(panel, answers[panel["title"]])
        ended = answers["Jobs that ended, by the hour"]
        assert [sum(row[status] for row in ended) for status in ("SUCCESS", "FAILED", "CANCELLED")] == list(sums)[1:]
        assert sum(row["submitted"] for row in answers["Jobs submitted, by the hour"]) == sums[0]
        assert answers["Submitted"][0][0] == sums[0]
        assert answers["Success rate"][0][0] == pytest.approx(sums[1] / (sums[1] + sums[2]))

    with reader_of(postgres_url) as url:
        asyncio.run(ask(url))


def _check(panel: dict[str, Any], rows: list[asyncpg.Record]) -> None:
    """A time series has a time first, in order, a text that names the series, and numbers; one figure is one number."""
    assert rows, panel["title"]
    if panel["type"] == "stat":
        assert [len(rows), len(rows[0])] == [1, 1]
        assert isinstance(rows[0][0], Number)
    if panel["type"] == "timeseries":
        times = [row["time"] for row in rows]
        assert all(isinstance(time, datetime) for time in times)
        assert times == sorted(times)
        values = [value for row in rows for name, value in row.items() if name not in ("time", "metric")]
        assert values
        assert all(isinstance(value, Number | None) for value in values)
        assert all(isinstance(row["metric"], str) for row in rows if "metric" in row)
    columns = set(rows[0].keys())
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in columns, panel["title"]


def test_its_queries_are_of_views() -> None:
    texts = [panel["targets"][0]["rawSql"] for panel in PANELS] + [
        variable["query"] for variable in VARIABLES.values() if variable["type"] == "query"
    ]
    assert {name for text in texts for name in re.findall(r"\b(?:FROM|JOIN) (\w+)", text)} <= set(v2.COLUMNS)
