"""A real service in a thread of its own, and what tests need to talk to it and to look into its database."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import queue
import socket
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from service.app import Service
from service.settings import Settings

MAX_BODY_MB = 2.0


@dataclasses.dataclass(frozen=True)
class Live:
    """A running service."""

    url: str
    data_dir: Path

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    def rows(self) -> int:
        """How many jobs there are, read past the service."""
        with sqlite3.connect(f"file:{self.data_dir / 'jobs.db'}?mode=ro", uri=True) as connection:
            count: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        connection.close()
        return count

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=30, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return self.request("POST", path, **more)

    def submit(self, plugin: str, payload: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The record of a job that was accepted."""
        answer = self.post("/v1/jobs", json={"plugin": plugin, "payload": payload, **options})
        assert answer.status_code == 202, answer.text
        record: dict[str, Any] = answer.json()
        return record

    def ended(self, job_id: str) -> dict[str, Any]:
        """The record of a job once it has ended."""
        record: dict[str, Any] = self.get(f"/v1/jobs/{job_id}?wait=30").json()
        assert record["status"] in ("SUCCESS", "FAILED", "CANCELLED"), record
        return record

    def raw(self, data: bytes, *, then_close: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of the answer to bytes as they stand on the wire."""
        host, port = self.netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            try:
                connection.sendall(data)
                if then_close:
                    connection.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # it answered before it had read all
            head, _, body = _received(connection).partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split()[1]), headers, body


def _received(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            piece = connection.recv(65_536)
        except ConnectionError:
            return received
        received += piece
        head, separator, body = received.partition(b"\r\n\r\n")
        if not piece:
            return received
        if separator and b"content-length:" in head.lower():
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(body) >= length:
                return received


@contextlib.contextmanager
def serving(data_dir: Path, *, only_plugins: Collection[str] = (), **more: Any) -> Iterator[Live]:
    """A service in a thread of its own, with these settings."""
    settings = Settings(
        _env_file=None, data_dir=data_dir, port=0, max_body_mb=MAX_BODY_MB, **{"workers": 2, "timeout_s": 60, **more}
    )
    started: queue.Queue[Live | BaseException] = queue.Queue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with Service.open(settings, only_plugins=only_plugins) as service:
            started.put(Live(url=service.url.rstrip("/"), data_dir=data_dir))
            await stop.wait()

    def main() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except BaseException as error:
            started.put(error)
            raise

    thread = threading.Thread(target=main, name="live service")
    thread.start()
    ready = started.get(timeout=60)
    if isinstance(ready, BaseException):
        raise ready
    try:
        yield ready
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="session")
def png() -> bytes:
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((320, 200)).save(picture, "png")
    return picture.getvalue()


def problem(answer: requests.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer that is an error of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = json.loads(answer.content)
    assert body["status"] == status
    assert body["type"].startswith("/problems/")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return body


def pointers(body: Mapping[str, Any]) -> list[str]:
    """The places a problem names."""
    return [place["pointer"] for place in body.get("errors", ())]
