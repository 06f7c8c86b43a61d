"""Whatever two owners do to jobs, in whatever order and at whatever time, the rows tell one legal story of each job."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.db import (
    job_changes,
    job_claims,
    job_endings,
    job_inserts,
    job_leases,
    job_removals,
    job_retries,
    plugin_controls,
)
from service.db.database import Database
from service.db.job_changes import CancelRequest, ProgressMade
from service.db.job_claims import Claim
from service.db.job_endings import Ending
from service.db.job_inserts import NewJob
from service.db.job_leases import Renewal
from service.db.job_removals import Removal
from service.db.job_retries import Retry
from service.db.plugin_controls import Limits, Pause
from service.db.schema import job_attempts, job_events, jobs
from service.db.statements import Statement
from service.db.transaction import RefusedError
from service.errors import error_object
from service.models import TRANSITIONS, ClaimedJob, JobOptions, JobStatus, Progress, Timestamp, later, timestamp
from tests.conftest import sql, sqlite_url
from tests.store.guards import install_guards

OWNERS = tuple(f"00000000-0000-7000-9000-{number:012x}" for number in (1, 2))
LEASE_S = 10
START = timestamp(datetime(2030, 1, 1, tzinfo=UTC))

_TABLES = (jobs, job_attempts, job_events)
_READ = {table.name: Statement(sa.select(table).order_by(*table.primary_key)) for table in _TABLES}

#: The events that move a job, and where to.
_MOVES = {
    "submitted": JobStatus.PENDING,
    "started": JobStatus.RUNNING,
    "lost": JobStatus.PENDING,
    "released": JobStatus.PENDING,
    "retrying": JobStatus.PENDING,
    "success": JobStatus.SUCCESS,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
}
_REMARKS = {"progress", "cancel_requested"}

Rows = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What a runner believes to hold."""

    job: ClaimedJob
    owner: str


class Store(RuleBasedStateMachine):
    """Two owners on one database whose clock stands still until it is told to tick."""

    fresh: Callable[[Path], str]  # the URL of an empty, guarded database at head; it may lie in a folder

    def __init__(self) -> None:
        super().__init__()
        self.now: Timestamp = START
        self.submitted: list[str] = []
        self.keys: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.runs: list[Run] = []  # every claim there ever was; the stale ones are the interesting ones
        self.holder: dict[str, Run] = {}
        self.paused = False
        self.concurrency: int | None = None
        self._loop = asyncio.Runner()
        self._open = contextlib.AsyncExitStack()
        directory = Path(self._enter_directory())
        url = type(self).fresh(directory)
        self.database = self._wait(
            self._open.enter_async_context(
                Database.open(url, directory / "blobs", inline_bytes=1_000, clock=lambda: self.now)
            )
        )
        self.rows = self._read()

    def _enter_directory(self) -> str:
        return self._open.enter_context(tempfile.TemporaryDirectory())

    def teardown(self) -> None:
        self._wait(self._open.aclose())
        self._loop.close()

    def _wait(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine)

    def _write(self, operation: Any, *items: Any) -> list[Any]:
        """The outcomes of `items`, all in one transaction."""

        async def write() -> list[Any]:
            return await asyncio.gather(*(self.database.writer.write(operation, item) for item in items))

        outcomes: list[Any] = self._wait(write())
        return outcomes

    def _read(self) -> Rows:
        async def read() -> Rows:
            return {
                table.name: [
                    dict(zip(table.columns.keys(), row, strict=True))
                    for row in await self.database.reader.fetch(_READ[table.name])
                ]
                for table in _TABLES
            }

        rows: Rows = self._wait(read())
        return rows

    def _holds(self, run: Run) -> bool:
        return self.holder.get(run.job.id) == run

    # What people and owners do.

    @rule(
        count=st.integers(1, 3),
        priority=st.integers(-1, 1),
        starts_in=st.sampled_from([None, 5, 60]),
        expires_in=st.sampled_from([None, 3, 30]),
    )
    def submit(self, count: int, priority: int, starts_in: int | None, expires_in: int | None) -> None:
        options = JobOptions(
            priority=priority,
            run_at=None if starts_in is None else later(self.now, starts_in),
            expires_at=None if expires_in is None else later(self.now, expires_in),
        )
        new = [self._new_job(options) for _ in range(count)]
        assert [(one.id, one.replayed) for one in self._write(job_inserts.insert, *new)] == [
            (job.id, False) for job in new
        ]

    @rule(key=st.sampled_from("ab"), times=st.integers(1, 3))
    def submit_with_a_key(self, key: str, times: int) -> None:
        new = [self._new_job(JobOptions(), key) for _ in range(times)]
        outcomes = self._write(job_inserts.insert, *new)
        first = self.keys.setdefault(key, outcomes[0].id)
        assert {one.id for one in outcomes} == {first}

    def _new_job(self, options: JobOptions, key: str | None = None) -> NewJob:
        self.submitted.append(f"00000000-0000-7000-8000-{len(self.submitted) + 1:012x}")
        return NewJob(
            id=self.submitted[-1],
            tenant="default",
            plugin="p",
            plugin_version=None,
            payload="{}",
            blobs=(),
            options=options,
            max_attempts=1,
            created_at=self.now,
            idempotency_key=key,
            request_hash="hash" if key else None,
        )

    @rule(
        owners=st.lists(st.sampled_from(OWNERS), min_size=1, max_size=3), limit=st.integers(1, 3), knows=st.booleans()
    )
    def claim(self, owners: list[str], limit: int, knows: bool) -> None:
        claims = [Claim(owner=owner, limit=limit, lease_s=LEASE_S, controlled=knows) for owner in owners]
        held = len(self.holder)
        taken = self._write(job_claims.claim, *claims)
        allowed = held + 3 * limit
        if self.paused or (self.concurrency is not None and not knows):
            allowed = held
        elif self.concurrency is not None:
            allowed = max(held, self.concurrency)
        assert held + sum(map(len, taken)) <= allowed
        for owner, claimed in zip(owners, taken, strict=True):
            assert len(claimed) <= limit
            for job in claimed:
                self._start(Run(job, owner))

    @rule(paused=st.sampled_from([False, False, True]), concurrency=st.sampled_from([None, None, 1, 2]))
    def control(self, paused: bool, concurrency: int | None) -> None:
        if paused:
            self._write(plugin_controls.pause, Pause(plugin="p", refuses_jobs=False, reason=None))
        else:
            self._write(plugin_controls.resume, "p")
        limits = Limits(plugin="p", concurrency=concurrency, rate_per_s=None, burst=None)
        self._write(plugin_controls.set_limits, limits)
        self.paused, self.concurrency = paused, concurrency
        self._nothing_changed()

    @precondition(lambda self: self.rows["jobs"])
    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def claim_that_one(self, data: st.DataObject, owner: str) -> None:
        row = data.draw(st.sampled_from(self.rows["jobs"]))
        (claimed,) = self._write(job_claims.claim, Claim(owner=owner, limit=1, lease_s=LEASE_S, job_id=row["id"]))
        may_start = row["status"] == "PENDING" and not self._is_late(row)
        assert [job.id for job in claimed] == ([row["id"]] if may_start else [])
        for job in claimed:
            self._start(Run(job, owner))

    def _is_late(self, row: Any) -> bool:
        return row["expires_at"] is not None and row["expires_at"] < self.now

    def _start(self, run: Run) -> None:
        assert not any(self._is_late(row) for row in self.rows["jobs"] if row["id"] == run.job.id)
        assert run.job.id not in self.holder, "claimed while another held it"
        assert all(run.job.fence > before.job.fence for before in self.runs if before.job.id == run.job.id)
        self.holder[run.job.id] = run
        self.runs.append(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), status=st.sampled_from(sorted(TRANSITIONS[JobStatus.RUNNING])))
    def end(self, data: st.DataObject, status: JobStatus) -> None:
        run = data.draw(st.sampled_from(self.runs))
        held = self._holds(run)
        (outcome,) = self._write(job_endings.end, _ending(run, status))
        assert bool(outcome) == held
        if held:
            del self.holder[run.job.id]
        else:
            self._nothing_changed()

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def end_with_a_fence_or_owner_made_up(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs))
        other = next(owner for owner in OWNERS if owner != run.owner)
        later_fence = dataclasses.replace(run.job, fence=run.job.fence + 1)
        for wrong in (Run(run.job, other), Run(later_fence, run.owner)):
            if not self._holds(wrong) and wrong not in self.runs:
                (outcome,) = self._write(job_endings.end, _ending(wrong, JobStatus.SUCCESS))
                assert not outcome
                self._nothing_changed()

    @precondition(lambda self: any(not self._holds(run) and run.job.id in self.holder for run in self.runs))
    @rule(data=st.data(), stale_first=st.booleans())
    def end_at_once_with_a_stale_run(self, data: st.DataObject, stale_first: bool) -> None:
        stale = data.draw(
            st.sampled_from([run for run in self.runs if not self._holds(run) and run.job.id in self.holder])
        )
        live = self.holder.pop(stale.job.id)
        both = [_ending(stale, JobStatus.FAILED), _ending(live, JobStatus.SUCCESS)]
        outcomes = self._write(job_endings.end, *(both if stale_first else both[::-1]))
        assert [bool(outcome) for outcome in outcomes] == ([False, True] if stale_first else [True, False])
        assert self._job(live.job.id)["status"] == "SUCCESS"

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), fraction=st.floats(0, 1))
    def make_progress(self, data: st.DataObject, fraction: float) -> None:
        run = data.draw(st.sampled_from(self.runs))
        made = ProgressMade(job=run.job, owner=run.owner, progress=Progress(fraction=fraction, message="m"))
        assert self._write(job_changes.make_progress, made) == [self._holds(run)]
        if not self._holds(run):
            self._nothing_changed()

    @rule(owner=st.sampled_from(OWNERS))
    def renew(self, owner: str) -> None:
        claimed = [(run.job.id, run.job.fence) for run in self.runs if run.owner == owner]
        leased = {row["id"] for row in self.rows["jobs"] if row["lease_until"] and row["lease_until"] > self.now}
        held = {(run.job.id, run.job.fence) for run in self.holder.values() if run.owner == owner}
        mine = {(job_id, fence) for job_id, fence in held if job_id in leased}
        (kept,) = self._write(job_leases.renew, Renewal(owner=owner, lease_s=LEASE_S, runs=claimed))
        assert set(kept) == mine
        lease_until = {row["id"]: row["lease_until"] for row in self._read()["jobs"]}
        assert {lease_until[job_id] for job_id, _ in mine} <= {later(self.now, LEASE_S)}

    @precondition(lambda self: self.rows["jobs"])
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows["jobs"]))
        asked = row["status"] == "PENDING" or (row["status"] == "RUNNING" and row["cancel_requested_at"] is None)
        request = CancelRequest(job_id=row["id"], reason="asked")
        (outcome,) = self._write(job_changes.request_cancel, request)
        assert outcome == (("CANCELLED" if row["status"] == "PENDING" else "RUNNING") if asked else None)
        if not asked:
            self._nothing_changed()

    @precondition(lambda self: self.rows["jobs"])
    @rule(data=st.data(), key=st.sampled_from([None, "a", "r"]))
    def retry(self, data: st.DataObject, key: str | None) -> None:
        row = data.draw(st.sampled_from(self.rows["jobs"]))
        new = self._new_job(JobOptions(), key)
        request = Retry(
            id=new.id, parent_id=row["id"], tenant="default", created_at=self.now, idempotency_key=key,
            request_hash=new.request_hash,
        )  # fmt: skip
        (outcome,) = self._write(job_retries.retry, request)
        if key in self.keys:
            assert outcome.id == self.keys[key]
        elif JobStatus(row["status"]).is_terminal:
            assert (outcome.id, outcome.replayed) == (new.id, False)
            if key is not None:
                self.keys[key] = new.id
        else:
            assert outcome is None

    @precondition(lambda self: self.rows["jobs"])
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows["jobs"]))
        (foreign,) = self._write(job_removals.delete, Removal(tenant="other", job_ids=[row["id"]]))
        assert foreign == set()
        self._nothing_changed()
        (gone,) = self._write(job_removals.delete, Removal(tenant="default", job_ids=[row["id"]]))
        assert gone == ({row["id"]} if JobStatus(row["status"]).is_terminal else set())
        self.deleted |= gone
        self.keys = {key: job_id for key, job_id in self.keys.items() if job_id not in gone}

    # What time and death do.

    @rule(seconds=st.sampled_from([1, 4, LEASE_S, 60]))
    def tick(self, seconds: int) -> None:
        self.now = later(self.now, seconds)

    @rule()
    def promote(self) -> None:
        due = [row for row in self.rows["jobs"] if row["status"] == "PENDING" and not row["due"]]
        assert self._write(job_changes.promote, None) == [sum(row["run_at"] <= self.now for row in due)]

    @rule()
    def expire(self) -> None:
        (expired,) = self._write(job_changes.expire, None)
        assert set(expired) == {
            row["id"] for row in self.rows["jobs"] if row["status"] == "PENDING" and self._is_late(row)
        }

    @rule(survivor=st.sampled_from(OWNERS))
    def recover(self, survivor: str) -> None:
        foreign = {job_id for job_id, run in self.holder.items() if run.owner != survivor}
        self._write(job_leases.recover, survivor)
        assert not {row["id"] for row in self._read()["jobs"] if row["owner"] not in (None, survivor)}
        for job_id in foreign:
            del self.holder[job_id]

    @rule()
    def rescue(self) -> None:
        lapsed = {row["id"] for row in self.rows["jobs"] if row["lease_until"] and row["lease_until"] < self.now}
        self._write(job_leases.rescue, None)
        for job_id in lapsed:
            del self.holder[job_id]

    # What is true after each step.

    @invariant()
    def every_move_is_legal(self) -> None:
        before = {row["id"]: row for row in self.rows["jobs"]}
        self.rows = self._read()
        for row in self.rows["jobs"]:
            old = before.pop(row["id"], None)
            if old is None:
                assert (row["status"], row["fence"], row["event_count"]) == ("PENDING", 0, 1)
            elif JobStatus(old["status"]).is_terminal:
                assert row == old, "a terminal row changed"
            else:
                moved = row["status"] != old["status"]
                assert not moved or row["status"] in TRANSITIONS[JobStatus(old["status"])]
                assert row["fence"] == old["fence"] + (moved and row["status"] == "RUNNING")
                assert row["event_count"] >= old["event_count"] + moved
        assert before.keys() <= self.deleted, "a job is gone"
        left = {row["job_id"] for table in ("job_events", "job_attempts") for row in self.rows[table]}
        assert left.isdisjoint(self.deleted)

    @invariant()
    def what_runs_is_what_was_claimed(self) -> None:
        running = {row["id"]: (row["fence"], row["owner"]) for row in self.rows["jobs"] if row["status"] == "RUNNING"}
        assert running == {job_id: (run.job.fence, run.owner) for job_id, run in self.holder.items()}

    @invariant()
    def events_tell_the_story_without_a_gap(self) -> None:
        for job in self.rows["jobs"]:
            events = [event for event in self.rows["job_events"] if event["job_id"] == job["id"]]
            assert [event["n"] for event in events] == list(range(1, job["event_count"] + 1))
            story = [_MOVES[event["type"]] for event in events if event["type"] not in _REMARKS]
            assert story[0] is JobStatus.PENDING
            assert story[-1] == job["status"]
            assert all(now in TRANSITIONS[then] for then, now in itertools.pairwise(story))
            assert [event["at"] for event in events] == sorted(event["at"] for event in events)

    @invariant()
    def attempts_are_one_for_each_fence(self) -> None:
        for job in self.rows["jobs"]:
            attempts = [attempt for attempt in self.rows["job_attempts"] if attempt["job_id"] == job["id"]]
            assert [attempt["fence"] for attempt in attempts] == list(range(1, job["fence"] + 1))
            assert all(attempt["outcome"] is not None for attempt in attempts[:-1])
            if attempts:
                assert (attempts[-1]["outcome"] is None) == (job["status"] == "RUNNING")
            assert job["lost"] <= sum(attempt["outcome"] == "LOST" for attempt in attempts)

    def _nothing_changed(self) -> None:
        assert self._read() == self.rows

    def _job(self, job_id: str) -> dict[str, Any]:
        return next(row for row in self._read()["jobs"] if row["id"] == job_id)


def _ending(run: Run, status: JobStatus) -> Ending:
    error = error_object("ExecutionError", "no", plugin="p") if status is JobStatus.FAILED else None
    return Ending(
        job=run.job,
        owner=run.owner,
        status=status,
        result="{}" if status is JobStatus.SUCCESS else None,
        error=error,
        cancel_reason="asked" if status is JobStatus.CANCELLED else None,
    )


def explore(fresh: Callable[[Path], str], examples: int, *, shrink: bool = True) -> None:
    machine = type("Store", (Store,), {"fresh": staticmethod(fresh)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            database=None,
            derandomize=True,
            print_blob=False,
        ),
    )


@pytest.fixture
def fresh_file(migrated_file: Path, tmp_path: Path) -> Callable[[Path], str]:
    """Makes guarded copies of a database at head."""
    guarded = Path(shutil.copy(migrated_file, tmp_path / "guarded.db"))
    install_guards(sqlite_url(guarded))
    return lambda directory: sqlite_url(Path(shutil.copy(guarded, directory / "jobs.db")))


@pytest.fixture
def fresh_postgres(postgres_url: str) -> Callable[[Path], str]:
    """Empties one guarded database."""
    install_guards(postgres_url)

    def fresh(directory: Path) -> str:
        sql(postgres_url, "TRUNCATE jobs, blobs, plugin_metrics, plugin_controls CASCADE")
        return postgres_url

    return fresh


def test_rows_tell_one_legal_story_of_each_job(fresh_file):
    explore(fresh_file, 100)


def test_rows_tell_the_same_story_on_postgresql(fresh_postgres):
    explore(fresh_postgres, 25)


@pytest.mark.parametrize(
    ("module", "statement", "text", "instead"),
    [
        (job_endings, "_END", " AND jobs.fence = ending.fence AND jobs.owner = ending.owner", ""),
        (
            job_endings,
            "_END",
            "AND jobs.status = 'RUNNING' AND jobs.fence = ending.fence AND jobs.owner = ending.owner",
            "",
        ),
        (job_endings, "_END", " AND jobs.fence = ending.fence", ""),
        (job_endings, "_END", " AND jobs.owner = ending.owner", ""),
        (job_claims, "_CLAIM_ONE", "jobs.status = 'PENDING'", "jobs.status IN ('PENDING', 'RUNNING')"),
        (job_claims, "_CLAIM", "fence=(jobs.fence + 1)", "fence=jobs.fence"),
        (job_claims, "_CLAIM", "FROM plugin_controls", "FROM plugin_controls WHERE 0"),
        (job_changes, "_CANCEL", "event_count=(jobs.event_count + 1)", "event_count=jobs.event_count"),
        (job_changes, "_EXPIRE", "AND jobs.status = 'PENDING'", "AND jobs.status <> 'PENDING'"),
        (job_retries, "_RETRY", "jobs.status IN ('CANCELLED', 'FAILED', 'SUCCESS')", "1"),
        (job_removals, "_FIND", " AND jobs.status IN ('CANCELLED', 'FAILED', 'SUCCESS')", ""),
    ],
)
def test_a_statement_without_its_guard_is_found_out(fresh_file, monkeypatch, module, statement, text, instead):
    break_statement(monkeypatch, module, statement, text, instead)
    found_out(fresh_file)


def found_out(fresh: Callable[[Path], str]) -> None:
    with pytest.raises(Exception, match=r".") as failure:
        explore(fresh, 100, shrink=False)
    causes = failure.value.exceptions if isinstance(failure.value, ExceptionGroup) else [failure.value]
    assert all(isinstance(cause, AssertionError | RefusedError | KeyError) for cause in causes), causes


@pytest.mark.parametrize(
    ("module", "statement", "text"),
    [
        (
            job_endings,
            "_END",
            "AND jobs.status = 'RUNNING' AND jobs.fence = ending.fence AND jobs.owner = ending.owner",
        ),
        (job_endings, "_END", " AND jobs.fence = ending.fence AND jobs.owner = ending.owner"),
    ],
)
def test_a_statement_without_its_guard_is_found_out_on_postgresql(fresh_postgres, monkeypatch, module, statement, text):
    break_statement(monkeypatch, module, statement, text, "")
    found_out(fresh_postgres)


def break_statement(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, text: str, instead: str) -> None:
    """Take a guard out of a statement, as each database has it."""
    broken = copy.copy(getattr(module, name))
    for database in ("sqlite", "postgresql"):
        compiled = copy.copy(getattr(broken, database))
        assert text in compiled.text, compiled.text
        compiled.text = compiled.text.replace(text, instead)
        setattr(broken, database, compiled)
    monkeypatch.setattr(module, name, broken)


@pytest.mark.parametrize("change", ["fence = fence - 1", "priority = 1"])
def test_the_guards_stop_what_no_statement_may_do(database_file, change):
    install_guards(sqlite_url(database_file))
    connection = sqlite3.connect(database_file, isolation_level=None)
    connection.execute(
        "INSERT INTO jobs (id, tenant, plugin, status, rank, priority, due, run_at, attempt, max_attempts, lost,"
        " max_lost, fence, event_count, created_at, finished_at, cancel_reason, tags, metadata, artifacts, payload)"
        " VALUES ('1', 'default', 'p', 'CANCELLED', 0, 0, 1, '', 0, 1, 0, 3, 1, 1, '', '', 'asked', '[]', '{}', '[]',"
        " '{}')"
    )
    if "fence" in change:
        connection.execute("DROP TRIGGER guard_0")
    with pytest.raises(sqlite3.IntegrityError, match="fence fell" if "fence" in change else "terminal row changed"):
        connection.execute(f"UPDATE jobs SET {change}")
    connection.close()
