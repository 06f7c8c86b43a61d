"""What a worker says is not believed further than a worker could say it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from service.plugins.manifest import PluginManifest, PluginSource
from service.tool_runner.executor import Incident, Phase
from service.tool_runner.frames import FrameError
from service.tool_runner.replies import failure_of, manifest_of

SOURCE = PluginSource(name="plugin", value="module:run", distribution="plugins", distribution_version="")
MANIFEST = PluginManifest(
    name="plugin", version="", description="", input_schema={}, output_schema=None, untyped=True, concurrency=1
)


def test_a_manifest_is_taken_as_it_was_described() -> None:
    assert manifest_of({"manifest": dataclasses.asdict(MANIFEST)}, SOURCE) == MANIFEST


@pytest.mark.parametrize(
    "forged",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": True},
        {"max_attempts": 0},
        {"max_attempts": 101},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"setup_timeout_s": -1.0},
        {"memory_mb": 0},
        {"memory_mb": float("nan")},
        {"name": "another"},
        {"more": 1},
    ],
)
def test_a_manifest_that_no_plugin_may_have_is_refused(forged: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match="manifest"):
        manifest_of({"manifest": {**dataclasses.asdict(MANIFEST), **forged}}, SOURCE)


def said(**fields: Any) -> dict[str, Any]:
    return {"incident": "refused", "message": "no", "exception": "Error", **fields}


def test_a_failure_names_no_more_problems_than_one_reads() -> None:
    failure = failure_of(said(problems=[["/a", "is wrong"]] * 10_000), Phase.RUN, 1)
    assert failure.incident is Incident.REFUSED
    assert len(failure.problems) == 20


@pytest.mark.parametrize("incident", ["host", "time", "crash", "protocol", "", None, [], {}, 1])
def test_what_only_the_service_can_tell_is_not_taken_from_a_worker(incident: Any) -> None:
    with pytest.raises(FrameError):
        failure_of(said(incident=incident), Phase.RUN, 1)


@pytest.mark.parametrize("problems", [1, "ab", {"a": 1}, [1], [["a"]], True])
def test_problems_that_are_none_are_refused(problems: Any) -> None:
    with pytest.raises(FrameError):
        failure_of(said(problems=problems), Phase.RUN, 1)
