"""Batches and actions on many jobs as HTTP shows them."""

from __future__ import annotations

from typing import NotRequired

import orjson
from typing_extensions import TypedDict

from service.api.problems import ErrorView, ItemProblemView
from service.api.views import error_view, job_url, referenced
from service.job_actions import Acted, Action, ActionOutcome, ActionReport
from service.models import JSON, BatchState, JobOutcome, JobStatus, Timestamp


class BatchItemView(TypedDict):
    """What became of an item: a job (`id`, `replayed`), or a `problem` whose pointers lead into the whole body."""

    index: int
    id: NotRequired[str]
    replayed: NotRequired[bool]
    problem: NotRequired[ItemProblemView]


class BatchSubmissionView(TypedDict):
    """What became of a batch. `batch_id` is null where all its jobs had been made before, in several batches."""

    batch_id: str | None
    accepted: int
    refused: int
    items: list[BatchItemView]
    links: dict[str, str]


class CountsView(TypedDict):
    """How many jobs have each status."""

    PENDING: int
    RUNNING: int
    SUCCESS: int
    FAILED: int
    CANCELLED: int


class BatchView(TypedDict):
    """How far a batch is; `finished_at` is null until all of its jobs have ended."""

    id: str
    total: int
    counts: CountsView
    created_at: Timestamp
    finished_at: Timestamp | None
    links: dict[str, str]


class JobOutcomeView(TypedDict):
    """A line of a batch's results; bytes in `result` stand as references."""

    id: str
    plugin: str
    status: JobStatus
    result: dict[str, JSON] | None
    error: ErrorView | None


class ActedView(TypedDict):
    """What became of a job; `new_id` is the job that tries it again."""

    id: str
    outcome: ActionOutcome
    new_id: NotRequired[str]


class ActionView(TypedDict):
    """What became of the jobs of an action; `more` of them fit the filter than `limit` let through."""

    action: Action
    dry_run: bool
    matched: int
    done: int
    more: bool
    items: list[ActedView]


def batch_url(batch_id: str) -> str:
    """Where a batch lives."""
    return f"/v1/batches/{batch_id}"


def batch_links(batch_id: str) -> dict[str, str]:
    """Where to go from a batch."""
    url = batch_url(batch_id)
    return {"self": url, "results": url + "/results"}


def batch_view(batch: BatchState) -> BatchView:
    """How far `batch` is."""
    counts = batch.counts
    return {
        "id": batch.id,
        "total": batch.total,
        "counts": {
            "PENDING": counts[JobStatus.PENDING],
            "RUNNING": counts[JobStatus.RUNNING],
            "SUCCESS": counts[JobStatus.SUCCESS],
            "FAILED": counts[JobStatus.FAILED],
            "CANCELLED": counts[JobStatus.CANCELLED],
        },
        "created_at": batch.created_at,
        "finished_at": batch.finished_at,
        "links": batch_links(batch.id),
    }


def outcome_line(outcome: JobOutcome) -> bytes:
    """`outcome` as a line of NDJSON."""
    view: JobOutcomeView = {
        "id": outcome.id,
        "plugin": outcome.plugin,
        "status": outcome.status,
        "result": None if outcome.result is None else referenced(outcome.result, job_url(outcome.id) + "/result"),
        "error": None if outcome.error is None else error_view(outcome.error),
    }
    return orjson.dumps(view, option=orjson.OPT_APPEND_NEWLINE)


def action_view(action: Action, report: ActionReport, *, dry_run: bool) -> ActionView:
    """What became of the jobs of an action."""
    return {
        "action": action,
        "dry_run": dry_run,
        "matched": report.matched,
        "done": report.done,
        "more": report.more,
        "items": [_acted_view(item) for item in report.items],
    }


def _acted_view(item: Acted) -> ActedView:
    view: ActedView = {"id": item.id, "outcome": item.outcome}
    if item.new_id is not None:
        view["new_id"] = item.new_id
    return view
