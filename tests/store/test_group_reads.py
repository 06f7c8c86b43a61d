"""Group reads: everybody's own row, as committed when he asked, and no more statements than it takes."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from service.db import job_changes, job_queries, job_removals
from service.db.group_reads import MOST_ROWS, MOST_SIZE, GroupReads, Lookup
from service.db.job_changes import CancelRequest
from service.db.job_removals import Removal
from service.db.schema import jobs
from service.db.transaction import RefusedError
from tests.store.test_jobs import insert
from tests.store.test_writer import new_job

LOOKUP = Lookup(jobs.c.id, jobs.c.plugin, bulky=(jobs.c.payload,))


class Observed:
    """Real reads, counted. What the statement of number `held` has read stays on its way until it is let go."""

    def __init__(self, reader):
        self._reader = reader
        self.began = 0
        self.held = 0
        self.is_held = asyncio.Event()
        self.let_go = asyncio.Event()

    async def fetch(self, statement, **values):
        self.began += 1
        number = self.began
        rows = await self._reader.fetch(statement, **values)
        if number == self.held:
            self.is_held.set()
            await self.let_go.wait()
        return rows


@pytest.fixture
def observed(database):
    return Observed(database.reader)


@pytest.fixture
async def reads(observed):
    reads = GroupReads(observed.fetch, LOOKUP)
    yield reads
    observed.let_go.set()
    await reads.close()


async def delete(database, *job_ids):
    for job_id in job_ids:
        await database.writer.write(job_changes.request_cancel, CancelRequest(job_id=job_id, reason="no"))
    removed = await database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=job_ids))
    assert removed == set(job_ids)


async def test_everybody_gets_a_row_of_his_own_as_it_was_written(database):
    made = []
    for number in range(2 * MOST_ROWS + 2):
        text = f'"é\\ {number} \N{GRINNING FACE}' + "x" * (MOST_SIZE if number % 40 == 7 else 0)
        job = new_job(timeout_s=0.1 + 0.2 + number / 3, metadata={"text": text, "number": number / 7})
        job = dataclasses.replace(job, payload=json.dumps({"text": text, "number": number / 7, "big": 2**63 - 1}))
        made.append(dataclasses.replace(job, tenant="other") if number == 5 else job)
    await insert(database, *made)

    alone = [await job_queries.get(database.reader, job.id, "default") for job in made]
    unknown = str(uuid7())
    *together, nothing = await asyncio.gather(
        *(job_queries.get(database.reader, job_id, "default") for job_id in [job.id for job in made] + [unknown])
    )
    assert nothing is None
    assert together == alone
    assert together.pop(5) is None  # another tenant's
    made.pop(5)
    for job, record in zip(made, together, strict=True):
        assert record.id == job.id
        assert record.payload == json.loads(job.payload)
        assert record.timeout_s == job.options.timeout_s
        assert record.metadata == job.options.metadata


async def test_who_is_alone_is_read_for_at_once(database, observed, reads):
    (job_id,) = await insert(database, new_job())
    asking = asyncio.create_task(reads.get(job_id))
    for _ in range(3):  # the one who asks, a look around for others, the read
        await asyncio.sleep(0)
    assert observed.began == 1
    assert (await asking)[0] == job_id


async def test_all_who_wait_for_a_read_share_the_next_one(database, observed, reads):
    first, *others = await insert(database, *(new_job() for _ in range(10)))
    observed.held = 1
    asking = [asyncio.create_task(reads.get(first))]
    await observed.is_held.wait()
    asking += [asyncio.create_task(reads.get(job_id)) for job_id in others * 3]
    await asyncio.sleep(0)
    assert observed.began == 1
    observed.let_go.set()
    assert [row[0] for row in await asyncio.gather(*asking)] == [first, *others * 3]
    assert observed.began == 2


async def test_a_read_that_began_before_one_asked_does_not_answer_him(database, observed, reads):
    (job_id,) = await insert(database, new_job())
    observed.held = 1
    before = asyncio.create_task(reads.get(job_id))
    await observed.is_held.wait()
    await delete(database, job_id)
    after = asyncio.create_task(reads.get(job_id))
    await asyncio.sleep(0)
    observed.let_go.set()
    assert (await before)[0] == job_id
    assert await after is None


async def test_nothing_is_found_after_the_answer_to_its_deletion(database):
    ids = await insert(database, *(new_job() for _ in range(40)))
    ended = asyncio.Event()

    async def keep_asking(ids):
        seen = 0
        while not ended.is_set():
            for job_id in ids:
                seen += await job_queries.get(database.reader, job_id, "default") is not None
        return seen

    askers = [asyncio.create_task(keep_asking(ids[n::8] + ids)) for n in range(8)]
    for job_id in ids:
        assert await job_queries.get(database.reader, job_id, "default") is not None
        await delete(database, job_id)
        asked = (job_queries.get(database.reader, job_id, "default") for _ in range(3))
        assert await asyncio.gather(*asked) == [None] * 3
    ended.set()
    assert all(await asyncio.gather(*askers))


async def test_an_error_reaches_all_who_asked_and_nobody_after(database):
    nowhere = sa.table("nowhere", sa.column("id", jobs.c.id.type), sa.column("text", sa.Text))
    reads = GroupReads(database.reader.fetch, Lookup(nowhere.c.id, bulky=(nowhere.c.text,)))
    asked = [str(uuid7()) for _ in range(5)]
    for _ in range(2):
        errors = await asyncio.gather(*map(reads.get, asked), return_exceptions=True)
        assert [type(error) for error in errors] == [RefusedError] * 5
    (job_id,) = await insert(database, new_job())
    assert (await job_queries.get(database.reader, job_id, "default")).id == job_id


async def test_who_is_cancelled_takes_nobody_with_him(database, observed, reads):
    one, other, third = await insert(database, *(new_job() for _ in range(3)))
    observed.held = 1
    reading = [asyncio.create_task(reads.get(job_id)) for job_id in (one, other)]
    await observed.is_held.wait()
    waiting = [asyncio.create_task(reads.get(job_id)) for job_id in (other, third)]
    await asyncio.sleep(0)
    reading[0].cancel()
    waiting[0].cancel()
    await asyncio.sleep(0)
    observed.let_go.set()
    assert (await reading[1])[0] == other
    assert (await waiting[1])[0] == third
    assert reading[0].cancelled()
    assert waiting[0].cancelled()


async def test_a_large_row_holds_up_nobody(database, observed, reads):
    large = dataclasses.replace(new_job(), payload=json.dumps({"text": "".join(str(uuid7()) for _ in range(8_000))}))
    large_id, small_id = await insert(database, large, new_job())
    observed.held = 2  # what reads the large one
    both = [asyncio.create_task(reads.get(job_id)) for job_id in (large_id, small_id)]
    assert (await both[1])[0] == small_id
    await observed.is_held.wait()
    assert (await reads.get(small_id))[0] == small_id
    assert not both[0].done()
    observed.let_go.set()
    assert (await both[0])[0] == large_id
    assert observed.began == 3
