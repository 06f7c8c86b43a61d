"""Requests made from the description, alone and in sequences along its links, against a service of their own."""

from __future__ import annotations

import itertools
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
    # Sleepers hold their workers up to the limit; the others want some, too. Each stream is read to its end.
    with serving(tmp_path, only_plugins=PLUGINS, workers=4, timeout_s=20, drain_s=0, stream_s=0.2) as running:
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


def run(live: Live, *, share: int, seed: int) -> tuple[int, int]:
    """One run, which must find nothing: how many requests were made, and how many links were followed."""
    phases = "examples,coverage,fuzzing,stateful" if seed == 1 else "fuzzing,stateful"
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", live.url + "/openapi.json"),
            *("--checks", "all", "--phases", phases, "--max-examples", str(share), "--seed", str(seed), "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = outcome.stdout[-20_000:] + outcome.stderr[-2_000:]
    assert outcome.returncode == 0, report
    generated = re.search(r"(\d+) generated", outcome.stdout)
    links = re.search(r"API Links: +(\d+) covered", outcome.stdout)
    assert generated, report
    assert links, report
    return int(generated[1]), int(links[1])


@pytest.mark.timeout(180 + EXAMPLES // 10)
def test_no_generated_request_meets_a_fault_or_an_undocumented_answer(fuzzed: Live) -> None:
    calls = sum(len(item) for item in described(fuzzed)["paths"].values())
    # Sequences, and the edges of the schemas, make about as many requests as the shares of the calls.
    share = -(-EXAMPLES // (2 * calls))
    made, followed = run(fuzzed, share=share, seed=1)
    assert followed >= 2 * calls
    for seed in itertools.count(2):
        if made >= EXAMPLES:
            break
        made += run(fuzzed, share=share, seed=seed)[0]
