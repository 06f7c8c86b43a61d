"""Clients of the service under torture: keyed submissions that are tried until they are answered, cancels, readers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tests.torture.followers import Followers
from tests.torture.history import History, Submission

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=15)
RETRY_S = 0.1
#: The share of jobs whose events are followed, and how many follow all.
FOLLOWED = 0.2
FOLLOWERS_OF_ALL = 2

#: How often each behaviour is asked for. Times are in units, by default of a lease: they must straddle one.
MIX: dict[str, float] = {
    "fast": 65, "progress": 3, "short": 6, "long": 2, "bytes": 8,
    "raise": 4, "exit": 1, "segfault": 1, "hang": 0.5, "bad": 2, "absent": 2,
}  # fmt: skip


def payload_of(behaviour: str, number: int, rng: random.Random, unit_s: float, log: str) -> dict[str, Any]:
    payload: dict[str, Any] = {"log": log, "behaviour": behaviour, "value": number}
    match behaviour:
        case "short" | "progress":
            payload |= {"seconds": rng.uniform(0.5, 1.5) * unit_s}
        case "long":
            payload |= {"seconds": 3 * unit_s}
        case "bytes":
            data = rng.randbytes(rng.choice((10, 900, 5_000, 60_000)))
            payload |= {"data": {"$bytes": base64.b64encode(data).decode()}}
    if behaviour in ("short", "long"):
        payload["behaviour"] = "sleep"
    return payload


class Load:
    """`clients` submit at once; every choice comes from `seed`, only the timing does not."""

    def __init__(
        self,
        history: History,
        urls: Sequence[str],
        log: str,
        *,
        seed: int,
        clients: int,
        submissions: int,
        unit_s: float,
        mix: dict[str, float] | None = None,
        cancels: float = 0.04,
    ) -> None:
        self._history = history
        self._urls = urls
        self._log = log
        self._seed = seed
        self._clients = clients
        self._left = submissions
        self._unit_s = unit_s
        self._mix = mix or MIX
        self._cancels = cancels
        self.followers = Followers(history, urls, seed=seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Make no new submissions; those begun are brought to their end."""
        self._stopping.set()

    async def run(self) -> None:
        """Submit until there is nothing left or `stop`, and until every submission has its answer."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=REQUEST_TIMEOUT) as session:
            for _ in range(FOLLOWERS_OF_ALL):
                self.followers.follow(None)
            observers = [asyncio.create_task(self._observe(session, n)) for n in range(2)]
            await asyncio.gather(*(self._client(session, n) for n in range(self._clients)))
            while self._tasks:
                await asyncio.wait(self._tasks)
            for observer in observers:
                observer.cancel()
            await asyncio.wait(observers)
            for observer in observers:
                if not observer.cancelled():
                    observer.result()

    async def read_all(self) -> None:
        """Read every acknowledged job once more: each must be there, with the answer that was given before."""
        limit = asyncio.Semaphore(32)
        async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:

            async def read(number: int, job_id: str, submission: Submission) -> None:
                async with limit:
                    await self._read(session, self._urls[number % len(self._urls)], job_id, submission)

            known = list(self._history.by_id.items())
            await asyncio.gather(*(read(n, job_id, submission) for n, (job_id, submission) in enumerate(known)))

    async def _client(self, session: aiohttp.ClientSession, client: int) -> None:
        rng = random.Random(f"{self._seed}/{client}")
        number = 0
        while self._left > 0 and not self._stopping.is_set():
            self._left -= 1
            number += 1
            (behaviour,) = rng.choices(list(self._mix), list(self._mix.values()))
            submission = Submission(f"torture-{self._seed}-{client}-{number}", client * 1_000_000 + number, behaviour)
            self._history.submissions.append(submission)
            await self._submit(session, submission, rng)
            if submission.ids and rng.random() < self._cancels:
                self._spawn(self._cancel(session, submission, rng.uniform(0, 2 * self._unit_s), rng))
            if submission.ids and rng.random() < FOLLOWED:
                self.followers.follow(min(submission.ids))
            if rng.random() < 0.85:
                await self._follow(session, submission, rng)

    async def _submit(self, session: aiohttp.ClientSession, submission: Submission, rng: random.Random) -> None:
        payload = payload_of(submission.behaviour, submission.number, rng, self._unit_s, self._log)
        plugin = "absent" if submission.behaviour == "absent" else "torture"
        timeout_s = 3 * self._unit_s if submission.behaviour == "hang" else 12 * self._unit_s
        attempts = rng.choice((1, 1, 1, 3))
        body = json.dumps(
            {"plugin": plugin, "payload": payload, "timeout_s": timeout_s, "max_attempts": attempts}
        ).encode()
        headers = {"Idempotency-Key": submission.key, "Content-Type": "application/json"}
        if rng.random() < 0.02:
            await self._reset(body, headers, submission, rng)
            if rng.random() < 0.3:
                return  # never asked again: nothing or one row
        if rng.random() < 0.2:
            await asyncio.gather(
                *(self._post(session, body, headers, submission, random.Random(rng.random())) for _ in range(2))
            )
        else:
            await self._post(session, body, headers, submission, rng)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        body: bytes,
        headers: dict[str, str],
        submission: Submission,
        rng: random.Random,
    ) -> None:
        """Post until there is an answer that settles it; always with the same key."""
        while True:
            url, known = rng.choice(self._urls), submission.final
            try:
                async with session.post(f"{url}/v1/jobs", data=body, headers=headers) as answer:
                    text = await answer.read()
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not isinstance(error, aiohttp.ClientConnectorError):
                    submission.is_ambiguous = True
                    submission.note(f"post: {type(error).__name__}")
            else:
                self._history.answers[status] += 1
                submission.note(f"post: {status}")
                if status in (200, 202):
                    record = json.loads(text)
                    self._history.acknowledge(submission, record["id"])
                    self._history.observe(submission, record, known)
                    return
                if 400 <= status < 500 and status != 429:
                    submission.refusals.append(status)
                    return
                # A refusal that says so has done nothing; an error of the service may have.
                submission.is_ambiguous |= status >= 500
            await asyncio.sleep(RETRY_S * rng.uniform(0.5, 2))

    async def _reset(self, body: bytes, headers: dict[str, str], submission: Submission, rng: random.Random) -> None:
        """Send a whole request, and reset the connection before there can be an answer."""
        parts = urlsplit(rng.choice(self._urls))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with contextlib.suppress(OSError):
            _reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            submission.is_ambiguous = True
            submission.note("post: reset after its body")
            writer.write(
                f"POST /v1/jobs HTTP/1.1\r\nHost: {parts.netloc}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _cancel(
        self, session: aiohttp.ClientSession, submission: Submission, after_s: float, rng: random.Random
    ) -> None:
        await asyncio.sleep(after_s)
        (job_id, *_) = submission.ids
        submission.is_cancelled = True
        for _ in range(20):
            known = submission.final
            try:
                async with session.post(f"{rng.choice(self._urls)}/v1/jobs/{job_id}/cancel") as answer:
                    text = await answer.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                submission.note(f"cancel: {type(error).__name__}")
            else:
                submission.note(f"cancel: {answer.status}")
                if answer.status in (200, 202):
                    self._history.observe(submission, json.loads(text), known)
                if answer.status == 404:
                    self._history.surprises.append(("acked_lost", job_id, "404 to a cancel"))
                if answer.status < 500:
                    return
            await asyncio.sleep(RETRY_S)

    async def _follow(self, session: aiohttp.ClientSession, submission: Submission, rng: random.Random) -> None:
        """Wait for its end, which keeps the backlog small: as long as a client may, and no longer than two minutes."""
        for _ in range(24):
            if not submission.ids or submission.final is not None or self._stopping.is_set():
                return
            (job_id, *_) = submission.ids
            if not await self._read(session, rng.choice(self._urls), f"{job_id}?wait=5", submission):
                await asyncio.sleep(RETRY_S)

    async def _observe(self, session: aiohttp.ClientSession, number: int) -> None:
        """Read random known jobs for ever."""
        rng = random.Random(f"{self._seed}/observer/{number}")
        while True:
            await asyncio.sleep(rng.uniform(0, 0.04))
            submissions = self._history.submissions
            if submissions and (known := rng.choice(submissions[-2_000:])).ids:
                (job_id, *_) = known.ids
                await self._read(session, rng.choice(self._urls), job_id, known)

    async def _read(self, session: aiohttp.ClientSession, url: str, job_id: str, submission: Submission) -> bool:
        """Read a job; False when there was no answer."""
        known = submission.final
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.get(f"{url}/v1/jobs/{job_id}") as answer:
                text = await answer.read()
                if answer.status == 404:
                    self._history.surprises.append(("acked_lost", job_id, "404 to a read"))
                elif answer.status == 200:
                    self._history.observe(submission, json.loads(text), known)
                return True
        return False

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
