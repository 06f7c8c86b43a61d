"""A receiver of webhooks that fails, hangs and asks back, and O10: every end is heard of, and nothing else."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.torture.deployment import Rows
from tests.torture.oracle import Job, Violation

#: What a deployment must be told so that it delivers here, and does not take days to try again.
RECEIVER_SETTINGS: Mapping[str, Any] = {
    "webhook_http": True,
    "webhook_timeout_s": 2,
    "webhook_allow": "127.0.0.0/8",
    "webhook_retries_s": ",".join(["0.2", "0.5", "1", "1", *["2"] * 12]),
}
TERMINAL = {"SUCCESS": "job.success", "FAILED": "job.failed", "CANCELLED": "job.cancelled"}


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """One message that the receiver got, and whether it took it."""

    id: str
    type: str
    job_id: str
    status: str
    error_type: str | None
    taken: bool


class Receiver:
    """Hears of all jobs. `seed` decides how it answers: mostly 204, else 500, a reset or silence."""

    def __init__(self, seed: int, urls: Sequence[str]) -> None:
        self._rng = random.Random(f"{seed}/receiver")
        self._urls = urls
        self._session: aiohttp.ClientSession
        self._verifier: Webhook
        self.heard: list[Heard] = []
        self.surprises: list[Violation] = []
        self.calm = False  # once the run is healed it takes everything, so that nothing is given up for bad luck

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        """Listen, and be registered at the service, for as long as the block runs."""
        app = web.Application()
        app.router.add_post("/", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as self._session:
                body = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/"}
                async with self._session.post(f"{self._urls[0]}/v1/webhooks", json=body) as answer:
                    assert answer.status == 201, await answer.text()
                    self._verifier = Webhook((await answer.json())["secret"])
                yield self
        finally:
            await runner.cleanup()

    async def judge(self, rows: Rows, jobs: Mapping[str, Job]) -> list[Violation]:
        """O10: one delivery for each job that has ended, heard of as it says, and none for any other."""
        deliveries = [
            (str(delivery_id), str(job_id), kind, status)
            for delivery_id, job_id, kind, status in await rows.fetch(
                "SELECT id, job_id, type, status FROM webhook_deliveries"
            )
        ]
        return [*self.surprises, *_recorded(jobs, deliveries), *_heard(jobs, deliveries, self.heard)]

    @property
    def figures(self) -> dict[str, int]:
        """How much there was to judge."""
        taken = [message.id for message in self.heard if message.taken]
        return {
            "webhooks_heard": len(self.heard),
            "webhooks_taken": len(taken),
            "webhooks_taken_again": len(taken) - len(set(taken)),
        }

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        message_id = request.headers.get("webhook-id", "")
        try:
            message = self._verifier.verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            self.surprises.append(Violation("forged_webhook", message_id, str(error)))
            return web.Response(status=400)
        job = message["data"]
        await self._ask_back(job["id"])
        luck = 0.0 if self.calm else self._rng.random()
        error = job["error"] and job["error"]["type"]
        self.heard.append(Heard(message_id, message["type"], job["id"], job["status"], error, taken=luck < 0.9))
        if luck < 0.9:
            return web.Response(status=204)
        if luck < 0.97:
            return web.Response(status=500)
        if luck < 0.99:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        while not self.calm and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.1)
        return web.Response(status=500)

    async def _ask_back(self, job_id: str) -> None:
        """Whoever has heard of the end of a job finds that it has ended."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.get(f"{self._rng.choice(self._urls)}/v1/jobs/{job_id}") as answer:
                if answer.status == 404:
                    self.surprises.append(Violation("heard_too_early", job_id, "404 to who had heard of its end"))
                elif answer.status == 200 and (await answer.json())["status"] not in TERMINAL:
                    self.surprises.append(Violation("heard_too_early", job_id, "heard of its end, and it goes on"))


async def all_delivered(rows: Rows) -> bool:
    """Whether nothing is to be delivered any more."""
    ((pending,),) = await rows.fetch("SELECT count(*) FROM webhook_deliveries WHERE status = 'PENDING'")
    return bool(pending == 0)


def _recorded(jobs: Mapping[str, Job], deliveries: Sequence[tuple[str, str, str, str]]) -> Iterator[Violation]:
    by_job = collections.Counter(job_id for _, job_id, _, _ in deliveries)
    for job in jobs.values():
        expected = int(job.status in TERMINAL)
        if by_job[job.id] != expected:
            yield Violation("unheard", job.id, f"{job.status}, with {by_job[job.id]} deliveries instead of {expected}")
    for delivery_id, job_id, kind, status in deliveries:
        if job_id not in jobs or kind != TERMINAL.get(jobs[job_id].status):
            yield Violation("wrong_webhook", job_id, f"delivery {delivery_id} says {kind} of {jobs.get(job_id)}")
        if status == "PENDING":
            yield Violation("undelivered", job_id, f"delivery {delivery_id} is neither delivered nor given up")


def _heard(
    jobs: Mapping[str, Job], deliveries: Sequence[tuple[str, str, str, str]], heard: Sequence[Heard]
) -> Iterator[Violation]:
    by_id: dict[str, list[Heard]] = collections.defaultdict(list)
    for message in heard:
        by_id[message.id].append(message)
        job = jobs.get(message.job_id)
        if job is None or (message.status, message.error_type) != (job.status, job.error_type):
            yield Violation("wrong_webhook", message.job_id, f"heard {message}, the row is {job}")
    for delivery_id, job_id, _, status in deliveries:
        messages = by_id.pop(delivery_id, [])
        if status == "DELIVERED" and not any(message.taken for message in messages):
            yield Violation("undelivered", job_id, f"delivery {delivery_id} is DELIVERED, and was never taken")
        if len({(message.job_id, message.type) for message in messages}) > 1:
            yield Violation("wrong_webhook", job_id, f"delivery {delivery_id} said {messages}")
    for message_id, messages in by_id.items():
        yield Violation("wrong_webhook", messages[0].job_id, f"{message_id} is no delivery: {messages}")
