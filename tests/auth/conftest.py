"""A real service that asks for keys, on each database, and what tests need to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.access import Rate, Role
from service.app import Service, open_keys
from service.key_management import KeyManagementService
from service.settings import Settings

#: Far more than anything here takes, on a machine that does much else.
PATIENCE_S = 60
#: A job with this option waits and is never run.
FAR = {"run_at": "2999-01-01T00:00:00Z"}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Guarded:
    """A running service and the keys in its database."""

    def __init__(self, url: str, keys: KeyManagementService, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.keys = keys
        self._session = session

    async def key(self, tenant: str = "default", *roles: Role, rate: Rate | None = None) -> str:
        """A new key; with the roles of the command's default if none are named."""
        _, secret = await self.keys.create("test", tenant=tenant, roles=roles or (Role.SUBMIT, Role.READ), rate=rate)
        return secret

    async def request(self, method: str, path: str, key: str | None = None, **more: Any) -> Answer:
        headers = {"X-Request-Id": "same", **more.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        async with self._session.request(
            method, self.url + path, headers=headers, allow_redirects=False, **more
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name != "Date"}
            # A stream has no end that one could wait for.
            text = "" if answer.content_type == "text/event-stream" else await answer.text(errors="replace")
            return Answer(answer.status, kept, text)

    async def submit(self, key: str | None, plugin: str = "echo", payload: Any = None, **options: Any) -> Answer:
        body = {"plugin": plugin, "payload": payload or {}, **options}
        return await self.request("POST", "/v1/jobs", key, json=body)


Start = Callable[..., contextlib.AbstractAsyncContextManager[Guarded]]


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Start:
    """Starts a service on the test's database, with further settings."""

    @contextlib.asynccontextmanager
    async def running(**more: Any) -> AsyncIterator[Guarded]:
        settings = Settings(
            _env_file=None, database_url=database_url, data_dir=tmp_path, port=0, workers=2, drain_s=0, **more
        )
        async with (
            Service.open(settings, only_plugins={"echo", "sleep"}) as service,
            open_keys(settings) as keys,
            aiohttp.ClientSession() as session,
        ):
            assert service.url
            yield Guarded(service.url, keys, session)

    return running


@pytest.fixture
async def guarded(start: Start, database_url: str, tmp_path: Path) -> AsyncIterator[Guarded]:
    """A service with a key of an administrator, so that it asks everybody for one."""
    settings = Settings(_env_file=None, database_url=database_url, data_dir=tmp_path)
    async with open_keys(settings) as keys:
        await keys.create("the first", roles={Role.ADMIN})
    async with start() as running:
        yield running


async def eventually(probe: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `probe` is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await probe():
            await asyncio.sleep(0.05)
