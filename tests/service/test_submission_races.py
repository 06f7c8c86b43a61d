"""Clients that ask for the same thing at once, of two processes on one PostgreSQL; and a batch cut off at any point."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import requests
from uuid_utils.compat import uuid7

from tests.conftest import sql
from tests.service.conftest import until

CLIENTS = 32
BATCH = 5_000


def at_once(urls: list[str], send: Callable[[str], requests.Response]) -> list[requests.Response]:
    """The answers to requests sent by all clients at once, in turn to each of `urls`."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(send, itertools.islice(itertools.cycle(urls), CLIENTS)))


def test_what_is_asked_for_at_once_of_two_processes_is_done_once(serve, postgres_url):
    urls = [serve("--database-url", postgres_url, "--workers", "1").url for _ in range(2)]
    body = {"plugin": "echo", "payload": {"n": 1}, "tags": ["race"]}
    old = requests.post(f"{urls[0]}/v1/jobs", json=body, headers={"Prefer": "wait=60"}, timeout=90).json()["id"]
    chosen, rows = str(uuid7()), 1
    many = [{**body, "payload": {"n": n}} for n in range(50)]
    asked: dict[str, tuple[int, Callable[[str], requests.Response]]] = {
        "keyed post": (1, lambda url: requests.post(f"{url}/v1/jobs", json=body, headers=key("post"), timeout=60)),
        "put": (1, lambda url: requests.put(f"{url}/v1/jobs/{chosen}", json=body, timeout=60)),
        "keyed batch": (
            50,
            lambda url: requests.post(f"{url}/v1/jobs/batch", json=many, headers=key("batch"), timeout=60),
        ),
        "keyed retry": (1, lambda url: requests.post(f"{url}/v1/jobs/{old}/retry", headers=key("retry"), timeout=60)),
        "keyed retries": (
            1,
            lambda url: requests.post(
                f"{url}/v1/jobs/actions/retry", json={"ids": [old]}, headers=key("many"), timeout=60
            ),
        ),
    }
    for what, (new, send) in asked.items():
        answers = at_once(urls, send)
        assert {answer.status_code for answer in answers} <= {200, 202}, (what, answers[0].text)
        assert len({ids(answer.json()) for answer in answers}) == 1, what
        if what not in ("keyed batch", "keyed retries"):
            assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1, what
        rows += new
        assert sql(postgres_url, "SELECT count(*) FROM jobs") == [(rows,)], what
    assert sql(postgres_url, "SELECT count(*) FROM job_events WHERE type = 'submitted'") == [(rows,)]


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


def ids(body: dict[str, Any]) -> tuple[str, ...]:
    return tuple(item.get("new_id", item["id"]) for item in body["items"]) if "items" in body else (body["id"],)


@pytest.mark.parametrize(
    ("point", "is_there"),
    [
        ("insert_batch.before_commit", False),
        ("insert_batch.after_commit", True),
    ],
)
def test_a_batch_that_a_kill_cuts_off_is_there_as_a_whole_or_not_at_all(serve, point, is_there):
    service = serve("--workers", "1", failpoints=f"{point}=kill@1")
    items = [{"plugin": "echo", "payload": {"n": n}, "run_at": "2999-01-01T00:00:00Z"} for n in range(BATCH)]
    send = {"json": items, "headers": key("nightly"), "timeout": 60}
    with pytest.raises(requests.ConnectionError):
        requests.post(f"{service.url}/v1/jobs/batch", **send)
    until(lambda: service.popen.poll() is not None)
    service = serve("--workers", "1")
    assert service.sql("SELECT count(*), count(DISTINCT batch_id) FROM jobs") == [(BATCH, 1) if is_there else (0, 0)]
    answer = requests.post(f"{service.url}/v1/jobs/batch", **send)
    assert (answer.status_code, answer.headers.get("Idempotency-Replayed")) == (202, "true" if is_there else None)
    batch = answer.json()
    assert batch["accepted"] == BATCH == len({item["id"] for item in batch["items"]})
    assert requests.get(service.url + batch["links"]["self"], timeout=30).json()["total"] == BATCH
    assert service.sql("SELECT count(*) FROM jobs") == service.sql("SELECT count(*) FROM job_events") == [(BATCH,)]
