"""A dump of PostgreSQL that is restored into a server with fewer transactions is reported and followed as any other."""

from __future__ import annotations

import asyncio

import pytest

from service.db import event_reads, instances, rollups
from service.db.database import Database
from service.db.instances import Instance
from service.db.migrate import upgrade
from service.models import timestamp
from tests.conftest import sql
from tests.reports.history import OWNERS
from tests.reports.proof import check, fold_all
from tests.reports.test_upgrade import live

#: So many transactions more than the server that has the database now the one that wrote the dump had counted.
MORE = 10**9


@pytest.mark.parametrize("folded", [0, 4, 100])
@pytest.mark.parametrize("was_used", [False, True])
async def test_events_of_a_restored_dump_are_folded_once_and_those_after_it_too(
    postgres_url, tmp_path, folded, was_used
):
    async with Database.open(postgres_url, tmp_path, inline_bytes=1_000) as database:
        instance = Instance(id=OWNERS[0], version="1.0", host="host", pid=7, started_at=timestamp())
        await database.writer.write(instances.register, instance)
        for _ in range(3):
            await live(database)
        if folded:
            await database.writer.write(rollups.fold, folded)
        await live(database)
        for change in (
            f"UPDATE job_events SET tx = tx + {MORE}",
            f"UPDATE rollup_state SET tx = tx + {MORE} WHERE tx >= 0",
        ):
            await asyncio.to_thread(sql, postgres_url, change)
        if was_used:  # by a version that knew nothing of this
            await live(database)
            await database.writer.write(rollups.fold, 100)
        await asyncio.gather(upgrade(postgres_url), upgrade(postgres_url))
        # Other tests have open transactions on this server: nothing is read or folded past those.
        async with asyncio.timeout(90):
            await fold_all(database)
            newest = await event_reads.newest(database.reader)
            await live(database)
            while len(events := (await event_reads.of_all(database.reader, newest, None, limit=100)).events) < 3:
                await asyncio.sleep(0.05)
            assert [event.type for event in events] == ["submitted", "started", "success"]
            await fold_all(database)
        await check(database)


async def test_what_no_dump_has_brought_keeps_its_place(postgres_url, tmp_path):
    async with Database.open(postgres_url, tmp_path, inline_bytes=1_000) as database:
        await live(database)
        await database.writer.write(rollups.fold, 2)
        places = "SELECT tx, position FROM job_events UNION ALL SELECT tx, position FROM rollup_state ORDER BY 1, 2"
        before = await asyncio.to_thread(sql, postgres_url, places)
        await upgrade(postgres_url)
        assert await asyncio.to_thread(sql, postgres_url, places) == before
