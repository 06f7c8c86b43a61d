from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.api.routes import ROUTES
from tests.api.conftest import Live

#: Examples in all.
EXAMPLES = int(os.environ.get("JOBSERVICE_TEST_EXAMPLES", "2000"))
SHARE = EXAMPLES // len(ROUTES)


@pytest.fixture(scope="session")
def document(live: Live) -> dict[str, Any]:
    value: dict[str, Any] = live.get("/openapi.json").json()
    return value


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document, cls=OpenAPIV31SpecValidator)


def test_the_document_and_the_routes_are_the_same(document: dict[str, Any]) -> None:
    documented = {(method.upper(), path) for path, calls in document["paths"].items() for method in calls}
    assert documented == {(route.method, route.path) for route in ROUTES}


def test_every_documented_call_is_routed(live: Live, document: dict[str, Any]) -> None:
    for path, calls in document["paths"].items():
        for method in calls:
            answer = live.request(method.upper(), re.sub(r"{\w+}", "x", path))
            assert answer.status_code != 405
            assert answer.status_code != 404 or "unknown-route" not in answer.text


@pytest.mark.timeout(240)
def test_no_generated_request_meets_a_fault_or_an_undocumented_answer(live: Live) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", live.url + "/openapi.json"),
            *("--checks", "all", "--max-examples", str(SHARE), "--seed", "1", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated
    assert int(generated[1]) >= EXAMPLES
