"""What clients were told and what was done to the service, with times: the material of the oracle."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    at: float
    what: str


@dataclasses.dataclass(slots=True)
class Submission:
    """One idempotency key and all that was heard about it."""

    key: str
    number: int
    behaviour: str
    ids: set[str] = dataclasses.field(default_factory=set)  # that a 2xx answer named
    refusals: list[int] = dataclasses.field(default_factory=list)  # 4xx
    is_ambiguous: bool = False  # a post had no answer, or a 5xx
    is_cancelled: bool = False  # somebody asked to cancel it
    final: tuple[Any, ...] | None = None  # the first terminal answer
    entries: list[Entry] = dataclasses.field(default_factory=list)

    def note(self, what: str) -> None:
        self.entries.append(Entry(time.time(), what))


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """An event that a follower was sent."""

    id: str
    job_id: str
    n: int
    type: str


@dataclasses.dataclass(slots=True)
class Followed:
    """What one follower heard, over all the connections it had."""

    job_id: str | None  # None: all jobs
    heard: list[Heard] = dataclasses.field(default_factory=list)
    last_id: str | None = None
    has_ended: bool = False  # the service said that there is no more
    cuts: int = 0


class History:
    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.by_id: dict[str, Submission] = {}
        self.followed: list[Followed] = []
        self.faults: list[Entry] = []
        self.fault_counts: collections.Counter[str] = collections.Counter()
        self.surprises: list[tuple[str, str, str]] = []  # violation, job id or key, text: seen while running
        self.answers: collections.Counter[int] = collections.Counter()
        self.stale_refused = 0

    def fault(self, kind: str, detail: str) -> None:
        self.fault_counts[kind] += 1
        self.faults.append(Entry(time.time(), f"{kind}: {detail}"))

    def note(self, what: str) -> None:
        """An event of the run that is no fault: a restart, an end."""
        self.faults.append(Entry(time.time(), what))

    def acknowledge(self, submission: Submission, job_id: str) -> None:
        submission.ids.add(job_id)
        self.by_id[job_id] = submission

    def observe(self, submission: Submission, record: dict[str, Any], known: tuple[Any, ...] | None) -> None:
        """A record that a client has read, and the end that was known when it asked.

        An answer asked for before the end was known may arrive after the one that told it.
        """
        if record["status"] not in ("SUCCESS", "FAILED", "CANCELLED"):
            if known is not None:
                self.surprises.append(("terminal_changed", record["id"], f"{known} → {record['status']}"))
            return
        error = record["error"]
        final = (record["status"], record["finished_at"], repr(record["result"]), error and error["type"])
        if submission.final is None:
            submission.final = final
            submission.note(f"read {final}")
        elif submission.final != final:
            self.surprises.append(("terminal_changed", record["id"], f"{submission.final} → {final}"))
