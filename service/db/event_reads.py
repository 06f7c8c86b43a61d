"""Every read of events: of one job by their numbers, of all jobs by their places."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Final

import sqlalchemy as sa

from service.db.reader import Reader
from service.db.schema import job_events, jobs
from service.db.statements import Behind, PlaceOrder, Settled, Statement, batch, batch_table
from service.models import FIRST_PLACE, EventFilter, EventPage, JobEvent, JobNews, JobStatus, Place, Timestamp

_EVENT: Final = (job_events.c.n, job_events.c.type, job_events.c.at, job_events.c.data)

_AFTER: Final = (
    sa.bindparam("after_tx", type_=sa.BigInteger),
    sa.bindparam("after_position", type_=sa.BigInteger),
)

#: The job's own columns come with no event too, so that a job without news and no job differ.
_OF_JOB = Statement(
    sa.select(jobs.c.plugin, jobs.c.status, jobs.c.event_count, job_events.c.tx, job_events.c.position, *_EVENT)
    .select_from(
        jobs.outerjoin(job_events, sa.and_(job_events.c.job_id == jobs.c.id, job_events.c.n > sa.bindparam("after_n")))
    )
    .where(jobs.c.id == sa.bindparam("of_job"), jobs.c.tenant == sa.bindparam("of_tenant"))
    .order_by(job_events.c.n)
    .limit(sa.bindparam("limit"))
)
_asked: Final = batch_table("asked", jobs.c.id)
_COUNTS = Statement(sa.select(jobs.c.id, jobs.c.event_count).where(jobs.c.id.in_(sa.select(_asked.c.id))))
# Only an event has a place that lasts: numbers of transactions that wrote nothing come again after a server's crash.
_NEWEST = Statement(
    sa.select(job_events.c.tx, job_events.c.position)
    .where(Behind(job_events.c.tx, job_events.c.position, *_AFTER), Settled(job_events.c.tx))
    .order_by(PlaceOrder(job_events.c.tx, job_events.c.position, newest_first=True))
    .limit(sa.bindparam("limit"))
)

# Events that were deleted count: their numbers never come again.
_IS_REACHED = Statement(
    sa.text(
        "SELECT :after_tx = 0 AND :after_position <= "
        "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job_events')"
    ).bindparams(*_AFTER),
    on_postgresql=sa.text(
        "SELECT :after_tx < CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT) AND "
        ":after_position <= coalesce(pg_sequence_last_value(pg_get_serial_sequence('job_events', 'position')), 0)"
    ).bindparams(*_AFTER),
)

_page: Final = (
    sa.select(job_events.c.tx, job_events.c.position, job_events.c.job_id, *_EVENT)
    .where(
        Settled(job_events.c.tx),
        Behind(job_events.c.tx, job_events.c.position, *_AFTER),
    )
    .order_by(PlaceOrder(job_events.c.tx, job_events.c.position))
    .limit(sa.bindparam("limit"))
    .subquery("page")
)
_types: Final = batch_table("wanted", job_events.c.type, parameter="types")
_FILTERS: Final[Mapping[str, sa.ColumnElement[bool]]] = {
    "tenant": jobs.c.tenant == sa.bindparam("tenant"),
    "plugin": jobs.c.plugin == sa.bindparam("plugin"),
    "types": _page.c.type.in_(sa.select(_types.c.type)),
}


_JOB_ID: Final = 4  # its place in a row of a page


@functools.lru_cache(maxsize=16)
def _page_statement(filters: frozenset[str]) -> Statement:
    """The page is cut before it is filtered: however rare the wanted events are, each read is short.

    Of what is not wanted only the place comes.
    """
    is_wanted = sa.and_(jobs.c.id == _page.c.job_id, *(_FILTERS[name] for name in sorted(filters)))
    return Statement(
        sa.select(
            _page.c.tx, _page.c.position, jobs.c.tenant, jobs.c.plugin, jobs.c.id, _page.c.n, _page.c.type, _page.c.at,
            sa.case((jobs.c.id.is_not(None), _page.c.data)),
        )
        .select_from(_page.outerjoin(jobs, is_wanted))
        .order_by(_page.c.tx, _page.c.position)
    )  # fmt: skip


def _event(
    tx: int | None, position: int, tenant: str, plugin: str, job_id: str, n: int, kind: str, at: Timestamp, data: str
) -> JobEvent:
    place = Place(tx or 0, position)
    return JobEvent(place=place, tenant=tenant, plugin=plugin, job_id=job_id, n=n, type=kind, at=at, data=data)


async def of_job(reader: Reader, job_id: str, tenant: str, *, after_n: int, limit: int) -> JobNews | None:
    """The first `limit` events of the job behind number `after_n`; None if the tenant has no such job."""
    rows = await reader.fetch(_OF_JOB, of_job=job_id, of_tenant=tenant, after_n=after_n, limit=limit)
    if not rows:
        return None
    _, status, event_count, *_ = rows[0]
    return JobNews(
        status=JobStatus(status),
        event_count=event_count,
        events=[
            _event(tx, position, tenant, plugin, job_id, n, kind, at, data)
            for plugin, _, _, tx, position, n, kind, at, data in rows
            if n is not None
        ],
    )


async def counts(reader: Reader, job_ids: Collection[str]) -> dict[str, int]:
    """How many events each of the jobs has; jobs that do not exist are missing."""
    rows = await reader.fetch(_COUNTS, batch=batch((job_id,) for job_id in job_ids))
    return dict(rows)


async def newest(reader: Reader) -> Place:
    """The place of the newest settled event: behind it is everything that is still to come."""
    row = await reader.fetch_one(_NEWEST, after_tx=FIRST_PLACE.tx, after_position=FIRST_PLACE.position, limit=1)
    return FIRST_PLACE if row is None else Place(row[0] or 0, row[1])


async def is_reached(reader: Reader, place: Place) -> bool:
    """Whether events have come to a place, or past it, be they still there or not."""
    ((reached,),) = await reader.fetch(_IS_REACHED, after_tx=place.tx, after_position=place.position)
    return bool(reached)


async def of_all(reader: Reader, after: Place, wanted: EventFilter | None, *, limit: int) -> EventPage:
    """What is wanted (None: everything, of every tenant) among the first `limit` settled events behind `after`."""
    values: dict[str, str] = {}
    if wanted is not None:
        values["tenant"] = wanted.tenant
        if wanted.plugin is not None:
            values["plugin"] = wanted.plugin
        if wanted.types is not None:
            values["types"] = batch((kind,) for kind in sorted(wanted.types))
    rows = await reader.fetch(
        _page_statement(frozenset(values)), after_tx=after.tx, after_position=after.position, limit=limit, **values
    )
    return EventPage(
        events=[_event(*row) for row in rows if row[_JOB_ID] is not None],
        end=Place(rows[-1][0] or 0, rows[-1][1]) if rows else after,
        is_full=len(rows) == limit,
    )
