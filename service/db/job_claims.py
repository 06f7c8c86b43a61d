"""Claims: due jobs set RUNNING with the next fence and a lease, before the first instruction of a plugin."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from service.db import plugin_controls
from service.db.job_attempts import begin_attempts
from service.db.job_events import COUNT_EVENT, add_events
from service.db.schema import jobs
from service.db.schema import plugin_controls as controls
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction, late
from service.models import ClaimedJob, later

_known_plugins: Final = batch_table("known_plugins", jobs.c.plugin, parameter="plugins")
_CLAIMABLE: Final[sa.ColumnElement[bool] | sa.TextClause] = sa.text("jobs.status = 'PENDING' AND jobs.due")
#: Whoever fails those that are too late may not have come to them yet.
_IN_TIME: Final = jobs.c.expires_at.is_(None) | (jobs.c.expires_at >= sa.bindparam("now"))
_RUN: Final = {
    jobs.c.status: literal("RUNNING"),
    jobs.c.fence: jobs.c.fence + sa.text("1"),
    jobs.c.attempt: jobs.c.attempt + sa.text("1"),
    jobs.c.owner: sa.bindparam("owner"),
    jobs.c.lease_until: sa.bindparam("lease_until"),
    jobs.c.started_at: sa.bindparam("now"),
    jobs.c.progress_fraction: sa.null(),
    jobs.c.progress_message: sa.null(),
    **COUNT_EVENT,
}
CLAIMED: Final = (
    jobs.c.id, jobs.c.plugin, jobs.c.payload, jobs.c.fence, jobs.c.attempt, jobs.c.max_attempts, jobs.c.timeout_s,
    jobs.c.created_at, jobs.c.rank, jobs.c.event_count,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Up to `limit` due jobs, at most `caps[plugin]` of each plugin named there; or `job_id` alone, due or not.

    None whose time to start has passed.

    Of some `plugins` up to `ahead` more that follow those in their order, until the first that is of none in `short`.
    `plugins` are the only ones to claim for; None means any. Of plugins for which an operator has set something, only
    a claim that is `controlled` takes jobs, as many as that allows over all processes; none of a paused one. `job_id`
    is somebody's order: it waits for no control, as it waits for no `run_at`, but it counts as running.
    """

    owner: str
    limit: int
    lease_s: float
    ahead: int = 0
    short: frozenset[str] = frozenset()
    caps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    plugins: Collection[str] | None = None
    controlled: bool = False
    job_id: str | None = None


def _claim_statement(*, of_some_plugins: bool, ahead: bool) -> Statement:
    caps = batch_table("caps", jobs.c.plugin, sa.column("room", sa.Integer), parameter="caps")
    granted = batch_table("granted", jobs.c.plugin, parameter="granted")
    claimable = [
        _CLAIMABLE,
        _IN_TIME,
        jobs.c.plugin.not_in(sa.select(caps.c.plugin).where(caps.c.room <= sa.text("0"))),
        # A process that has not heard of a control yet takes none of that plugin's jobs.
        jobs.c.plugin.not_in(sa.select(controls.c.plugin)) | jobs.c.plugin.in_(sa.select(granted.c.plugin)),
    ]
    if of_some_plugins:
        # An expression, so that nobody reads all jobs there ever were of these plugins by the index of plugins.
        claimable.append(jobs.c.plugin.concat(sa.text("''")).in_(sa.select(_known_plugins.c.plugin)))
    # Materialized, or PostgreSQL may run it again for each row and lock more than the limit. SQLite locks no rows.
    next_jobs = (
        sa.select(jobs.c.id, jobs.c.plugin, jobs.c.rank)
        .where(*claimable)
        .order_by(jobs.c.rank, jobs.c.id)
        .limit(sa.bindparam("most", type_=sa.Integer))
        .with_for_update(skip_locked=True)
        .cte("next_jobs")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    taken = _short_ones_beyond_the_limit(next_jobs) if ahead else next_jobs
    place = sa.func.row_number().over(partition_by=taken.c.plugin, order_by=(taken.c.rank, taken.c.id))
    ranked = sa.select(taken.c.id, taken.c.plugin, place.label("place")).subquery("ranked")
    allowed = (
        sa.select(ranked.c.id)
        .join(caps, caps.c.plugin == ranked.c.plugin, isouter=True)
        .where(caps.c.plugin.is_(None) | (ranked.c.place <= caps.c.room))
    )
    return Statement(sa.update(jobs).where(jobs.c.id.in_(allowed), _CLAIMABLE).values(_RUN).returning(*CLAIMED))


def _short_ones_beyond_the_limit(next_jobs: sa.CTE) -> sa.Subquery:
    """Of jobs in their order those within the limit, and those that follow up to the first one that is not short."""
    short = batch_table("short", jobs.c.plugin, parameter="short")
    order = (next_jobs.c.rank, next_jobs.c.id)
    numbered = sa.select(next_jobs, sa.func.row_number().over(order_by=order).label("number")).cte("numbered")
    is_beyond = numbered.c.number > sa.bindparam("limit", type_=sa.Integer)
    stop = (
        sa.select(sa.func.min(numbered.c.number))
        .where(is_beyond, numbered.c.plugin.not_in(sa.select(short.c.plugin)))
        .scalar_subquery()
    )
    return sa.select(numbered).where(stop.is_(None) | (numbered.c.number < stop)).subquery("taken")


_CLAIM = _claim_statement(of_some_plugins=False, ahead=False)
_CLAIM_OF_PLUGINS = _claim_statement(of_some_plugins=True, ahead=False)
_CLAIM_AHEAD = _claim_statement(of_some_plugins=True, ahead=True)
_CLAIM_ONE = Statement(
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"), jobs.c.status == literal("PENDING"), _IN_TIME)
    .values(_RUN)
    .returning(*CLAIMED)
)


@late
async def claim(tx: Transaction, items: Sequence[Claim]) -> list[list[ClaimedJob]]:
    """Set jobs RUNNING with the next fence and a lease, best first; each claim gets what is left by those before."""
    return [await _claim(tx, item) for item in items]


async def _claim(tx: Transaction, item: Claim) -> list[ClaimedJob]:
    now = await tx.now()
    shared: dict[str, Any] = {"owner": item.owner, "lease_until": later(now, item.lease_s), "now": now}
    if item.job_id is not None:
        rows = await tx.fetch(_CLAIM_ONE, job_id=item.job_id, **shared)
    elif item.controlled:
        grants = await plugin_controls.grant(tx, item.plugins)
        room = {name: min(grant.room, item.caps.get(name, grant.room)) for name, grant in grants.items()}
        granted = batch((name,) for name in grants)
        rows = await _claim_next(tx, item, {**item.caps, **room}, granted=granted, **shared)
        await plugin_controls.take(tx, grants, Counter(row[1] for row in rows))
    else:
        rows = await _claim_next(tx, item, item.caps, **shared)
    rows.sort(key=lambda row: (row[8], row[0]))
    claimed = [claimed_job(row) for row in rows]
    if not claimed:
        return []
    attempts = [(job.id, job.fence, job.attempt, job.plugin, item.owner, now) for job in claimed]
    await begin_attempts(tx, attempts)
    await add_events(
        tx,
        (
            (job.id, row[9], "started", now, {"attempt": job.attempt, "fence": job.fence})
            for job, row in zip(claimed, rows, strict=True)
        ),
    )
    return claimed


async def _claim_next(tx: Transaction, item: Claim, caps: Mapping[str, int], **values: Any) -> list[Any]:
    values |= {"caps": batch(caps.items()), "most": item.limit + item.ahead}
    if item.plugins is None:
        return await tx.fetch(_CLAIM, **values)
    values["plugins"] = batch((name,) for name in item.plugins)
    if not item.ahead:
        return await tx.fetch(_CLAIM_OF_PLUGINS, **values)
    return await tx.fetch(_CLAIM_AHEAD, limit=item.limit, short=batch((name,) for name in item.short), **values)


def claimed_job(row: Sequence[Any]) -> ClaimedJob:
    """The job in a row that begins with `CLAIMED`."""
    job_id, plugin, payload, fence, attempt, max_attempts, timeout_s, created_at = row[:8]
    return ClaimedJob(
        id=job_id,
        plugin=plugin,
        payload=payload,
        fence=fence,
        attempt=attempt,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
        created_at=created_at,
    )
