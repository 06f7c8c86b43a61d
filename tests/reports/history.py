"""A random history of jobs: what people, runners, crashes and time do to them, the same on every database."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from service.calls import CallReport
from service.db import (
    instances,
    job_changes,
    job_claims,
    job_endings,
    job_inserts,
    job_leases,
    rollups,
    webhook_deliveries,
    webhook_endpoints,
)
from service.db.database import Database
from service.db.instances import Instance
from service.db.job_changes import Abandonment, CancelRequest
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_inserts import NewJob
from service.db.webhook_deliveries import DeliveryClaim
from service.db.webhook_endpoints import NewEndpoint
from service.errors import error_object
from service.models import ClaimedJob, JobOptions, JobStatus, Timestamp, later, timestamp
from service.webhook_models import ClaimedDelivery, DeliveryOutcome, DeliveryStatus

START = timestamp(datetime(2030, 1, 1, 23, 58, 30, tzinfo=UTC))
OWNERS = tuple(f"00000000-0000-7000-9000-{number:012x}" for number in (1, 2, 3))
WEBHOOKS = {"00000000-0000-7000-a000-000000000001": "default", "00000000-0000-7000-a000-000000000002": "acme"}
PLUGINS = ("ocr", "thumbnail", "classify")
LEASE_S = 30
#: A small page, so that a history is folded in many.
PAGE = 7
MESSAGES = (
    "Picture {n} has no text.",
    "No file 'scan-{n}.png'.",
    'Model 7f3a9c41d2 answered {n}.5 instead of "ok".',
    "out of paper",
)

#: A kind of step, and a number that decides everything else about it.
Step = tuple[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What a runner holds, or believes to hold."""

    job: ClaimedJob
    owner: str


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now: Timestamp = START
        self.on_change: Callable[[Timestamp], None] = lambda now: None

    def go_on(self, seconds: float) -> None:
        self.now = later(self.now, seconds)
        self.on_change(self.now)


class History:
    """Does steps to a database, each in a transaction of its own, at a moment of its own."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.runs: list[Run] = []
        self.submitted: list[str] = []
        self.transitions = 0

    async def begin(self) -> None:
        self._clock.go_on(0)
        for owner in OWNERS:
            instance = Instance(id=owner, version="1.0", host="host", pid=7, started_at=self._clock.now)
            await self._database.writer.write(instances.register, instance)
        for webhook_id, tenant in WEBHOOKS.items():
            endpoint = NewEndpoint(id=webhook_id, tenant=tenant, url=f"https://{tenant}.example/jobs", secret="whsec_x")
            await self._database.writer.write(webhook_endpoints.insert_endpoints, endpoint)

    async def do(self, steps: Iterable[Step]) -> None:
        for kind, number in steps:
            self._clock.go_on(0.001 + number % 5 * 0.017)
            await getattr(self, kind)(random.Random(number))

    async def _write(self, operation, *items):
        outcomes = await asyncio.gather(*(self._database.writer.write(operation, item) for item in items))
        self.transitions += len(items)
        return outcomes

    async def submit(self, draw: random.Random) -> None:
        await self._write(job_inserts.insert, *(self._new_job(draw) for _ in range(draw.randint(1, 4))))

    def _new_job(self, draw: random.Random) -> NewJob:
        self.submitted.append(f"00000000-0000-7000-8000-{len(self.submitted) + 1:012x}")
        starts_in, expires_in = draw.choice((None, None, 5, 600)), draw.choice((None, None, 30, 1_000))
        now = self._clock.now
        return NewJob(
            id=self.submitted[-1],
            tenant=draw.choice(("default", "default", "acme")),
            plugin=draw.choice(PLUGINS),
            plugin_version=draw.choice((None, "1.0", "2.0")),
            payload="{}",
            blobs=(),
            options=JobOptions(
                priority=draw.randint(-2, 2),
                run_at=None if starts_in is None else later(now, starts_in),
                expires_at=None if expires_in is None else later(now, expires_in),
            ),
            max_attempts=draw.randint(1, 3),
            created_at=now,
            idempotency_key=None,
            request_hash=None,
        )

    async def claim(self, draw: random.Random) -> None:
        owner = draw.choice(OWNERS)
        wanted: dict[str, str] = (
            {"job_id": draw.choice(self.submitted)} if self.submitted and draw.random() < 0.1 else {}
        )
        claim = Claim(owner=owner, limit=draw.randint(1, 4), lease_s=LEASE_S, **wanted)
        (claimed,) = await self._write(job_claims.claim, claim)
        self.runs += [Run(job, owner) for job in claimed]

    async def end(self, draw: random.Random) -> None:
        if self.runs:
            run = self.runs.pop(draw.randrange(len(self.runs)))
            await self._write(job_endings.end, self._ending(run, draw))

    def _ending(self, run: Run, draw: random.Random) -> Ending:
        job = run.job
        kind = draw.choice(("success", "success", "failed", "retry", "released", "cancelled"))
        if kind == "retry" and job.attempt >= job.max_attempts:
            kind = "failed"
        is_failure = kind in ("failed", "retry")
        message = draw.choice(MESSAGES).format(n=draw.randint(0, 999))
        report = CallReport(
            run_s=draw.random() * 3, cpu_s=draw.choice((None, draw.random())), worker_pid=9,
            peak_memory_bytes=draw.choice((None, draw.randint(1, 10**9))), plugin_version="2.0",
        )  # fmt: skip
        return Ending(
            job=job,
            owner=run.owner,
            status={
                "success": JobStatus.SUCCESS, "failed": JobStatus.FAILED, "cancelled": JobStatus.CANCELLED,
            }.get(kind, JobStatus.PENDING),
            result="{}" if kind == "success" else None,
            error=error_object("ExecutionError", message, plugin=job.plugin) if is_failure else None,
            cancel_reason="asked" if kind == "cancelled" else None,
            report=report,
            retry_in_s=draw.choice((0.5, 20.0)) if kind == "retry" else None,
        )  # fmt: skip

    async def cancel(self, draw: random.Random) -> None:
        if self.submitted:
            await self._write(
                job_changes.request_cancel, CancelRequest(job_id=draw.choice(self.submitted), reason="no")
            )

    async def wait(self, draw: random.Random) -> None:
        self._clock.go_on(draw.choice((0.25, 2, 2, 40, 40, 4_000, 90_000)))

    async def promote(self, draw: random.Random) -> None:
        await self._write(job_changes.promote, None)

    async def expire(self, draw: random.Random) -> None:
        await self._write(job_changes.expire, None)

    async def abandon(self, draw: random.Random) -> None:
        chosen = draw.sample(self.submitted, min(2, len(self.submitted)))
        errors = {job_id: error_object("PluginError", "It is not installed.", plugin="ocr") for job_id in chosen}
        await self._write(job_changes.abandon, Abandonment(wait_s=600, errors=errors))

    async def rescue(self, draw: random.Random) -> None:
        await self._write(job_leases.rescue, None)

    async def crash(self, draw: random.Random) -> None:
        """A process is gone with all it ran; what it wrote late changes nothing."""
        survivor = draw.choice(OWNERS)
        await self._write(job_leases.recover, survivor)
        self.runs = [run for run in self.runs if run.owner == survivor or draw.random() < 0.3]

    async def fold(self, draw: random.Random) -> None:
        await self._database.writer.write(rollups.fold, PAGE)
        if draw.random() < 0.4:
            await self._deliver(draw.choice(tuple(WEBHOOKS)))

    async def _deliver(self, webhook_id: str) -> None:
        """Try all that is due. A ping is the newest: the order of those of jobs is each database's own."""
        write = self._database.writer.write
        await write(webhook_deliveries.ping, webhook_id)
        claimed = await write(webhook_deliveries.claim_deliveries, DeliveryClaim(rooms={webhook_id: 1_000}, lease_s=60))
        for delivery in sorted(claimed, key=lambda each: each.job_id or ""):
            await write(webhook_deliveries.record_attempts, self._outcome(delivery))

    def _outcome(self, delivery: ClaimedDelivery) -> DeliveryOutcome:
        kind = (int((delivery.job_id or "0")[-4:], 16) + delivery.attempt + len(self.submitted)) % 4
        is_delivered, is_over = kind > 1, kind > 0
        return DeliveryOutcome(
            delivery=delivery,
            status=DeliveryStatus.DELIVERED if is_delivered else DeliveryStatus[("PENDING", "EXHAUSTED")[is_over]],
            at=self._clock.now,
            took_s=0.1,
            status_code=204 if is_delivered else 503,
            error=None if is_delivered else "it answered 503",
            retry_in_s=None if is_over else 60.0,
            disable_after_s=10**9,
        )


#: How often each kind of step is done.
WEIGHTS = {
    "submit": 8, "claim": 10, "end": 12, "cancel": 2, "wait": 3, "promote": 2, "expire": 1, "abandon": 1, "rescue": 1,
    "crash": 1, "fold": 4,
}  # fmt: skip


def random_steps(seed: int) -> Iterable[Step]:
    """Steps without an end."""
    draw = random.Random(seed)
    kinds, weights = zip(*WEIGHTS.items(), strict=True)
    while True:
        yield draw.choices(kinds, weights)[0], draw.randrange(10**6)
