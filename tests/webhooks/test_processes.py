"""Processes that are killed between the end of a job and its delivery, and processes that share the work."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from service.failpoints import VARIABLE
from tests.service.conftest import Process, serve, until  # noqa: F401 - a fixture

INSIDE = (
    "--webhook-http", "--webhook-allow", "127.0.0.0/8", "--webhook-retries-s", "0.2,0.2", "--webhook-timeout-s", "2",
)  # fmt: skip


class Listener:
    """Takes messages in a thread, and notes the ids."""

    def __init__(self, url: str, ids: list[str]) -> None:
        self.url = url
        self.ids = ids


@pytest.fixture
def listener() -> Iterator[Listener]:
    ids: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            ids.append(self.headers["webhook-id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with contextlib.closing(server.socket):
        yield Listener(f"http://127.0.0.1:{server.server_address[1]}/", ids)
        server.shutdown()
        thread.join()


def listen(service: Process, url: str) -> str:
    made = requests.post(f"{service.url}/v1/webhooks", json={"url": url}, timeout=30)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def deliveries(service: Process, webhook: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{service.url}/v1/webhooks/{webhook}/deliveries?limit=500", timeout=30)
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def delivered(service: Process, webhook: str, count: int) -> list[dict[str, Any]]:
    """The deliveries, once there are so many and all are delivered."""

    def have() -> list[dict[str, Any]] | None:
        found = deliveries(service, webhook)
        return found if [one["status"] for one in found] == ["DELIVERED"] * count else None

    found: list[dict[str, Any]] = until(have, 60)
    return found


@pytest.mark.parametrize(
    ("point", "heard_before"),
    [("end.after_commit", 0), ("claim_deliveries.after_commit", 0), ("record_attempts.before_commit", 1)],
)
def test_killed_between_commit_and_delivery_it_delivers_after_its_next_start(
    serve: Any,  # noqa: F811
    listener: Listener,
    point: str,
    heard_before: int,
) -> None:
    service = serve(*INSIDE, prefix=("env", f"{VARIABLE}={point}=kill@1"))
    webhook = listen(service, listener.url)
    job = service.submit("echo", {"n": 1})
    service.popen.wait(30)
    assert len(listener.ids) == heard_before
    service = serve(*INSIDE)
    assert service.job(job, wait=30)["status"] == "SUCCESS"
    (delivery,) = delivered(service, webhook, 1)
    assert set(listener.ids) == {delivery["id"]}
    assert len(listener.ids) == heard_before + 1
    assert service.stop() == 0


def test_two_processes_share_the_work_and_send_each_message_once(
    serve: Any,  # noqa: F811
    listener: Listener,
    postgres_url: str,
) -> None:
    one, other = (serve("--database-url", postgres_url, *INSIDE) for _ in range(2))
    webhook = listen(one, listener.url)
    jobs = [(one if n % 2 else other).submit("echo", {"n": n}) for n in range(60)]
    found = delivered(other, webhook, len(jobs))
    assert sorted(delivery["job_id"] for delivery in found) == sorted(jobs)
    assert sorted(listener.ids) == sorted(delivery["id"] for delivery in found)
    assert {line["attempt"] for delivery in found for line in delivery["attempts"]} == {1}
    assert one.stop() == other.stop() == 0
