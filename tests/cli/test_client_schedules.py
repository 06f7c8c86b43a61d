"""`client.schedules` and the commands `schedules`, against a running service."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.client import ApiError, Client, NewSchedule
from service.models import timestamp

from .conftest import RunningService, wait_until
from .relays import losing_answers

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[Client]:
    async with Client(service.url) as client:
        yield client


async def test_a_schedule_is_made_changed_run_and_forgotten(client: Client) -> None:
    name = f"s{uuid.uuid4().hex}"
    wanted = NewSchedule(
        name=name, plugin="echo", payload={"n": 1, "data": b"\0"}, cron="0 3 * * *", options={"tags": ["a"]}
    )
    made = await client.schedules.create(wanted)
    assert (made.name, made.cron, made.every_s, made.timezone, made.misfire) == (name, "0 3 * * *", None, "UTC", "once")
    assert made.next_at
    assert made.next_at.endswith("T03:00:00.000Z")
    assert [found.id for found in await client.schedules.list() if found.name == name] == [made.id]
    with pytest.raises(ApiError) as taken:
        await client.schedules.create(wanted)
    assert taken.value.status == 409
    job = await client.schedules.run_now(made.id)
    assert (job.schedule_id, list(job.tags)) == (made.id, ["a"])
    done = await client.wait(job.id)
    assert done.result
    assert done.result["n"] == 1
    assert (await client.schedules.pause(made.id)).paused
    assert not (await client.schedules.resume(made.id)).paused
    replaced = await client.schedules.replace(made.id, NewSchedule(name=name, plugin="echo", payload={}, every_s=3600))
    assert (replaced.id, replaced.cron, replaced.every_s) == (made.id, None, 3600)
    await client.schedules.delete(made.id)
    with pytest.raises(ApiError) as gone:
        await client.schedules.get(made.id)
    assert gone.value.status == 404


async def test_a_schedule_whose_deletion_got_no_answer_is_deleted(service: RunningService, client: Client) -> None:
    made = await client.schedules.create(NewSchedule(name=uuid.uuid4().hex, plugin="echo", payload={}, every_s=9_000))
    async with losing_answers(service.url, losses=1) as (url, requests), Client(url) as unlucky:
        await unlucky.schedules.delete(made.id)
        assert len(requests) == 2
        with pytest.raises(ApiError) as unknown:
            await unlucky.schedules.delete(made.id)
    assert unknown.value.status == 404


def test_the_commands_take_a_schedule_by_its_name(service: RunningService) -> None:
    name = f"s{uuid.uuid4().hex}"
    timing = ("--cron", "30 2 * * MON-FRI", "--timezone", "Europe/Berlin")
    made = service.cli("schedules", "create", name, "--plugin", "echo", "--payload", '{"a": 1}', "--tag", name, *timing)
    assert made.returncode == 0, made.stderr
    schedule_id = made.stdout.strip()
    (row,) = (line for line in service.cli("schedules", "list").stdout.splitlines() if line.startswith(name))
    assert "30 2 * * MON-FRI Europe/Berlin" in row
    assert "active" in row
    assert json.loads(service.cli("schedules", "show", name, "--json").stdout)["id"] == schedule_id
    assert '{"a": 1}' in service.cli("schedules", "show", schedule_id).stdout
    job_id = service.cli("schedules", "run", name).stdout.strip()
    assert json.loads(service.cli("show", job_id, "--wait", "--json").stdout)["tags"] == [name]
    assert service.cli("schedules", "pause", name).stdout == f"The schedule {name} is paused.\n"
    assert json.loads(service.cli("schedules", "resume", name, "--json").stdout)["paused"] is False
    assert service.cli("schedules", "delete", name).stdout == f"The schedule {name} is deleted.\n"
    gone = service.cli("schedules", "run", name)
    assert (gone.returncode, name in gone.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--cron"),
        (("--cron", "* * * * *", "--every-s", "5"), "--every-s"),
        (("--cron", "every day"), "/cron"),
        (("--every-s", "5", "--timezone", "Mars/Olympus"), "timezone"),
        (("--every-s", "5", "--payload", "[]"), "--payload"),
    ],
)
def test_a_schedule_that_cannot_be_made_is_told(
    service: RunningService, arguments: tuple[str, ...], named: str
) -> None:
    done = service.cli("schedules", "create", "x", "--plugin", "echo", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_a_long_interval_is_told_to_the_second(service: RunningService) -> None:
    name = f"s{uuid.uuid4().hex}"
    service.cli("schedules", "create", name, "--plugin", "echo", "--every-s", "2592001")
    (row,) = (line for line in service.cli("schedules", "list").stdout.splitlines() if line.startswith(name))
    assert "every 2592001 s" in row


def test_a_schedule_that_has_ended_is_not_resumed_to_a_time_that_there_is_not(service: RunningService) -> None:
    name = f"s{uuid.uuid4().hex}"
    ends_at = timestamp(datetime.now(UTC) + timedelta(seconds=3))
    made = service.cli("schedules", "create", name, "--plugin", "echo", "--every-s", "1", "--ends-at", ends_at)
    assert made.returncode == 0, made.stderr
    service.cli("schedules", "pause", name)
    wait_until(lambda: timestamp() > ends_at)
    assert service.cli("schedules", "resume", name).stdout == f"The schedule {name} is not paused, but has ended.\n"
