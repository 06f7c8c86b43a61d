"""Schedules and controls of plugins on real processes: shared by two, killed, full, paused and started again."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timedelta
from typing import Any

import requests

from tests.conftest import sql
from tests.service.conftest import Process, until


def call(process: Process, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = requests.request(method, process.url + path, json=body, timeout=30)
    assert answer.ok, answer.text
    value: dict[str, Any] = answer.json()
    return value


def schedule(process: Process, name: str, **timing: Any) -> dict[str, Any]:
    body = {"name": name, "plugin": "echo", "payload": {}, "every_s": 1, **timing}
    return call(process, "POST", "/v1/schedules", body)


def moment(text: Any) -> datetime:
    """A time, as one of the drivers or the API gives it."""
    return text if isinstance(text, datetime) else datetime.fromisoformat(text)


def ticks(url: str, of: dict[str, Any]) -> list[datetime]:
    rows = sql(url, f"SELECT scheduled_for FROM jobs WHERE schedule_id = '{of['id']}' ORDER BY scheduled_for")
    return [moment(tick) for (tick,) in rows]


def attempts(url: str, plugin: str) -> list[tuple[datetime, datetime, str]]:
    """Start, end and process of every execution, by start."""
    rows = sql(
        url,
        "SELECT started_at, finished_at, instance_id FROM report_attempts "
        f"WHERE plugin = '{plugin}' AND finished_at IS NOT NULL ORDER BY started_at",
    )
    return [(moment(start), moment(end), str(owner)) for start, end, owner in rows]


def test_a_tick_of_every_second_makes_one_job_though_one_of_two_processes_is_killed(serve, postgres_url):
    one, other = (serve("--database-url", postgres_url, "--workers", "1") for _ in range(2))
    every = schedule(one, "every", misfire="all")
    newest = schedule(other, "newest")
    until(lambda: len(ticks(postgres_url, every)) >= 3)
    one.kill()
    until(lambda: len(ticks(postgres_url, every)) >= 9)
    call(other, "POST", f"/v1/schedules/{every['id']}/pause")
    made = ticks(postgres_url, every)
    first = moment(every["created_at"])
    assert made == [first + timedelta(seconds=number) for number in range(1, len(made) + 1)]
    # This one may make one job for several ticks of a busy moment, but none twice.
    others = ticks(postgres_url, newest)
    assert len(others) == len(set(others)) >= 5
    assert {(tick - moment(newest["created_at"])) % timedelta(seconds=1) for tick in others} == {timedelta()}


def test_a_tick_that_finds_the_queue_full_waits_and_the_misfire_rule_decides(serve):
    service = serve("--max-queued", "1", "--workers", "1")
    call(service, "POST", "/v1/plugins/sleep/pause")
    waiting = service.submit("sleep", {"seconds": 0})
    made = schedule(service, "s")
    path, second = f"/v1/schedules/{made['id']}", timedelta(seconds=1)
    due_since = moment(made["next_at"])
    until(lambda: datetime.now(due_since.tzinfo) - due_since > 2.5 * second)
    assert call(service, "GET", path)["next_at"] == made["next_at"]
    call(service, "POST", "/v1/plugins/sleep/resume")
    assert service.job(waiting, wait=30)["status"] == "SUCCESS"
    record = until(lambda: (found := call(service, "GET", path))["last_at"] and found)
    made_up = moment(record["last_at"])
    assert made_up >= due_since + 2 * second
    url = f"sqlite+aiosqlite:///{service.data_dir / 'jobs.db'}"
    assert ticks(url, made)[0] >= made_up - 2 * second


def test_missed_ticks_for_all_of_which_there_is_never_room_are_made_one_by_one(serve):
    service = serve("--max-queued", "2", "--workers", "1")
    call(service, "POST", "/v1/plugins/echo/pause", {"intake": True})
    made, second = schedule(service, "s", misfire="all"), timedelta(seconds=1)
    first = moment(made["next_at"])
    until(lambda: datetime.now(first.tzinfo) - first > 5 * second)
    call(service, "POST", "/v1/plugins/echo/resume")
    url = f"sqlite+aiosqlite:///{service.data_dir / 'jobs.db'}"
    found = until(lambda: len(found := ticks(url, made)) >= 6 and found)
    assert found == [first + number * second for number in range(len(found))]


def test_a_schedule_that_cannot_be_followed_is_told_of_once_a_minute_and_holds_up_no_other(serve):
    service = serve()
    url = f"sqlite+aiosqlite:///{service.data_dir / 'jobs.db'}"
    minutely = {"name": "broken", "plugin": "echo", "payload": {}, "cron": "* * * * *"}
    broken, other = call(service, "POST", "/v1/schedules", minutely), schedule(service, "other")
    # As that of a zone which the time zones of this machine do not have yet.
    sql(url, f"UPDATE schedules SET timezone = 'No/Zone', next_at = created_at WHERE id = '{broken['id']}'")
    until(lambda: len(ticks(url, other)) >= 4)
    assert service.log.read_text().count("the jobs of a schedule cannot be made") == 1
    call(service, "PUT", f"/v1/schedules/{broken['id']}", {"name": "b", "plugin": "echo", "payload": {}, "every_s": 1})
    until(lambda: ticks(url, broken))


def test_two_processes_run_no_more_at_once_than_the_limit_says(serve, postgres_url):
    one, other = (serve("--database-url", postgres_url, "--workers", "2") for _ in range(2))
    call(one, "PUT", "/v1/plugins/sleep/limits", {"concurrency": 1})
    jobs = [(one, other)[n % 2].submit("sleep", {"seconds": 0.4}) for n in range(8)]
    most = 0

    def all_ended() -> bool:
        nonlocal most
        ((running, waiting),) = sql(
            postgres_url,
            "SELECT count(*) FILTER (WHERE status = 'RUNNING'), count(*) FILTER (WHERE status = 'PENDING') FROM jobs",
        )
        most = max(most, running)
        return bool(running + waiting == 0)

    until(all_ended, 60)
    assert most == 1
    runs = attempts(postgres_url, "sleep")
    assert len(runs) == len(jobs)
    # A claim has the time at which its transaction began, when the end before it was still being written.
    assert all(start - end > timedelta(seconds=-0.2) for (_, end, _), (start, _, _) in itertools.pairwise(runs))


def test_two_processes_start_no_more_a_second_than_the_rate_says(serve, postgres_url):
    one, other = (serve("--database-url", postgres_url, "--workers", "1") for _ in range(2))
    rate, burst = 5.0, 2
    call(one, "PUT", "/v1/plugins/echo/limits", {"rate_per_s": rate, "burst": burst})
    jobs = [(one, other)[n % 2].submit("echo") for n in range(16)]
    assert {other.job(job, wait=60)["status"] for job in jobs} == {"SUCCESS"}
    starts = [start for start, _, _ in attempts(postgres_url, "echo")]
    assert len(starts) == len(jobs)
    for first, last in itertools.combinations(range(len(starts)), 2):
        seconds = (starts[last] - starts[first]).total_seconds()
        assert last - first + 1 <= burst + rate * seconds + 1e-6


def test_a_pause_survives_the_process_that_was_told(serve):
    first = serve()
    call(first, "POST", "/v1/plugins/echo/pause", {"intake": True, "reason": "being replaced"})
    call(first, "POST", "/v1/plugins/sleep/pause")
    waiting = first.submit("sleep", {"seconds": 0})
    first.kill()
    second = serve(built_in=["echo", "image_info", "sleep"])
    refused = requests.post(f"{second.url}/v1/plugins/echo/jobs", json={}, timeout=30)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/plugin-paused")
    assert (
        second.job(second.submit("image_info", {"image": {"$bytes": "AA=="}, "mime_type": "image/png"}), wait=30)[
            "status"
        ]
        == "FAILED"
    )
    assert second.job(waiting)["status"] == "PENDING"
    began = time.monotonic()
    call(second, "POST", "/v1/plugins/sleep/resume")
    assert second.job(waiting, wait=30)["status"] == "SUCCESS"
    assert time.monotonic() - began < 20
