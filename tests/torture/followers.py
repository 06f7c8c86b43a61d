"""Clients that follow events through everything: cut at random, resumed at whatever process answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

import aiohttp

from tests.sse import messages
from tests.torture.history import Followed, Heard, History

#: A stream shows a sign of life every 15 s.
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=25)
RETRY_S = 0.1


class Followers:
    """Follow single jobs, each to its end, and all jobs from the beginning."""

    def __init__(self, history: History, urls: Sequence[str], *, seed: int) -> None:
        self._history = history
        self._urls = urls
        self._rng = random.Random(f"{seed}/followers")
        self._session: aiohttp.ClientSession | None = None
        self._of_job: set[asyncio.Task[None]] = set()
        self._of_all: list[asyncio.Task[None]] = []

    def follow(self, job_id: str | None) -> None:
        """Begin to follow a job; None is all jobs."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT)
        followed = Followed(job_id)
        self._history.followed.append(followed)
        task = asyncio.create_task(self._listen(self._session, followed, random.Random(self._rng.random())))
        if job_id is None:
            self._of_all.append(task)
        else:
            self._of_job.add(task)
            task.add_done_callback(self._of_job.discard)

    async def end(self, events: int, patience_s: float) -> None:
        """Hear all there is: every job has ended, and there are so many events; then stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._of_job or any(
                    len(followed.heard) < events for followed in self._history.followed if followed.job_id is None
                ):
                    await asyncio.sleep(0.1)
        tasks = [*self._of_job, *self._of_all]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        if self._session is not None:
            await self._session.close()

    async def _listen(self, session: aiohttp.ClientSession, followed: Followed, rng: random.Random) -> None:
        while not followed.has_ended:
            path = "/v1/events?last_event_id=0-0" if followed.job_id is None else f"/v1/jobs/{followed.job_id}/events"
            headers = {"Last-Event-ID": followed.last_id} if followed.last_id else {}
            patience_s = rng.choice((0.1, 0.5, 2, 60))
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with asyncio.timeout(patience_s):
                    async with session.get(rng.choice(self._urls) + path, headers=headers) as answer:
                        if answer.status == 200:
                            await self._hear(answer, followed, rng.choice((1, 2, 5, 50, 1_000_000)))
                        elif answer.status == 204:
                            followed.has_ended = True
                        elif answer.status not in (429, 503):
                            self._history.surprises.append(
                                ("stream_refused", followed.job_id or "all", f"{answer.status} {await answer.text()}")
                            )
                            return
            followed.cuts += 1
            await asyncio.sleep(RETRY_S * rng.uniform(0, 1))

    async def _hear(self, answer: aiohttp.ClientResponse, followed: Followed, limit: int) -> None:
        """Up to `limit` events; then the connection is cut, wherever it is."""
        async for message in messages(answer):
            followed.last_id = message.id or followed.last_id
            if message.data is None:
                continue
            data = message.data
            followed.heard.append(Heard(message.id or "", data["job_id"], data["n"], data["type"]))
            limit -= 1
            if not limit:
                answer.close()
                return
