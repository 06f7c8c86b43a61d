"""What is kept of jobs that have ended is answered only while it is what the database says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uuid_utils.compat import uuid7

from service.api.ended_jobs import MOST_ANSWERS, MOST_BYTES, Answer, EndedJobs
from service.db import job_removals
from service.db.database import Database
from service.db.job_removals import Removal
from service.models import JobVersion, Timestamp
from tests.following.conftest import Client


async def delete_past(database_url: str, folder: Path, job_id: str) -> None:
    """Delete a job as another process does, of which the service hears nothing."""
    async with Database.open(database_url, folder, inline_bytes=1_000) as database:
        removed = await database.writer.write(job_removals.delete, Removal(tenant="default", job_ids=[job_id]))
    assert removed == {job_id}


async def asked(client: Client, job_id: str, known: str | None = None) -> tuple[int, str, Any]:
    headers = {} if known is None else {"If-None-Match": known}
    async with client.get(f"/v1/jobs/{job_id}", headers=headers) as answer:
        return answer.status, answer.headers.get("ETag", ""), await answer.json() if answer.status != 304 else None


async def test_a_job_that_has_ended_is_answered_alike_however_often_it_is_asked_for(client: Client) -> None:
    job_id = await client.submit("echo", {"text": "é\N{GRINNING FACE}", "large": "x" * MOST_BYTES})
    small_id = await client.submit("echo", {"text": "é\N{GRINNING FACE}"})
    for each in (job_id, small_id):
        await client.ended(each)
        first = await asked(client, each)
        assert first[0] == 200
        assert first[2]["status"] == "SUCCESS"
        assert [await asked(client, each) for _ in range(3)] == [first] * 3
        assert await asked(client, each, first[1]) == (304, first[1], None)
        assert await asked(client, each, 'W/"1"') == first
        assert (await asked(client, each.upper()))[2] == first[2]


async def test_no_answer_outlives_its_job_whoever_deletes_it(client: Client, database_url: str, tmp_path: Path) -> None:
    job_id = await client.submit()
    await client.ended(job_id)
    for _ in range(3):
        assert (await asked(client, job_id))[0] == 200
    await delete_past(database_url, tmp_path / "blobs", job_id)
    for _ in range(3):
        assert (await asked(client, job_id))[0] == 404


async def test_a_job_that_takes_the_id_of_a_deleted_one_is_another_job(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    job_id = str(uuid7())
    etags = []
    for number in range(3):
        body = {"plugin": "echo", "payload": {"number": number}}
        async with client.session.put(f"{client.url}/v1/jobs/{job_id}", json=body) as answer:
            assert answer.status == 202
        await client.ended(job_id)
        for known in (None, *etags, None):
            status, etag, record = await asked(client, job_id, known)
            assert (status, record["result"]) == (200, {"number": number})
        etags.append(etag)
        await delete_past(database_url, tmp_path / "blobs", job_id)
    assert len(set(etags)) == 3


def test_what_is_kept_is_bounded_and_what_nobody_asks_for_goes_first() -> None:
    kept = EndedJobs()
    answer = Answer(JobVersion(Timestamp("2026-01-01T00:00:00.000000Z"), 3), 'W/"3"', b"{}")
    for number in range(MOST_ANSWERS):
        kept.keep(str(number), answer)
    assert kept.find("0") is answer
    kept.keep("one more", answer)
    assert len(kept) == MOST_ANSWERS
    assert kept.find("0") is answer
    assert kept.find("1") is None
    kept.keep("large", answer._replace(body=b"x" * (MOST_BYTES + 1)))
    assert kept.find("large") is None
    kept.forget("0")
    kept.forget("0")
    assert kept.find("0") is None
