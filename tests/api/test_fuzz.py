"""Requests made from the description, alone and in sequences along its links, against a service of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Live, serving

#: Requests in all, at least; `make fuzz` asks for more.
EXAMPLES = int(os.environ.get("JOBSERVICE_TEST_EXAMPLES", "2000"))
#: Nothing here takes long to be loaded, whatever it is sent.
PLUGINS = ("echo", "sleep", "image_info", "thumbnail")


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[Live]:
    # Sleepers hold their workers up to the limit; the others want some, too.
    with serving(tmp_path, only_plugins=PLUGINS, workers=4, timeout_s=20, drain_s=0) as running:
        yield running


def described(live: Live) -> dict[str, Any]:
    """The description once it has every plugin."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        document: dict[str, Any] = live.get("/openapi.json").json()
        if all(f"/v1/plugins/{name}/jobs" in document["paths"] for name in PLUGINS):
            return document
        time.sleep(0.1)
    raise AssertionError(f"not all of {PLUGINS} are described")


@pytest.mark.timeout(180 + EXAMPLES // 10)
def test_no_generated_request_meets_a_fault_or_an_undocumented_answer(fuzzed: Live) -> None:
    calls = sum(len(item) for item in described(fuzzed)["paths"].values())
    # Each call has its share; sequences and the edges of the schemas come on top.
    share = -(-EXAMPLES // (2 * calls))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", fuzzed.url + "/openapi.json"),
            *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", str(share), "--seed", "1", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = run.stdout[-20_000:] + run.stderr[-2_000:]
    assert run.returncode == 0, report
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated, report
    assert int(generated[1]) >= EXAMPLES
    links = re.search(r"API Links: +(\d+) covered / (\d+) selected", run.stdout)
    assert links, report
    assert int(links[1]) >= int(links[2]) // 10, report
