"""Judges a finished run: what clients were told, what executions noted, and what the database holds must agree."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.torture.deployment import Deployment, Rows
from tests.torture.history import Entry, History
from tests.torture.plugins.torture_plugin import answer

TERMINAL = {"success": "SUCCESS", "failed": "FAILED", "cancelled": "CANCELLED"}
_BACK = "PENDING"

#: The moves an event may make: (status before, type of event) → status after.
MOVES: dict[tuple[str | None, str], str] = {
    (None, "submitted"): "PENDING",
    ("PENDING", "started"): "RUNNING",
    ("PENDING", "cancelled"): "CANCELLED",
    ("PENDING", "failed"): "FAILED",
    ("RUNNING", "progress"): "RUNNING",
    ("RUNNING", "cancel_requested"): "RUNNING",
    ("RUNNING", "lost"): _BACK,
    ("RUNNING", "released"): _BACK,
    ("RUNNING", "retrying"): _BACK,
    **{("RUNNING", kind): status for kind, status in TERMINAL.items()},
}

#: How a job of each behaviour ends when nothing is done to it: its status and error type.
ENDS: dict[str, tuple[str, str | None]] = {
    "fast": ("SUCCESS", None),
    "progress": ("SUCCESS", None),
    "short": ("SUCCESS", None),
    "long": ("SUCCESS", None),
    "bytes": ("SUCCESS", None),
    "raise": ("FAILED", "ExecutionError"),
    "exit": ("FAILED", "WorkerCrashed"),
    "segfault": ("FAILED", "WorkerCrashed"),
    "hang": ("FAILED", "TimeLimitExceeded"),
    "bad": ("FAILED", "InvalidOutput"),
}

#: What a fault done to the run may make of any job.
EXCUSES: dict[str, tuple[str, str | None]] = {
    "kill_worker": ("FAILED", "WorkerCrashed"),
    "stop_worker": ("FAILED", "TimeLimitExceeded"),
    "fill_disk": ("FAILED", "InternalError"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    subject: str  # a job's id, a key, or what else it is about
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    id: str
    key: str | None
    status: str
    fence: int
    lost: int
    max_lost: int
    event_count: int
    error_type: str | None
    payload: dict[str, Any]
    result: dict[str, Any] | None
    artifacts: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    fence: int
    owner: str
    outcome: str | None
    worker_pid: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    n: int
    type: str
    at: float
    data: str


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of the log of executions."""

    kind: str  # S or E
    nonce: str
    pid: int
    parent: int
    at: float


#: A check that stands in a file of its own: what the database holds, and the jobs in it.
Check = Callable[[Rows, Mapping[str, Job]], Awaitable[Sequence[Violation]]]


class Oracle:
    """Reads everything once, then checks; `violations` and `figures` are the verdict."""

    def __init__(self, deployment: Deployment, history: History) -> None:
        self._deployment = deployment
        self._history = history
        self.violations: list[Violation] = []
        self.figures: dict[str, Any] = {}
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[str, list[Attempt]] = collections.defaultdict(list)
        self.events: dict[str, list[Event]] = collections.defaultdict(list)
        self.lines: dict[str, list[Line]] = collections.defaultdict(list)
        self._pids: dict[str, int] = {}

    async def judge(self, *more: Check) -> None:
        """The whole verdict, `more` checks too; every process of the service must have ended in order."""
        self._found(Violation(*surprise) for surprise in self._history.surprises)
        async with self._deployment.rows() as rows:
            await self._load(rows)
            for check in (self._accepted, self._ended, self._paths, self._executions, self._results, self._streams):
                self._found(check())
            self._found([violation async for violation in self._counters(rows)])
            self._found([violation async for violation in self._storage(rows)])
            for each in more:
                self._found(await each(rows, self.jobs))
        self._count()

    def timeline(self, subject: str) -> list[str]:
        """All that is known about one job, or key, in order of time."""
        job = self.jobs.get(subject)
        submission = self._history.by_id.get(subject)
        if submission is None:
            sought = subject if job is None else job.key
            submission = next((one for one in self._history.submissions if one.key == sought), None)
        entries = [Entry(entry.at, f"client    {entry.what}") for entry in (submission.entries if submission else ())]
        for job_id in {subject, *(submission.ids if submission else ())}:
            entries += [Entry(e.at, f"event     {e.n} {e.type} {e.data}") for e in self.events.get(job_id, ())]
            entries += [
                Entry(line.at, f"execution {line.kind} {line.nonce} worker {line.pid} of {line.parent}")
                for line in self.lines.get(job_id, ())
            ]
        if entries:
            first, last = min(e.at for e in entries) - 2, max(e.at for e in entries) + 2
            entries += [Entry(f.at, f"fault     {f.what}") for f in self._history.faults if first <= f.at <= last]
        entries.sort(key=lambda entry: entry.at)
        lines = [f"{_clock(entry.at)} {entry.what}" for entry in entries]
        if job is not None:
            lines.append(f"row: {job}")
            lines += [f"attempt: {attempt}" for attempt in self.attempts[subject]]
        return lines

    # --- checks ---

    def _accepted(self) -> Iterator[Violation]:
        """O1-O3: what was acknowledged is there, once; what was refused is not."""
        by_key = collections.defaultdict(list)
        for job in self.jobs.values():
            by_key[job.key].append(job.id)
        for submission in self._history.submissions:
            rows = by_key.pop(submission.key, [])
            for job_id in submission.ids - set(rows):
                yield Violation("acked_lost", job_id, f"acknowledged for {submission.key}, but there is no such row")
            if len(submission.ids) > 1:
                yield Violation("two_ids", submission.key, f"one key was answered with {sorted(submission.ids)}")
            if len(rows) > 1:
                yield Violation("duplicated", submission.key, f"one key made the rows {sorted(rows)}")
            if submission.refusals and submission.behaviour != "absent":
                yield Violation("refused", submission.key, f"a good request was answered {submission.refusals}")
            if submission.behaviour == "absent" and (rows or submission.ids):
                yield Violation("row_of_refused", submission.key, f"a refused request left {rows}")
            if rows and not submission.ids and not submission.is_ambiguous:
                yield Violation("row_of_refused", submission.key, f"never acknowledged nor in doubt, but {rows}")
        for key, rows in by_key.items():
            yield Violation("unknown_row", rows[0], f"rows {rows} of key {key}, which nobody sent")

    def _ended(self) -> Iterator[Violation]:
        """O4, O5: every job has ended, in a way its behaviour and the faults of the run explain; answers stay true."""
        excuses = {EXCUSES[kind] for kind in self._history.fault_counts if kind in EXCUSES}
        of_key = {submission.key: submission for submission in self._history.submissions}
        for job in self.jobs.values():
            if job.status not in TERMINAL.values():
                yield Violation("stuck", job.id, f"still {job.status}")
                continue
            submission = of_key.get(job.key or "")
            if submission is None:
                continue
            end = (job.status, job.error_type)
            is_explained = (
                end == ENDS.get(submission.behaviour)
                or end in excuses
                or (job.status == "CANCELLED" and submission.is_cancelled)
                or (job.error_type == "WorkerLost" and job.lost >= job.max_lost)
            )
            if not is_explained:
                yield Violation("wrong_end", job.id, f"behaviour {submission.behaviour} ended as {end}")
            if submission.final is not None and job.id in submission.ids and submission.final[0] != job.status:
                yield Violation("terminal_changed", job.id, f"clients read {submission.final}, the row is {job.status}")

    def _paths(self) -> Iterator[Violation]:
        """O6: events tell a legal path to the row; fences rise by one with each start; attempts have their ends."""
        for job in self.jobs.values():
            events, status = self.events[job.id], None
            if [event.n for event in events] != list(range(1, job.event_count + 1)):
                yield Violation("event_gap", job.id, f"ids {[e.n for e in events]}, {job.event_count} counted")
            for event in events:
                after = MOVES.get((status, event.type))
                if after is None:
                    yield Violation("illegal_transition", job.id, f"{event.type} when {status}: {_path(events)}")
                    break
                status = after
            else:
                if status != job.status:
                    yield Violation("illegal_transition", job.id, f"events end {status}, the row is {job.status}")
            attempts = self.attempts[job.id]
            starts = sum(event.type == "started" for event in events)
            if [attempt.fence for attempt in attempts] != list(range(1, job.fence + 1)) or starts != job.fence:
                yield Violation(
                    "fences", job.id, f"attempts {[a.fence for a in attempts]}, {starts} starts, fence {job.fence}"
                )
            for attempt in attempts[:-1]:
                if attempt.outcome not in ("LOST", "FAILED", "RELEASED"):
                    yield Violation("attempt_end", job.id, f"attempt {attempt} was followed by another")
            if attempts and (last := attempts[-1]).outcome != job.status:
                is_passed_on = last.outcome in ("LOST", "RELEASED", "FAILED") and job.status in ("CANCELLED", "FAILED")
                if not is_passed_on and job.status in TERMINAL.values():
                    yield Violation("attempt_end", job.id, f"the row is {job.status}, its last attempt {last}")

    def _executions(self) -> Iterator[Violation]:
        """O7: a claim is durable before the plugin's first instruction, and is executed at most once."""
        for job_id, lines in self.lines.items():
            if job_id not in self.jobs:
                yield Violation("executed_without_row", job_id, f"{len(lines)} lines of executions")
                continue
            started = collections.Counter(line.parent for line in lines if line.kind == "S")
            claimed = collections.Counter(self._pids.get(attempt.owner) for attempt in self.attempts[job_id])
            for parent, count in started.items():
                if count > claimed[parent]:
                    yield Violation(
                        "executed_twice",
                        job_id,
                        f"process {parent} started it {count} times with {claimed[parent]} claims",
                    )

    def _results(self) -> Iterator[Violation]:
        """O8: a result is that of the attempt that holds the last fence, and the right one."""
        numbers = {submission.key: submission.number for submission in self._history.submissions}
        for job in self.jobs.values():
            if job.result is None or not self.attempts[job.id]:
                continue
            winner = self.attempts[job.id][-1]
            lines = {(line.kind, line.nonce): line for line in self.lines[job.id]}
            nonce = job.result.get("nonce")
            start, end = lines.get(("S", nonce)), lines.get(("E", nonce))
            if start is None or end is None:
                yield Violation("invented_result", job.id, f"no execution noted the nonce {nonce}")
            elif (start.pid, start.parent) != (winner.worker_pid, self._pids.get(winner.owner)):
                yield Violation(
                    "stale_result", job.id, f"worker {start.pid} of {start.parent} made it, {winner} has the fence"
                )
            if job.key in numbers and job.result.get("answer") != answer(numbers[job.key]):
                yield Violation("wrong_result", job.id, f"{job.result} for number {numbers[job.key]}")
            if "data" in job.payload and _sha256(job.result.get("data")) != _sha256(job.payload["data"]):
                yield Violation("wrong_result", job.id, "the bytes that came back are not those that were sent")

    def _streams(self) -> Iterator[Violation]:
        """O9: who follows a job hears its events 1..n once, who follows all hears each event once (ADR 16)."""
        rows = {(job_id, event.n): event.type for job_id, events in self.events.items() for event in events}
        for followed in self._history.followed:
            subject = followed.job_id or "all"
            heard = [(each.job_id, each.n) for each in followed.heard]
            for each in followed.heard:
                if rows.get((each.job_id, each.n)) != each.type:
                    yield Violation("stream_invented", each.job_id, f"heard {each}, which is no row")
            if followed.job_id is None:
                missing, twice = rows.keys() - set(heard), len(heard) - len(set(heard))
                if missing or twice:
                    example = min(missing, default=("nothing", 0))
                    yield Violation("stream_gap", example[0], f"of all: {len(missing)} not heard, {twice} twice")
                continue
            if [n for _, n in heard] != list(range(1, len(heard) + 1)):
                yield Violation("stream_gap", subject, f"heard {[n for _, n in heard]}")
            job = self.jobs.get(subject)
            if job is not None and job.status in TERMINAL.values() and len(heard) != job.event_count:
                yield Violation("stream_gap", subject, f"heard {len(heard)} of {job.event_count}")
            if not followed.has_ended and job is not None and job.status in TERMINAL.values():
                yield Violation("stream_unfinished", subject, f"heard {len(heard)}, and no end")

    async def _counters(self, rows: Rows) -> Any:
        """O12: the counters of the plugin are those of its attempts."""
        ends = collections.Counter(attempt.outcome for attempts in self.attempts.values() for attempt in attempts)
        counted = await rows.fetch("SELECT success_count FROM plugin_metrics WHERE plugin = 'torture'")
        if sum(count for (count,) in counted) != ends["SUCCESS"]:
            yield Violation("counters", "torture", f"{counted} counted, {ends['SUCCESS']} successful attempts")

    async def _storage(self, rows: Rows) -> Any:
        """O11: the file is sound, every referenced content is there and right, nothing half-made or alive is left."""
        if self._deployment.database == "sqlite":
            for pragma in ("integrity_check", "foreign_key_check"):
                found = await rows.fetch(f"PRAGMA {pragma}")
                if found not in ([], [("ok",)]):
                    yield Violation("corrupt", pragma, str(found[:5]))
        files = {path.name: path for path in (self._deployment.data_dir / "blobs").rglob("*") if path.is_file()}
        stored = {}
        for sha256, size, data in await rows.fetch("SELECT sha256, size_bytes, data FROM blobs"):
            content = bytes(data) if data is not None else files[sha256].read_bytes() if sha256 in files else None
            stored[sha256] = content
            if content is None or len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
                yield Violation("blob_damaged", sha256, f"{size} bytes, {'missing' if content is None else 'wrong'}")
        for job in self.jobs.values():
            for sha256 in _referenced(job) - stored.keys():
                yield Violation("blob_missing", job.id, f"refers to {sha256}, which is nowhere")
        for member in self._deployment.members:
            for pid in _processes_in(self._deployment.data_dir):
                yield Violation("left_process", member.name, f"process {pid} outlived its service")

    # --- parts ---

    async def _load(self, rows: Rows) -> None:
        for row in await rows.fetch(
            "SELECT id, idempotency_key, status, fence, lost, max_lost, event_count, error_type, payload, result,"
            " artifacts FROM jobs ORDER BY id"
        ):
            job = Job(str(row[0]), *row[1:8], _json(row[8]), _json(row[9]), _json(row[10]))
            self.jobs[job.id] = job
        for job_id, *attempt in await rows.fetch(
            "SELECT job_id, fence, owner, outcome, worker_pid FROM job_attempts ORDER BY job_id, fence"
        ):
            self.attempts[str(job_id)].append(Attempt(attempt[0], str(attempt[1]), *attempt[2:]))
        for job_id, n, kind, at, data in await rows.fetch(
            "SELECT job_id, n, type, at, data FROM job_events ORDER BY job_id, n"
        ):
            self.events[str(job_id)].append(Event(n, kind, _moment(at), str(data)))
        self._pids = {str(owner): pid for owner, pid in await rows.fetch("SELECT id, pid FROM instances")}
        with contextlib.suppress(FileNotFoundError):
            for text in self._deployment.log.read_text().splitlines():
                kind, job_id, _, nonce, pid, parent, at = text.split()
                self.lines[job_id].append(Line(kind, nonce, int(pid), int(parent), float(at)))

    def _found(self, violations: Any) -> None:
        self.violations += violations

    def _count(self) -> None:
        starts = {job_id: sum(line.kind == "S" for line in lines) for job_id, lines in self.lines.items()}
        statuses = collections.Counter(job.status for job in self.jobs.values())
        outcomes = collections.Counter(str(a.outcome) for attempts in self.attempts.values() for a in attempts)
        kinds = collections.Counter(violation.kind for violation in self.violations)
        self.figures = {
            "jobs": len(self.jobs),
            "acked": len(self._history.by_id),
            "keys": len(self._history.submissions),
            "statuses": dict(sorted(statuses.items())),
            "attempts": dict(sorted(outcomes.items())),
            "executions": sum(starts.values()),
            "re_executions": sum(count - 1 for count in starts.values() if count > 1),
            "followers": len(self._history.followed),
            "events_heard": sum(len(followed.heard) for followed in self._history.followed),
            "streams_cut": sum(followed.cuts for followed in self._history.followed),
            "stale_refused": self._history.stale_refused,
            "answers": {str(status): count for status, count in sorted(self._history.answers.items())},
            "faults": sum(self._history.fault_counts.values()),
            "faults_by_kind": dict(sorted(self._history.fault_counts.items())),
            "violations": len(self.violations),
            "violations_by_kind": dict(sorted(kinds.items())),
        }


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _moment(value: Any) -> float:
    moment = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    seconds: float = moment.timestamp()
    return seconds


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%H:%M:%S.%f")[:-3]


def _path(events: list[Event]) -> str:
    return " → ".join(event.type for event in events)


def _sha256(value: Any) -> str | None:
    return value["$blob"]["sha256"] if isinstance(value, dict) and "$blob" in value else None


def _referenced(job: Job) -> set[str]:
    found = {_sha256(value) for document in (job.payload, job.result or {}) for value in document.values()}
    found |= {artifact["sha256"] for artifact in job.artifacts}
    return {sha256 for sha256 in found if sha256 is not None}


def _processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
    return found
