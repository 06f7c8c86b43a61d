"""Receivers on this machine that behave as they are told, and a service that may deliver to them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks import Webhook as Verifier

from service.app import Service
from service.settings import Settings

#: Far more than anything here takes, on a machine that does much else.
PATIENCE_S = 60
INSIDE = {"webhook_http": True, "webhook_allow": "127.0.0.0/8"}

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclasses.dataclass(frozen=True)
class Message:
    """One request that a receiver got."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    def verify(self, secret: str) -> dict[str, Any]:
        """Its content, as the published library lets it through."""
        value: dict[str, Any] = Verifier(secret).verify(self.body, self.headers)
        return value


class Receiver:
    """Takes messages at `url`, each answered by the next of `answers`, the last one for ever."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.answers: list[Behaviour] = [status(204)]
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.messages.append(Message(time.time(), request.path, dict(request.headers), await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)

    async def got(self, count: int) -> list[Message]:
        """The messages, once there are `count`."""
        await until(lambda: len(self.messages) >= count)
        return self.messages


def status(code: int, **headers: str) -> Behaviour:
    """Answer so."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


async def silent(request: web.Request) -> web.Response:
    """Answer when the sender has gone."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.02)
    return web.Response()


async def endless(request: web.Request) -> web.StreamResponse:
    """Answer 200 and a body without an end."""
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 65_536)
    return response


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        for connection in runner.server.connections if runner.server else ():
            connection.force_close()
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


class Client:
    """Asks a running service."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def ask(self, method: str, path: str, expected: int, body: Any = None) -> Any:
        """The JSON of an answer of that status."""
        async with self._session.request(method, self.url + path, json=body) as answer:
            text = await answer.text()
            assert answer.status == expected, text
            return json.loads(text) if text else None

    async def webhook(self, url: str, **more: Any) -> dict[str, Any]:
        made: dict[str, Any] = await self.ask("POST", "/v1/webhooks", 201, {"url": url, **more})
        return made

    async def submit(self, plugin: str = "echo", payload: Any = None, **options: Any) -> str:
        body = {"plugin": plugin, "payload": payload or {}, **options}
        return str((await self.ask("POST", "/v1/jobs", 202, body))["id"])

    async def deliveries(self, webhook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        page = await self.ask("GET", f"/v1/webhooks/{webhook['id']}/deliveries{query}", 200)
        items: list[dict[str, Any]] = page["items"]
        return items

    async def ended(self, webhook: dict[str, Any], count: int = 1) -> list[dict[str, Any]]:
        """The deliveries, once there are `count` and none is pending."""

        async def have() -> list[dict[str, Any]] | None:
            found = await self.deliveries(webhook)
            return found if len(found) >= count and all(one["status"] != "PENDING" for one in found) else None

        found: list[dict[str, Any]] = await eventually(have)
        return found


async def eventually(probe: Callable[[], Awaitable[Any]]) -> Any:
    """What `probe` returns once that is something."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await probe()):
            await asyncio.sleep(0.02)
        return found


async def until(condition: Callable[[], Any]) -> None:
    async def probe() -> Any:
        return condition()

    await eventually(probe)


Start = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Start:
    """Starts a service on the test's database, which may deliver on this machine and does not wait long."""

    @contextlib.asynccontextmanager
    async def running(**more: Any) -> AsyncIterator[Client]:
        chosen = {"webhook_retries_s": "0.1,0.1,0.1", **INSIDE, **more}
        settings = Settings(
            _env_file=None, database_url=database_url, data_dir=tmp_path, port=0, workers=2, drain_s=0, **chosen
        )
        async with (
            Service.open(settings, only_plugins={"echo", "sleep"}) as service,
            aiohttp.ClientSession() as session,
        ):
            assert service.url
            yield Client(service.url, session)

    return running


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as one:
        yield one
