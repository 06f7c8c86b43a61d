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
#: Calls that stop others from being answered: they come last.
CONTROLS = "^/v1/plugins/[^/]+/(pause|limits)$"
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


def generated(
    live: Live, phases: str, *, share: int, seed: int, where: str = "--exclude-path-regex"
) -> tuple[int, str]:
    """How many requests a run made that found nothing wrong, and its report; `where` says whether at `CONTROLS`."""
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", live.url + "/openapi.json"),
            *(
                "--checks",
                "all",
                where,
                CONTROLS,
                "--phases",
                phases,
                "--max-examples",
                str(share),
                "--seed",
                str(seed),
                "--no-color",
            ),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],  # where the module of its hooks is found from
        check=False,
    )
    report = outcome.stdout[-20_000:] + outcome.stderr[-2_000:]
    assert outcome.returncode == 0, report
    made = re.search(r"(\d+) generated", outcome.stdout)
    assert made, report
    return int(made[1]), outcome.stdout


@pytest.mark.timeout(240 + EXAMPLES // 10)
def test_no_generated_request_meets_a_fault_or_an_undocumented_answer(fuzzed: Live) -> None:
    calls = sum(len(item) for item in described(fuzzed)["paths"].values())
    made, _ = generated(fuzzed, "examples,coverage,fuzzing", share=-(-EXAMPLES // (2 * calls)), seed=1)
    followed = []
    for seed in itertools.count(1):
        more, report = generated(fuzzed, "stateful", share=EXAMPLES // 40, seed=seed)
        made += more
        followed += re.findall(r"API Links: +(\d+) covered", report)
        if made >= EXAMPLES:
            break
    assert max(map(int, followed)) >= 1, "the sequences follow no links"
    made, _ = generated(fuzzed, "examples,coverage,fuzzing", share=10, seed=1, where="--include-path-regex")
    assert made
