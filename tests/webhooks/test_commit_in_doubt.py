"""The connection is lost while the server commits what became of a delivery."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from service.app import Service
from service.settings import Settings
from tests.in_doubt import losing_commits
from tests.webhooks.conftest import INSIDE, Client, Receiver, until


async def test_a_delivery_that_was_recorded_unheard_is_no_late_one(
    postgres_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    async with losing_commits(postgres_url) as relay, aiohttp.ClientSession() as session:
        settings = Settings(_env_file=None, database_url=relay.url, data_dir=tmp_path, port=0, drain_s=0, **INSIDE)
        async with Service.open(settings, only_plugins={"echo"}) as service:
            assert service.url
            client = Client(service.url, session)
            webhook = await client.webhook(receiver.url)
            relay.doomed.append(b'"DELIVERED"')
            await client.submit()
            attempts = service.metrics.webhook_attempts
            await until(lambda: any(sample.value for metric in attempts.collect() for sample in metric.samples))
            (delivery,) = await client.ended(webhook)
    assert relay.doomed == []
    assert [line["status_code"] for line in delivery["attempts"]] == [204]
    assert attempts.labels("delivered")._value.get() == 1
    assert attempts.labels("late")._value.get() == 0
