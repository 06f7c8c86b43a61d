"""Jobs claimed before a worker is free: only short ones, in order, and back to the queue when it takes long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from service import lookahead
from service.lookahead import Lookahead
from tests.api.conftest import Live, serving

WORKERS = 2


async def test_only_plugins_that_were_short_lately_are_claimed_ahead():
    ahead = Lookahead(WORKERS)
    assert (ahead.short(), ahead.most()) == (frozenset(), 0)
    ahead.ended("quick", 0.0001)
    assert (ahead.short(), ahead.most()) == ({"quick"}, 128)
    ahead.ended("brisk", 0.02)
    assert (ahead.short(), ahead.most()) == ({"quick", "brisk"}, 4)
    ahead.ended("brisk", 5.0)
    ahead.ended("slow", 5.0)
    assert ahead.short() == {"quick"}


async def test_who_holds_a_worker_for_long_has_nothing_wait_behind_it(monkeypatch):
    monkeypatch.setattr(lookahead, "_LONG_S", 0.0)
    ahead = Lookahead(WORKERS)
    ahead.ended("quick", 0.0001)
    ahead.ended("other", 0.0001)
    async with ahead.place("quick"):
        await asyncio.sleep(0.001)
        assert (ahead.short(), ahead.most()) == ({"other"}, 128)  # in all, for however many workers
        async with ahead.place("other"):
            await asyncio.sleep(0.001)
            assert ahead.most() == 0
    assert ahead.most() == 128


async def test_places_are_given_in_order_and_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(lookahead, "PATIENCE_S", 0.05)
    ahead, order = Lookahead(1), []

    async def work(name: str, done: asyncio.Event) -> None:
        async with ahead.place(name):
            order.append(name)
            await done.wait()

    done = asyncio.Event()
    first = asyncio.create_task(work("first", done))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await work("late", done)
    rest = [asyncio.create_task(work(name, done)) for name in ("second", "third")]
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(first, *rest)
    assert order == ["first", "second", "third"]


async def test_a_worker_has_several_places_for_calls_that_are_sent_ahead():
    ahead, order = Lookahead(1, lambda plugin: 4 if plugin == "brief" else 1), []

    async def work(name: str, done: asyncio.Event) -> None:
        async with ahead.place(name):
            order.append(name)
            await done.wait()

    brief, other = asyncio.Event(), asyncio.Event()

    async def settled() -> None:
        for _ in range(10):  # more turns of the event loop than any of them takes
            await asyncio.sleep(0)

    running = [asyncio.create_task(work(*job)) for job in [("brief", brief)] * 3 + [("other", other), ("brief", brief)]]
    await settled()
    assert order == ["brief"] * 3  # there is room for a fourth, but nobody overtakes who waits for all of it
    brief.set()
    await settled()
    assert order == ["brief"] * 3 + ["other"]
    other.set()
    await asyncio.gather(*running)
    assert order == ["brief"] * 3 + ["other", "brief"]


async def test_who_is_near_a_place_is_told_before_it_has_one():
    ahead, near, order = Lookahead(WORKERS), [], []
    done = [asyncio.Event() for _ in range(8)]

    async def work(n: int) -> None:
        async with ahead.place("brisk", lambda: near.append(n)):
            order.append(n)
            await done[n].wait()

    async def settled() -> None:
        for _ in range(10):  # more turns of the event loop than any of them takes
            await asyncio.sleep(0)

    running = [asyncio.create_task(work(n)) for n in range(8)]
    await settled()
    assert (order, near) == ([0, 1], [2, 3])  # whoever has a place at once makes ready in it
    running[3].cancel()
    await settled()
    assert (order, near) == ([0, 1], [2, 3, 4])  # who waits no more is not counted
    running[6].cancel()
    done[0].set()
    await settled()
    assert (order, near) == ([0, 1, 2], [2, 3, 4, 5])
    done[1].set()
    await settled()
    assert (order, near) == ([0, 1, 2, 4], [2, 3, 4, 5, 7])  # nor told
    for event in done:
        event.set()
    await asyncio.gather(*running, return_exceptions=True)
    assert (order, near) == ([0, 1, 2, 4, 5, 7], [2, 3, 4, 5, 7])


def counts(live: Live) -> dict[str, int]:
    listed = live.get("/v1/jobs", params={"plugin": "sleep", "tag": "long", "limit": 500}).json()["items"]
    statuses = [job["status"] for job in listed]
    return {status: statuses.count(status) for status in set(statuses)}


def test_a_plugin_that_turns_slow_gives_back_what_was_claimed_to_follow(tmp_path: Path):
    with serving(tmp_path, only_plugins=("sleep",), workers=WORKERS, drain_s=0) as live:
        for _ in range(3):
            quick = {"plugin": "sleep", "payload": {"seconds": 0}}
            assert live.post("/v1/jobs", json=quick, headers={"Prefer": "wait=30"}).json()["status"] == "SUCCESS"
        long = [{"plugin": "sleep", "payload": {"seconds": 600}, "tags": ["long"], "max_attempts": 1}] * 12
        assert live.post("/v1/jobs/batch", json=long).status_code == 202
        deadline = time.monotonic() + 30
        while counts(live) != {"RUNNING": WORKERS, "PENDING": 10} and time.monotonic() < deadline:
            time.sleep(0.05)
        since = time.monotonic()
        while time.monotonic() < since + 2 * lookahead.PATIENCE_S:
            assert counts(live) == {"RUNNING": WORKERS, "PENDING": 10}  # and nothing is claimed to wait again
            time.sleep(0.1)
        waiting = live.get("/v1/jobs", params={"tag": "long", "status": "PENDING"}).json()["items"]
        assert {job["attempt"] for job in waiting} == {0}
