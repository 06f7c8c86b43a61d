"""The executions of jobs: a row from the claim on, completed when the execution ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.db.schema import job_attempts
from service.db.statements import Insert, Statement, batch, batch_table
from service.db.transaction import Transaction

_ATTEMPT_COLUMNS: Final = tuple(
    job_attempts.c[name] for name in ("job_id", "fence", "attempt", "plugin", "owner", "started_at")
)
_ATTEMPTS: Final = Insert(job_attempts, _ATTEMPT_COLUMNS, {})
_ATTEMPT_END_COLUMNS: Final = (
    "job_id", "fence", "outcome", "finished_at", "run_s", "cpu_s", "peak_memory_bytes", "worker_pid",
    "plugin_version", "error_type", "error_message", "metrics", "traceback", "output",
)  # fmt: skip
_attempt_end = batch_table("ended", *(job_attempts.c[name] for name in _ATTEMPT_END_COLUMNS))
_END_ATTEMPTS = Statement(
    sa.update(job_attempts)
    .where(
        job_attempts.c.job_id == _attempt_end.c.job_id,
        job_attempts.c.fence == _attempt_end.c.fence,
        job_attempts.c.outcome.is_(None),
    )
    .values({job_attempts.c[name]: _attempt_end.c[name] for name in _ATTEMPT_END_COLUMNS[2:]})
)


async def begin_attempts(tx: Transaction, rows: Sequence[Sequence[Any]]) -> None:
    """Record executions that begin: job, fence, attempt, plugin, owner, time."""
    await tx.insert(_ATTEMPTS, rows)


async def end_attempts(tx: Transaction, rows: Iterable[Sequence[Any]]) -> None:
    """Complete executions that have not ended; rows as `_ATTEMPT_END_COLUMNS`."""
    await tx.fetch(_END_ATTEMPTS, batch=batch(rows))
