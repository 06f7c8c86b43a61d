"""The outbox on both databases: written where jobs end, claimed by one at a time, recorded by the last who claimed."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import (
    job_changes,
    job_claims,
    job_endings,
    job_inserts,
    job_leases,
    webhook_deliveries,
    webhook_endpoints,
    webhook_outbox,
)
from service.db.database import Database
from service.db.job_changes import Abandonment, CancelRequest
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.statements import Statement
from service.db.webhook_deliveries import GIVE_UP_PAGE, DeliveryClaim, Redelivery
from service.db.webhook_endpoints import DELETE_PAGE, EndpointChange, NewEndpoint, OwnEndpoint
from service.errors import error_object
from service.models import JobStatus, JobWebhook, timestamp
from service.webhook_models import (
    ClaimedDelivery,
    DeliveryOutcome,
    DeliveryStatus,
    Webhook,
    WebhookEvent,
    new_webhook_secret,
)
from tests.store.test_jobs import ME, OTHER, after, claim, end, insert
from tests.store.test_writer import new_job

URL = "https://example.com/hook"


async def endpoint(database: Database, tenant: str = "default", **more: Any) -> Webhook:
    new = NewEndpoint(id=str(uuid7()), tenant=tenant, url=URL, secret=new_webhook_secret(), **more)
    made = await database.writer.write(webhook_endpoints.insert_endpoints, new)
    assert made is not None
    return made


async def outbox(database: Database) -> list[tuple[Any, ...]]:
    """Job, type and status of every delivery, oldest first."""
    statement = Statement(sa.text("SELECT job_id, type, status FROM webhook_deliveries ORDER BY id"))
    return [tuple(row) for row in await database.reader.fetch(statement)]


async def take(database: Database, webhook: Webhook, room: int = 10, lease_s: float = 60) -> list[ClaimedDelivery]:
    item = DeliveryClaim(rooms={webhook.id: room}, lease_s=lease_s)
    return await database.writer.write(webhook_deliveries.claim_deliveries, item)


def outcome(delivery: ClaimedDelivery, status: DeliveryStatus = DeliveryStatus.DELIVERED, **more: Any):
    values = {"status_code": 204} if status is DeliveryStatus.DELIVERED else {"status_code": 500, "error": "no"}
    if status is DeliveryStatus.PENDING:
        values["retry_in_s"] = 0.0
    values |= {"disable_after_s": 1_000.0, **more}
    return DeliveryOutcome(delivery=delivery, status=status, at=timestamp(), took_s=0.1, **values)


async def record(database: Database, item: DeliveryOutcome) -> bool:
    return await database.writer.write(webhook_deliveries.record_attempts, item)


async def due(database: Database) -> list[str]:
    return [found.id for found in await webhook_deliveries.find_due(database.reader, after(1))]


async def test_every_way_in_which_a_job_ends_is_in_the_outbox(database: Database) -> None:
    await endpoint(database)
    expired, abandoned, cancelled, lost, failed, stopped = await insert(
        database,
        new_job(expires_at=after(-1)),
        new_job(run_at=None),
        new_job(run_at=after(3600)),
        *(new_job(priority=9) for _ in range(3)),
    )
    running = {job.id: job for job in await claim(database, 3)}
    assert running.keys() == {lost, failed, stopped}
    assert await outbox(database) == []
    await database.writer.write(job_changes.expire, None)
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=cancelled, reason="why"))
    await end(database, running[failed], JobStatus.FAILED)
    await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=stopped, reason="why"))
    ending = Ending(job=running[stopped], owner=ME, status=JobStatus.PENDING)
    ended = await database.writer.write(job_endings.end, ending)
    assert ended is not None
    assert ended.status is JobStatus.CANCELLED
    errors = {abandoned: error_object("PluginError", "not there", plugin="p")}
    await database.writer.write(job_changes.abandon, Abandonment(wait_s=-5, errors=errors))
    for _ in range(3):
        await database.writer.write(job_leases.recover, OTHER)
        await claim(database, 1)
    assert sorted(await outbox(database)) == sorted(
        [
            (expired, "job.failed", "PENDING"),
            (cancelled, "job.cancelled", "PENDING"),
            (failed, "job.failed", "PENDING"),
            (stopped, "job.cancelled", "PENDING"),
            (abandoned, "job.failed", "PENDING"),
            (lost, "job.failed", "PENDING"),
        ]
    )


async def test_who_hears_of_an_end_is_chosen_by_tenant_event_and_plugin(database: Database) -> None:
    hears = [
        await endpoint(database),
        await endpoint(database, events=[WebhookEvent.SUCCESS]),
        await endpoint(database, plugins=["p", "q"]),
    ]
    deaf = [
        await endpoint(database, tenant="acme"),
        await endpoint(database, events=[WebhookEvent.FAILED, WebhookEvent.CANCELLED]),
        await endpoint(database, plugins=["q"]),
        await endpoint(database),
    ]
    off = EndpointChange(
        id=deaf[-1].id, tenant="default", values={"enabled": False, "disabled_reason": "off", "failing_since": None}
    )
    await database.writer.write(webhook_endpoints.update_endpoints, off)
    await insert(database, new_job())
    (job,) = await claim(database)
    await end(database, job)
    assert sorted(await due(database)) == sorted(webhook.id for webhook in hears)


async def test_a_job_makes_its_endpoint_once_however_many_name_it_at_once(database: Database) -> None:
    def named(number: int, events: tuple[str, ...] | None) -> Any:
        job = new_job(key=str(number) if number % 2 else None, webhook=JobWebhook(url=URL, events=events))
        job.webhook = NewEndpoint(id=str(uuid7()), tenant="default", url=URL, secret=new_webhook_secret(), of_jobs=True)
        return job

    jobs = [named(n, ("job.failed",) if n == 0 else None) for n in range(10)]
    made = await asyncio.gather(*(database.writer.write(job_inserts.insert, job) for job in jobs))
    (webhook_id,) = {inserted.webhook_id for inserted in made}
    assert webhook_id is not None
    webhook = await webhook_endpoints.get(database.reader, webhook_id, "default")
    assert webhook is not None
    assert (webhook.of_jobs, await webhook_endpoints.get(database.reader, webhook_id, "acme")) == (True, None)
    await insert(database, new_job())
    for job in await claim(database, 20):
        await end(database, job)
    assert {row[0] for row in await outbox(database)} == {job.id for job in jobs[1:]}


async def test_a_job_makes_its_endpoint_anew_where_another_process_deletes_it_just_then(
    postgres_url: str, tmp_path: Path
) -> None:
    def named() -> Any:
        job = new_job(webhook=JobWebhook(url=URL))
        job.webhook = NewEndpoint(id=str(uuid7()), tenant="default", url=URL, secret=new_webhook_secret(), of_jobs=True)
        return job

    async with (
        Database.open(postgres_url, tmp_path, inline_bytes=0) as one,
        Database.open(postgres_url, tmp_path, inline_bytes=0) as other,
    ):
        before = await one.writer.write(job_inserts.insert, named())
        assert before.webhook_id is not None
        deleted: list[bool | None] = []

        class Beside:
            """A transaction beside which somebody else deletes the endpoint that keeps it from making one."""

            def __init__(self, tx: Any) -> None:
                self._tx = tx

            async def fetch(self, statement: Statement, **values: Any) -> Any:
                rows = await self._tx.fetch(statement, **values)
                if statement is webhook_endpoints._INSERT_OF_JOBS and not deleted:
                    own = OwnEndpoint(id=before.webhook_id or "", tenant="default")
                    deleted.append(await other.writer.write(webhook_endpoints.delete_endpoints, own))
                return rows

            def __getattr__(self, name: str) -> Any:
                return getattr(self._tx, name)

        async def insert_beside(tx: Any, items: Any) -> Any:
            return await job_inserts.insert(Beside(tx), items)  # type: ignore[arg-type]  # all a transaction has, by `__getattr__`

        made = await one.writer.write(insert_beside, named())
        assert deleted == [True]
        assert made.webhook_id not in (None, before.webhook_id)


async def fill(database: Database, webhook: Webhook, count: int = 1) -> None:
    async def add(tx: Any, items: Any) -> list[None]:
        now = await tx.now()
        rows = ((webhook.id, None, "webhook.ping", now) for _ in range(count))
        await webhook_outbox.insert_deliveries(tx, rows)
        return [None] * len(items)

    await database.writer.write(add, None)


async def test_a_claim_takes_what_is_due_longest_of_each_endpoint_as_far_as_there_is_room(database: Database) -> None:
    first, second = await endpoint(database), await endpoint(database)
    await fill(database, first, 5)
    await fill(database, second, 2)
    assert await due(database) == [first.id, second.id]
    item = DeliveryClaim(rooms={first.id: 3, second.id: 3}, lease_s=60)
    claimed = await database.writer.write(webhook_deliveries.claim_deliveries, item)
    assert [(one.endpoint_id, one.attempt, one.failures) for one in claimed] == [
        *[(first.id, 1, 0)] * 3, *[(second.id, 1, 0)] * 2,
    ]  # fmt: skip
    assert {one.secret.text for one in claimed} == {
        (await webhook_endpoints.get_secret(database.reader, webhook.id, "default")).text  # type: ignore[union-attr]
        for webhook in (first, second)
    }
    assert await due(database) == [first.id]
    assert len(await take(database, first)) == 2
    assert await take(database, first) == await due(database) == []


async def test_a_process_whose_clock_is_behind_the_servers_is_not_late(postgres_url: str, tmp_path: Path) -> None:
    async with Database.open(postgres_url, tmp_path, inline_bytes=0) as database:
        webhook = await endpoint(database)
        await fill(database, webhook)
        (found,) = await webhook_deliveries.find_due(database.reader, after(-600))
        assert found.id == webhook.id


async def test_two_processes_never_claim_the_same_delivery(postgres_url: str, tmp_path: Path) -> None:
    async with (
        Database.open(postgres_url, tmp_path, inline_bytes=0) as one,
        Database.open(postgres_url, tmp_path, inline_bytes=0) as other,
    ):
        webhook = await endpoint(one)
        await fill(one, webhook, 300)
        taken: list[str] = []

        async def drain(database: Database) -> None:
            while claimed := await take(database, webhook, room=7):
                taken.extend(delivery.id for delivery in claimed)
                await asyncio.gather(*(record(database, outcome(delivery)) for delivery in claimed))

        await asyncio.gather(*(drain(database) for database in (one, other) for _ in range(3)))
        assert (len(taken), len(set(taken))) == (300, 300)


async def test_what_is_recorded_after_another_claim_changes_nothing(database: Database) -> None:
    webhook = await endpoint(database)
    await fill(database, webhook)
    (first,) = await take(database, webhook, lease_s=-1)
    (second,) = await take(database, webhook)
    assert (second.id, second.attempt) == (first.id, 2)
    assert await record(database, outcome(first, DeliveryStatus.EXHAUSTED)) is False
    delivered = outcome(second)
    assert await record(database, delivered) is True
    assert await record(database, delivered) is True  # as where nobody heard of the commit
    assert await record(database, dataclasses.replace(delivered, at=after(5))) is False
    (delivery,) = (
        await webhook_deliveries.list_page(database.reader, webhook.id, status=None, after=None, limit=9)
    ).items
    assert (delivery.status, [line.attempt for line in delivery.attempts]) == (DeliveryStatus.DELIVERED, [2])


async def test_an_endpoint_that_fails_for_too_long_is_disabled_and_what_waits_is_given_up(database: Database) -> None:
    webhook = await endpoint(database)
    await fill(database, webhook, GIVE_UP_PAGE + 3)
    one, two, three = await take(database, webhook, room=3)

    async def shown() -> Webhook:
        found = await webhook_endpoints.get(database.reader, webhook.id, "default")
        assert found is not None
        return found

    await record(database, outcome(one, DeliveryStatus.PENDING))
    since = (await shown()).failing_since
    assert since is not None
    await record(database, outcome(two))
    assert (await shown()).failing_since is None
    await record(database, outcome(three, DeliveryStatus.PENDING, disable_after_s=0))
    found = await shown()
    assert (found.enabled, found.disabled_reason) == (False, "No delivery has succeeded for 0 days.")
    assert await take(database, webhook) == []
    (disabled,) = await webhook_deliveries.find_due(database.reader, after(-3600))
    assert (disabled.id, disabled.enabled) == (webhook.id, False)
    given_up = [await database.writer.write(webhook_deliveries.give_up, webhook.id) for _ in range(3)]
    assert given_up == [GIVE_UP_PAGE, 2, 0]
    assert {status for *_, status in await outbox(database)} == {"DELIVERED", "EXHAUSTED"}
    assert await webhook_deliveries.find_due(database.reader, after(3600)) == []


async def test_asked_for_again_a_delivery_has_all_its_attempts_before_it(database: Database) -> None:
    webhook = await endpoint(database)
    await fill(database, webhook)
    (claimed,) = await take(database, webhook)
    again = Redelivery(delivery_id=claimed.id, endpoint_id=webhook.id)
    await database.writer.write(webhook_deliveries.redeliver, again)
    assert await take(database, webhook) == []  # somebody is at it
    await record(database, outcome(claimed, DeliveryStatus.EXHAUSTED))
    elsewhere = dataclasses.replace(again, endpoint_id=str(uuid7()))
    await database.writer.write(webhook_deliveries.redeliver, elsewhere)
    assert await take(database, webhook) == []
    await database.writer.write(webhook_deliveries.redeliver, again)
    (second,) = await take(database, webhook)
    assert (second.id, second.attempt, second.failures) == (claimed.id, 2, 0)


async def test_an_endpoint_is_deleted_with_everything_page_by_page_and_only_by_its_tenant(database: Database) -> None:
    webhook = await endpoint(database)
    await fill(database, webhook, DELETE_PAGE + 1)
    (claimed, *_) = await take(database, webhook)
    foreign = OwnEndpoint(id=webhook.id, tenant="acme")
    assert await database.writer.write(webhook_endpoints.delete_endpoints, foreign) is None
    mine = OwnEndpoint(id=webhook.id, tenant="default")
    assert [await database.writer.write(webhook_endpoints.delete_endpoints, mine) for _ in range(3)] == [
        False,
        True,
        None,
    ]
    assert await outbox(database) == []
    assert await record(database, outcome(claimed)) is False


async def test_a_tenant_has_so_many_endpoints_and_no_more(database: Database) -> None:
    for _ in range(webhook_endpoints.MAX_ENDPOINTS):
        await endpoint(database)
    new = NewEndpoint(id=str(uuid7()), tenant="default", url=URL, secret=new_webhook_secret())
    assert await database.writer.write(webhook_endpoints.insert_endpoints, new) is None
    await endpoint(database, tenant="acme")


@pytest.mark.parametrize("ends", ["deleted", "ended"])
async def test_an_endpoint_deleted_while_jobs_end_costs_no_job_its_end(
    postgres_url: str, tmp_path: Path, ends: str
) -> None:
    async with (
        Database.open(postgres_url, tmp_path, inline_bytes=0) as one,
        Database.open(postgres_url, tmp_path, inline_bytes=0) as other,
    ):
        webhooks = [await endpoint(one) for _ in range(20)]
        await insert(one, *(new_job() for _ in range(40)))
        jobs = await one.writer.write(job_claims.claim, Claim(owner=ME, limit=40, lease_s=60))

        async def delete() -> None:
            for webhook in webhooks:
                item = OwnEndpoint(id=webhook.id, tenant="default")
                while await other.writer.write(webhook_endpoints.delete_endpoints, item) is False:
                    pass

        async def finish() -> list[Any]:
            return [await end(one, job) for job in jobs]

        first, second = (delete(), finish()) if ends == "deleted" else (finish(), delete())
        results = await asyncio.gather(first, second)
        assert next(found for found in results if found) == [JobStatus.SUCCESS] * 40
        assert await outbox(one) == []
