"""The table of problem types, and all that has to agree with it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import jsonschema_rs
import pytest
from pydantic import TypeAdapter

from service.api import problems
from service.api.connections import BELOW
from service.api.problem_pages import markdown
from service.api.problem_types import PROBLEM_TYPES, ProblemType
from tests.api.conftest import Live, problem

ROOT = Path(__file__).parents[2]
#: The functions that make a problem of what a table says; the tables are looked at themselves.
OF_TABLES = {"problem_of", "problem_of_http", "handle_error"}


def raised() -> Iterator[tuple[str, int | None]]:
    """Every kind with its status, None where that is not written beside it: in the source, and in the tables."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name in OF_TABLES:
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Problem"):
                    fields = {keyword.arg: keyword.value for keyword in call.keywords}
                    if "kind" in fields:
                        kind = ast.literal_eval(fields["kind"])
                        status = ast.unparse(fields["status"])
                        yield kind, HTTPStatus[status.rpartition(".")[2]]
    yield from ((kind, status) for _, status, kind in problems.STATUS_OF)
    yield from ((kind, status) for status, kind in problems.KIND_OF_HTTP.items())
    yield from ((kind, status) for status, (kind, _) in BELOW.items())


def test_every_kind_that_is_raised_is_in_the_table_with_its_statuses_and_no_other() -> None:
    found: dict[str, set[int]] = {}
    for kind, status in raised():
        found.setdefault(kind, set()).add(int(status or 0))
    assert found == {kind: set(problem.statuses) for kind, problem in PROBLEM_TYPES.items()}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES.values(), ids=lambda problem_type: problem_type.kind)
def test_every_kind_has_a_page(live: Live, problem_type: ProblemType) -> None:
    answer = live.get(f"/problems/{problem_type.kind}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    assert f"<h1>{problem_type.title}</h1>".replace("'", "&#x27;") in answer.text
    assert f'href="/problems/{problem_type.kind}"' in live.get("/problems").text
    schema = TypeAdapter(problems.ProblemView).json_schema(mode="serialization")
    jsonschema_rs.validate(schema, problem_type.example)


def test_a_kind_that_there_is_not_has_no_page(live: Live) -> None:
    assert problem(live.get("/problems/unknown-kind"), 404)["type"] == "/problems/unknown-route"


def test_the_document_of_the_problems_is_the_one_of_the_table() -> None:
    written = (ROOT / "docs/problems.md").read_text()
    assert written == "".join(f"{line}\n" for line in markdown()), "`make docs` writes it anew"
