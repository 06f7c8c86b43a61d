"""A real service on each database, and followers of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.app import Service
from service.settings import Settings
from tests.service.conftest import serve
from tests.sse import Message, events

__all__ = ["serve"]

FAR = {"run_at": "2999-01-01T00:00:00Z"}


class Client:
    """Somebody who submits jobs to a running service and follows them."""

    def __init__(self, service: Service, session: aiohttp.ClientSession) -> None:
        assert service.url
        self.service = service
        self.url = service.url
        self.session = session

    async def submit(self, plugin: str = "echo", payload: Any = None, **options: Any) -> str:
        body = {"plugin": plugin, "payload": payload or {}, **options}
        async with self.session.post(f"{self.url}/v1/jobs", json=body) as answer:
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["id"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/v1/jobs/{job_id}?wait=30") as answer:
            record: dict[str, Any] = await answer.json()
        assert record["finished_at"], record
        return record

    def get(self, path: str, after: str | None = None, **more: Any) -> Any:
        headers = {"Last-Event-ID": after} if after is not None else {}
        return self.session.get(self.url + path, headers=headers | more.pop("headers", {}), **more)

    async def heard(self, path: str, after: str | None = None, count: int | None = None) -> list[Message]:
        """The events of a stream, to its end or until there are `count`."""
        heard: list[Message] = []
        async with self.get(path, after) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            async for message in events(answer):
                heard.append(message)
                if len(heard) == count:
                    break
        return heard


Start = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Start:
    """Starts a service on the test's database, with further settings."""

    @contextlib.asynccontextmanager
    async def running(plugins: Collection[str] = ("echo", "sleep"), **more: Any) -> AsyncIterator[Client]:
        settings = Settings(
            _env_file=None,
            database_url=database_url,
            data_dir=tmp_path,
            port=0,
            **{"workers": 2, "drain_s": 0, "rate_per_s": None} | more,
        )
        async with (
            Service.open(settings, only_plugins=plugins) as service,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            for plugin in plugins:
                await service.plugins.manifest(plugin)
            yield Client(service, session)

    return running


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as running:
        yield running
