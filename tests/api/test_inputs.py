from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from multidict import MultiDict
from pydantic import TypeAdapter

from service.api import inputs
from service.api.problems import Problem
from service.models import JobOptions, JobQuery, JobStatus
from tests.api.conftest import Live


def job(**options: Any) -> dict[str, Any]:
    return {"plugin": "echo", "payload": {}, **options}


def test_options_are_read_as_they_are_meant() -> None:
    submitted = inputs.check_job(
        job(
            priority=5.0,
            run_at="2026-01-31T12:00:00+02:00",
            expires_at="2026-01-31t12:00:60.5z",
            timeout_s=1,
            tags=["a"],
            metadata={"order": 7},
        )
    )
    assert (submitted.plugin, submitted.payload) == ("echo", {})
    assert submitted.options == JobOptions(
        priority=5,
        run_at="2026-01-31T10:00:00.000Z",
        expires_at="2026-01-31T12:00:59.500Z",
        timeout_s=1.0,
        tags=("a",),
        metadata={"order": 7},
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ("text", ""),
        (None, ""),
        ({"payload": {}}, "/plugin"),
        ({"plugin": "echo"}, "/payload"),
        (job(plugin=5), "/plugin"),
        (job(plugin=""), "/plugin"),
        (job(plugin="a\0"), "/plugin"),
        (job(payload=[]), "/payload"),
        (job(payload=None), "/payload"),
        (job(surprise=1), "/surprise"),
        (job(**{"a/b": 1}), "/a~1b"),
        (job(priority=101), "/priority"),
        (job(priority=-101), "/priority"),
        (job(priority=1.5), "/priority"),
        (job(priority="1"), "/priority"),
        (job(priority=True), "/priority"),
        (job(priority=None), "/priority"),
        (job(run_at="tomorrow"), "/run_at"),
        (job(run_at="2026-01-31T12:00:00"), "/run_at"),
        (job(run_at="2026-02-31T12:00:00Z"), "/run_at"),
        (job(run_at=5), "/run_at"),
        (job(expires_at=""), "/expires_at"),
        (job(timeout_s=0), "/timeout_s"),
        (job(timeout_s="1"), "/timeout_s"),
        (job(tags="a"), "/tags"),
        (job(tags=["a"] * 21), "/tags"),
        (job(tags=["a", "b" * 101]), "/tags/1"),
        (job(tags=[""]), "/tags/0"),
        (job(tags=[1]), "/tags/0"),
        (job(tags=["a\0"]), "/tags/0"),
        (job(metadata=[]), "/metadata"),
        (job(metadata={"a": "x" * 16_384}), "/metadata"),
        (job(metadata={"a": "\0"}), "/metadata"),
        (job(metadata={"$blob": {}}), "/metadata"),
    ],
)
def test_an_unfit_body_is_refused_naming_the_field(body: Any, pointer: str) -> None:
    with pytest.raises(Problem) as refused:
        inputs.check_job(body)
    assert refused.value.status == 422
    assert [place.pointer for place in refused.value.errors] == [pointer]
    assert all(place.message for place in refused.value.errors)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_at_the_edge_of_the_calendar_is_taken(moment: str) -> None:
    inputs.check_job(job(run_at=moment))


def test_a_query_holds_fields_and_options() -> None:
    query = MultiDict(
        [("width", "5"), ("job.priority", "-3"), ("job.tags", "a"), ("job.tags", "b"), ("job.metadata", '{"x":1}')]
    )
    assert inputs.split_query(query) == ({"width": "5"}, JobOptions(priority=-3, tags=("a", "b"), metadata={"x": 1}))


@pytest.mark.parametrize(
    ("query", "status", "pointer"),
    [
        ([("width", "1"), ("width", "2")], 400, "/width"),
        ([("job.priority", "high")], 400, "/job.priority"),
        ([("job.priority", "NaN")], 400, "/job.priority"),
        ([("job.metadata", '{"a":1,"a":2}')], 400, "/job.metadata"),
        ([("job.priority", "500")], 422, "/job.priority"),
        ([("job.unknown", "1")], 422, "/job.unknown"),
        ([("job.run_at", "soon")], 422, "/job.run_at"),
    ],
)
def test_an_unfit_query_is_refused_naming_the_parameter(
    query: list[tuple[str, str]], status: int, pointer: str
) -> None:
    with pytest.raises(Problem) as refused:
        inputs.split_query(MultiDict(query))
    assert refused.value.status == status
    assert refused.value.errors[0].pointer == pointer


@pytest.mark.parametrize(
    "query",
    [
        {"status": "running"},
        {"status": "STOPPED"},
        {"state": "RUNNING"},
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "ten"},
        {"limit": ""},
        {"cursor": "1"},
        {"created_after": "yesterday"},
        {"tag": ""},
        {"plugin": "\0"},
    ],
)
def test_an_unknown_filter_or_value_of_a_list_is_400(query: dict[str, str]) -> None:
    with pytest.raises(Problem) as refused:
        inputs.check_query(TypeAdapter(inputs.ListQuery), MultiDict(query))
    assert refused.value.status == 400
    assert refused.value.errors[0].pointer == "/" + next(iter(query))


def test_filters_of_a_list_are_read() -> None:
    query = inputs.check_query(TypeAdapter(inputs.ListQuery), MultiDict(status="FAILED", limit="7", tag="a"))
    assert inputs.job_query(query) == JobQuery(status=JobStatus.FAILED, limit=7, tag="a")


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("respond-async", None),
        ("wait=10", 10),
        ("respond-async, wait=10", 10),
        ('WAIT = "5"; foo', 5),
        ("wait=100000", 60),
        ("wait=-1", None),
        ("await=5", None),
        ("wait=soon", None),
    ],
)
def test_the_preferred_wait_is_read_and_capped(prefer: str | None, seconds: int | None) -> None:
    assert inputs.preferred_wait_s(prefer) == seconds


def test_whatever_has_a_pattern_is_refused_in_words(live: Live) -> None:
    """In queries: what the document says of a text in a pattern, the answer says so that people understand it."""
    asked = 0
    for path, operations in live.get("/openapi.json").json()["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            pattern = parameter.get("schema", {}).get("pattern")
            if parameter.get("in") != "query" or not pattern:
                continue
            unfit = "\0" if re.fullmatch(pattern, "?") else "?"
            assert not re.fullmatch(pattern, unfit), pattern
            where = re.sub(r"\{job_id\}|\{\w*_id\}", str(uuid.uuid4()), path).replace("{plugin}", "echo")
            answer = live.get(where, params={parameter["name"]: unfit})
            (problem,) = answer.json()["errors"]
            assert answer.status_code == 400
            assert problem["pointer"] == f"/{parameter['name']}"
            assert problem["message"].startswith("must ")
            assert pattern not in problem["message"]
            asked += 1
    assert asked > 10
