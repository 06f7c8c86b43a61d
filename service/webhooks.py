"""The loop that delivers webhooks: claims what is due, sends it, records how that went."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import random
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

import structlog

from service.codec import off_loop
from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.metrics import Metrics
from service.models import JobRecord, Timestamp, timestamp
from service.webhook_management import WebhookManagementService
from service.webhook_models import ClaimedDelivery, DeliveryOutcome, DeliveryStatus
from service.webhook_sender import Answer, WebhookSender

#: Polling is the truth, wake-ups only shorten it.
POLL_S: Final = 1.0
#: After a look that found nothing to do, and after one that did: so often at most the database is asked.
_IDLE_S: Final = 0.1
_BUSY_S: Final = 0.02
#: How long what is being sent may go on when the process stops.
_STOP_S: Final = 2.0
_RECORD_AGAIN_S: Final = 0.5
#: The most that a receiver may put an attempt off.
MAX_RETRY_AFTER_S: Final = 24 * 3600.0
#: The part by which a wait is made longer or shorter, so that what failed together does not come back together.
_JITTER: Final = 0.2

#: What a receiver is sent: the message about a job, or about none.
BodyOf = Callable[[ClaimedDelivery, JobRecord | None], bytes]

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """How long and how often is tried, and how much at once.

    `retries_s` are the waits before the second, third, ... attempt. An endpoint of which no attempt has succeeded for
    `disable_after_s` is disabled. At most `in_all` messages are under way in this process, `per_endpoint` of them to
    one endpoint, and one alone to an endpoint whose last attempt failed: so no endpoint takes the places of others.
    A lease must be longer than the sender's time-out: when it ends, somebody else may send the message.
    """

    retries_s: Sequence[float]
    lease_s: float
    disable_after_s: float = 5 * 86_400.0
    in_all: int = 256
    per_endpoint: int = 16


class WebhookDeliverer:
    """Sends what is due to webhooks. Any number of processes share the work: what one has claimed no other sends."""

    def __init__(
        self,
        webhooks: WebhookManagementService,
        sender: WebhookSender,
        events: EventBus,
        metrics: Metrics,
        body_of: BodyOf,
        policy: DeliveryPolicy,
    ) -> None:
        self._webhooks = webhooks
        self._sender = sender
        self._events = events
        self._metrics = metrics
        self._body_of = body_of
        self._policy = policy
        self._under_way: collections.Counter[str] = collections.Counter()  # by endpoint
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        """How many messages are being sent now."""
        return len(self._tasks)

    async def run(self) -> None:
        """Deliver at every wake-up, and at least once in `POLL_S`, until cancelled."""
        try:
            while True:
                self._events.deliveries.clear()
                started = 0
                try:
                    started = await self.start_due()
                except ServiceUnavailableError as error:
                    log.debug("cannot claim deliveries", error=str(error))
                if started:
                    await asyncio.sleep(_BUSY_S)
                    continue
                await asyncio.sleep(_IDLE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._events.deliveries.wait()
        finally:
            await self._stop()

    async def start_due(self) -> int:
        """Begin to send what is due, as far as there is room; how many messages."""
        rooms = {}
        left = self._policy.in_all - len(self._tasks)
        for endpoint in await self._webhooks.find_due():
            most = 1 if endpoint.is_failing else self._policy.per_endpoint
            room = min(most - self._under_way[endpoint.id], left)
            if room > 0:
                rooms[endpoint.id] = room
                left -= room
        claimed = await self._webhooks.claim(rooms, self._policy.lease_s) if rooms else ()
        for delivery in claimed:
            self._under_way[delivery.endpoint_id] += 1
            task = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(claimed)

    async def _stop(self) -> None:
        """Let what is under way end; what does not is sent again, by whoever claims it after its lease."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _deliver(self, delivery: ClaimedDelivery) -> None:
        structlog.contextvars.bind_contextvars(webhook_id=delivery.endpoint_id, delivery_id=delivery.id)
        loop = asyncio.get_running_loop()
        began, at = loop.time(), timestamp()
        try:
            async with asyncio.timeout(self._policy.lease_s):
                answer = await self._attempt(delivery)
            if answer is not None:
                await self._record(self._judge(delivery, answer, at, loop.time() - began), began + self._policy.lease_s)
        except (TimeoutError, ServiceUnavailableError) as error:
            log.info("delivery left to its next claim", error=str(error))
        except Exception:
            log.exception("delivery left to its next claim")
        finally:
            self._under_way[delivery.endpoint_id] -= 1
            if not self._under_way[delivery.endpoint_id]:
                del self._under_way[delivery.endpoint_id]
            self._events.deliveries.set()

    async def _attempt(self, delivery: ClaimedDelivery) -> Answer | None:
        """What the receiver said; None when there is nothing to be said to it any more."""
        job = await self._webhooks.subject(delivery)
        if job is None and delivery.job_id is not None:
            return None  # it was deleted, and its deliveries with it
        try:
            body = await off_loop(job and job.result, self._body_of, delivery, job)
        except Exception:
            log.exception("a message could not be made")
            return Answer(error="the message could not be made: a fault of the service")
        return await self._sender.send(delivery.url, delivery.id, body, delivery.secret)

    def _judge(self, delivery: ClaimedDelivery, answer: Answer, at: Timestamp, took_s: float) -> DeliveryOutcome:
        status, error, retry_in_s, disable = DeliveryStatus.EXHAUSTED, answer.error, None, None
        code = answer.status_code
        if code is not None and HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
            status = DeliveryStatus.DELIVERED
        else:
            error = error or f"answered {code}" + (", and redirects are not followed" if _is_redirect(code) else "")
            if code == HTTPStatus.GONE:
                disable = "The receiver answered 410 Gone."
            elif delivery.failures < len(self._policy.retries_s):
                status = DeliveryStatus.PENDING
                wait_s = self._policy.retries_s[delivery.failures] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
                retry_in_s = max(wait_s, min(answer.retry_after_s or 0.0, MAX_RETRY_AFTER_S))
        return DeliveryOutcome(
            delivery=delivery,
            status=status,
            at=at,
            took_s=round(took_s, 3),
            status_code=code,
            error=error,
            retry_in_s=retry_in_s,
            disable=disable,
            disable_after_s=self._policy.disable_after_s,
        )

    async def _record(self, outcome: DeliveryOutcome, until: float) -> None:
        """Tries for as long as the delivery is this claim's; after that it is made again."""
        while True:
            try:
                self._tell(outcome, is_held=await self._webhooks.record(outcome))
            except ServiceUnavailableError:
                if asyncio.get_running_loop().time() >= until:
                    raise
                await asyncio.sleep(_RECORD_AGAIN_S)
            else:
                return

    def _tell(self, outcome: DeliveryOutcome, *, is_held: bool) -> None:
        name = _OUTCOMES[outcome.status] if is_held else "late"
        self._metrics.webhook_attempts.labels(name).inc()
        tell = log.warning if outcome.status is DeliveryStatus.EXHAUSTED else log.info
        tell("webhook attempted", outcome=name, attempt=outcome.delivery.attempt, error=outcome.error)


_OUTCOMES: Final = {
    DeliveryStatus.DELIVERED: "delivered",
    DeliveryStatus.PENDING: "failed",
    DeliveryStatus.EXHAUSTED: "exhausted",
}


def _is_redirect(code: int | None) -> bool:
    return code is not None and HTTPStatus.MULTIPLE_CHOICES <= code < HTTPStatus.BAD_REQUEST
