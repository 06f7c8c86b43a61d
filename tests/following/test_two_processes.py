"""Followers that lose their connection again and again, and resume at whichever of two processes they meet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import aiohttp

from tests.conftest import sql
from tests.service.conftest import Process
from tests.sse import events
from tests.torture.history import Heard

#: The streams whose ends a generation of clients tries at once.
FOLLOWERS = 200
JOBS = 20


async def test_each_of_200_followers_hears_every_event_once(serve: Callable[..., Process], postgres_url: str) -> None:
    options = ("--database-url", postgres_url, "--max-streams-per-caller", "1000", "--workers", "4")
    processes = [serve(*options) for _ in range(2)]
    urls = [process.url for process in processes]
    rng = random.Random(7)
    jobs = [rng.choice(processes).submit("sleep", {"seconds": rng.uniform(0.3, 1.5)}) for _ in range(JOBS)]
    cuts = 0

    async def follow(session: aiohttp.ClientSession, job_id: str, rng: random.Random) -> list[Heard]:
        nonlocal cuts
        heard: list[Heard] = []
        while True:
            headers = {"Last-Event-ID": heard[-1].id} if heard else {}
            limit, patience_s = rng.choice((1, 2, 3, 5, 100)), rng.choice((0.05, 0.3, 30))
            try:
                async with (
                    asyncio.timeout(patience_s),
                    session.get(f"{rng.choice(urls)}/v1/jobs/{job_id}/events", headers=headers) as answer,
                ):
                    assert answer.status in (200, 204), await answer.text()
                    if answer.status == 204:
                        return heard
                    async for message in events(answer):
                        heard.append(Heard(message.id or "", job_id, message.data["n"], message.type))
                        limit -= 1
                        if not limit:
                            answer.close()
                            break
            except TimeoutError:
                pass
            cuts += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        followed = [rng.choice(jobs) for _ in range(FOLLOWERS)]
        heard = await asyncio.gather(*(follow(session, job_id, random.Random(n)) for n, job_id in enumerate(followed)))
    rows = await asyncio.to_thread(sql, postgres_url, "SELECT job_id, n, type FROM job_events ORDER BY job_id, n")
    written: dict[str, list[tuple[int, str]]] = {}
    for job_id, n, kind in rows:
        written.setdefault(str(job_id), []).append((n, kind))
    for job_id, told in zip(followed, heard, strict=True):
        assert [(each.n, each.type) for each in told] == written[job_id]
        assert [int(each.id) for each in told] == list(range(1, len(told) + 1))
    assert cuts > 3 * FOLLOWERS
