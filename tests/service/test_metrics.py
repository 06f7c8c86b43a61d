"""What `/metrics` of a running service tells, and what the page on operations says of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.errors import ServiceUnavailableError
from service.metrics import Metrics
from tests.service.conftest import Process, metric, until

ROOT = Path(__file__).parents[2]


def samples(service: Process, name: str) -> list[Sample]:
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [sample for sample in found if sample.name == name]


def waiting(service: Process) -> dict[str, float]:
    return {sample.labels["state"]: sample.value for sample in samples(service, "jobservice_jobs_waiting")}


def moves(service: Process) -> dict[str, float]:
    found = samples(service, "jobservice_job_transitions_total")
    return {sample.labels["to"]: sample.value for sample in found if sample.labels["plugin"] == "sleep"}


def in_s(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def act(service: Process, **body: Any) -> None:
    requests.post(f"{service.url}/v1/jobs/actions/cancel", json=body, timeout=30).raise_for_status()


def test_every_move_of_a_job_is_counted_whoever_made_it(serve: Callable[..., Process]) -> None:
    service = serve("--workers", "1")
    # Not so short that the plugin's next jobs would be claimed before a worker is free.
    assert service.job(service.submit("sleep", {"seconds": 0.1}), wait=20)["status"] == "SUCCESS"
    running = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(running)["status"] == "RUNNING")
    for_later = [service.submit("sleep", {"seconds": 0}, run_at=in_s(3600)) for _ in range(4)]
    service.submit("sleep", {"seconds": 0}, expires_at=in_s(0.2))
    until(lambda: moves(service) == {"RUNNING": 2, "SUCCESS": 1, "FAILED": 1})
    requests.post(f"{service.url}/v1/jobs/{for_later[0]}/cancel", timeout=30).raise_for_status()
    act(service, ids=for_later[:3])
    assert moves(service)["CANCELLED"] == 3
    act(service, ids=[running])
    until(lambda: moves(service) == {"RUNNING": 2, "SUCCESS": 1, "FAILED": 1, "CANCELLED": 4})


def test_jobs_that_wait_are_counted_from_the_database(serve: Callable[..., Process]) -> None:
    service = serve("--workers", "1")
    assert metric(service, "jobservice_workers") == 1
    running = service.submit("sleep", {"seconds": 60})
    until(lambda: service.job(running)["status"] == "RUNNING")
    for _ in range(3):
        service.submit("sleep", {"seconds": 60})
    service.submit("sleep", {"seconds": 0}, run_at=in_s(3600))
    assert waiting(service) == {"due": 3, "scheduled": 1}
    service.kill()
    service.close()
    again = serve("--workers", "1")
    until(lambda: waiting(again) == {"due": 3, "scheduled": 1})


def test_the_page_on_operations_lists_every_metric_with_its_labels(serve: Callable[..., Process]) -> None:
    service = serve()
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    shown = {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if not name.startswith("process_")}
    page = (ROOT / "docs/operations.md").read_text().partition("## Metrics")[2].partition("`process_*`")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", page, re.MULTILINE))
    assert set(listed) == shown
    labels = {
        each.describe()[0].name: each._labelnames
        for each in vars(Metrics()).values()
        if isinstance(each, MetricWrapperBase)
    }
    assert len(labels) > 10
    for name, of_it in {**labels, "jobservice_jobs_waiting": ("state",)}.items():
        (row,) = (row for full, row in listed.items() if full.removesuffix("_total") == name)
        assert tuple(re.findall(r"\w+", row)) == tuple(of_it), name


async def test_what_cannot_be_counted_is_left_out_and_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.metrics._COUNT_S", 0.05)
    answers: list[Any] = [{"a": 2.0, "b": 1.0}, ServiceUnavailableError("away"), None, {"b": 3.0}]

    async def count() -> dict[str, float]:
        answer = answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        return answer

    metrics = Metrics()
    metrics.counted("things", "Things", "kind", count)
    told = [re.findall(r"^things(.*)$", (await metrics.render()).decode(), re.MULTILINE) for _ in range(4)]
    assert told == [['{kind="a"} 2.0', '{kind="b"} 1.0'], [], [], ['{kind="b"} 3.0']]
    assert "jobservice_writer_batch_size_count 0.0" in (await Metrics().render()).decode()
