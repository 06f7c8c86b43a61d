"""The service with bugs that other queues have, planted at its start: `python -m tests.torture.planted BUG,... serve`.

They live here and nowhere in the service. Each must be found by the oracle, or the oracle proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from service import app
from service.cli.app import run
from service.db import event_reads, job_claims, job_endings, job_events, job_inserts, job_leases, webhook_outbox
from service.db.job_endings import Ended
from service.db.job_inserts import Inserted, NewJob
from service.db.schema import jobs
from service.db.statements import Statement, batch
from service.db.transaction import Transaction
from service.db.writer import Writer
from service.intake import Intake
from service.job_ends import EndRecorder
from service.job_management import JobManagementService
from service.models import timestamp
from service.tool_runner.worker_process import WorkerProcess

_END_GUARDS = {
    "status": r" AND jobs\.status = 'RUNNING'",
    "fence": r" AND jobs\.fence = ending\.fence",
    "owner": r" AND jobs\.owner = ending\.owner",
}
_KEY_CONFLICT = r" ON CONFLICT \(tenant, idempotency_key\) WHERE idempotency_key IS NOT NULL DO NOTHING"
_CLAIM_GUARD = r" AND jobs\.status = 'PENDING'"
_STILL_LOST = (
    r" AND jobs\.fence = lost_runs\.fence AND jobs\.status = 'RUNNING'"
    r" AND jobs\.(owner !=|lease_until <) (\?|\$\d+(?:::[\w ]+?)?)(?= RETURNING)"
)


def shared_file() -> None:
    """No bug of the service: its lock taken away, so that several processes meet on one SQLite file."""
    app.exclusive_lock = lambda path: contextlib.nullcontext()


def acknowledged_before_commit() -> None:
    write = Writer.write
    made: dict[str | None, Inserted] = {}
    tasks = set()

    async def hasty(self: Writer, operation: Any, item: Any, **more: Any) -> Any:
        if operation is not job_inserts.insert:
            return await write(self, operation, item, **more)
        if item.idempotency_key not in made:
            made[item.idempotency_key] = Inserted(id=item.id, replayed=False, request_hash=item.request_hash)
            tasks.add(asyncio.ensure_future(write(self, operation, item, **more)))
        return made[item.idempotency_key]

    Writer.write = hasty


def finished_without_guard() -> None:
    for guard in _END_GUARDS.values():
        _strip(job_endings._END, guard)


def finished_by_state_only() -> None:
    _strip(job_endings._END, _END_GUARDS["fence"])
    _strip(job_endings._END, _END_GUARDS["owner"])


def resumed_one_too_late() -> None:
    of_job = event_reads.of_job

    async def late(*arguments: Any, after_n: int, **more: Any) -> Any:
        return await of_job(*arguments, after_n=after_n + (after_n > 1), **more)

    event_reads.of_job = late


def key_checked_then_inserted() -> None:
    upgrade, insert = app.upgrade, Intake._insert
    for statement in (job_inserts._KEYED_JOBS._single, job_inserts._KEYED_JOBS._every):
        _strip(statement, _KEY_CONFLICT)

    async def without_index(database_url: str) -> str:
        revision = await upgrade(database_url)
        await _execute(database_url, "DROP INDEX IF EXISTS uq_jobs_idempotency")
        return revision

    async def checked(self: Intake, new: NewJob) -> Inserted:
        keys = batch([(new.tenant, new.idempotency_key)])
        rows = await self._database.reader.fetch(job_inserts._SELECT_BY_KEY, batch=keys)
        if rows:
            return Inserted(id=str(rows[0][2]), replayed=True, request_hash=rows[0][3])
        return await insert(self, new)

    app.upgrade = without_index
    Intake._insert = checked


def selected_then_claimed() -> None:
    claim_and_start = JobManagementService._claim_and_start
    # The CHECK constraints of this schema would refuse to claim rows that have ended or were claimed already.
    _strip(job_claims._CLAIM_ONE, _CLAIM_GUARD, " AND jobs.finished_at IS NULL")
    _strip(job_claims._CLAIM_ONE, r"attempt=\(jobs\.attempt \+ [^)]+\)", "attempt=1")
    select = Statement(
        sa.select(jobs.c.id)
        .where(sa.text("status = 'PENDING' AND due"))
        .order_by(jobs.c.id)
        .limit(sa.literal_column("8"))
    )

    async def unguarded(self: JobManagementService, *, limit: int, **rest: Any) -> list[asyncio.Task[Any]]:
        seen = await self._database.reader.fetch(select)
        await asyncio.sleep(0.1)
        return [task for (job_id,) in seen[:limit] for task in await claim_and_start(self, limit=1, job_id=str(job_id))]

    JobManagementService._claim_and_start = unguarded


def nothing_rescued() -> None:
    async def never(tx: Transaction, items: Sequence[Any]) -> list[list[Any]]:
        return [[] for _ in items]

    job_leases.recover = job_leases.rescue = never


def rescued_from_a_stale_snapshot() -> None:
    for _, change in (job_leases._FOREIGN, job_leases._LAPSED):
        _strip(change, _STILL_LOST, r" AND \2 IS NOT NULL")
        _strip(change, "owner=NULL", "owner=NULL, result=NULL")

    looks = (job_leases._FOREIGN[0], job_leases._LAPSED[0])

    class Snapshot:
        """A transaction that has looked long ago."""

        def __init__(self, tx: Transaction, rows: list[Any]) -> None:
            self.now, self.execute_many, self.insert = tx.now, tx.execute_many, tx.insert
            self._tx, self._rows = tx, rows

        async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
            return self._rows if statement in looks else await self._tx.fetch(statement, **values)

    async def take_back(tx: Transaction, items: Sequence[Any]) -> list[Any]:
        (((look, change), condition, rows),) = items
        return [await job_leases._take_back(Snapshot(tx, rows), look, change, **condition)]

    async def stale(self: JobManagementService, statements: Any, **condition: str) -> int:
        rows = await self._database.reader.fetch(statements[0], **condition)
        await asyncio.sleep(0.7)
        if not rows:
            return 0
        return len(await self._database.writer.write(take_back, (statements, condition, rows)))

    async def recover(self: JobManagementService) -> int:
        return await stale(self, job_leases._FOREIGN, by=self.instance_id)

    async def rescue(self: JobManagementService) -> int:
        return await stale(self, job_leases._LAPSED, now=timestamp())

    JobManagementService.recover = recover
    JobManagementService.rescue = rescue


def no_execution_deadline() -> None:
    WorkerProcess._arm = lambda self, limit_s: None


def heard_of_after_the_commit() -> None:
    tell = EndRecorder._tell
    tasks = set()

    async def nothing(tx: Transaction, events: Any) -> None:
        tuple(events)

    async def late(tx: Transaction, items: Sequence[Any]) -> list[None]:
        await webhook_outbox.add_deliveries(tx, items)
        return [None] * len(items)

    def told(self: EndRecorder, job: Any, ending: Any, ended: Ended | None) -> None:
        tell(self, job, ending, ended)
        if ended is not None:
            tasks.add(asyncio.ensure_future(self._writer.write(late, (job.id, ended.status.lower(), timestamp()))))

    job_events.add_deliveries = nothing
    EndRecorder._tell = told


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        shared_file,
        acknowledged_before_commit,
        finished_without_guard,
        finished_by_state_only,
        key_checked_then_inserted,
        selected_then_claimed,
        nothing_rescued,
        resumed_one_too_late,
        rescued_from_a_stale_snapshot,
        no_execution_deadline,
        heard_of_after_the_commit,
    )
}


def launcher(*plants: str) -> tuple[str, ...]:
    """The command that starts the service with `plants`."""
    return (sys.executable, "-m", "tests.torture.planted", ",".join(plants))


def _strip(statement: Any, guard: str, instead: str = "") -> None:
    """Replace a guard, a regular expression, in the compiled texts of a statement: one, or one for each database."""
    for compiled in (statement,) if hasattr(statement, "text") else (statement.sqlite, statement.postgresql):
        compiled.text, count = re.subn(guard, instead, compiled.text)
        assert count, f"the plant fits no more: {guard!r} is not in {compiled.text}"


async def _execute(database_url: str, sql: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(sql)
    await engine.dispose()


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        PLANTS[name]()
    sys.exit(run(sys.argv[2:]))
