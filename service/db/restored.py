"""Events of a dump of PostgreSQL that was restored into another server, which counts transactions anew.

Their `tx` would be of transactions to come: not to be read before the server gets there, and all that happens meanwhile
would stand before what the rollups have come to.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
import structlog

_NEXT: Final = "CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)"
#: The position up to which events are of the dump; none where there is no number of a transaction to come.
_LAST: Final = sa.text(f"""
    WITH ahead AS (SELECT max(position) AS position FROM job_events WHERE tx IS NOT NULL AND tx >= {_NEXT})
    SELECT greatest(rollup_state.position, ahead.position) FROM rollup_state CROSS JOIN ahead
    WHERE rollup_state.tx >= {_NEXT} OR ahead.position IS NOT NULL""")  # noqa: S608 - names of ours
_LOCK: Final = sa.text("SELECT 1 FROM rollup_state FOR UPDATE")
# No transaction has a number below 3. What was folded comes before what was not, and both before what is still to come.
_NUMBER: Final = sa.text("""
    UPDATE job_events
    SET tx = CASE WHEN (job_events.tx, job_events.position) <= (rollup_state.tx, rollup_state.position)
             THEN 0 ELSE 1 END
    FROM rollup_state WHERE job_events.position <= :last""")
_PLACE: Final = sa.text("UPDATE rollup_state SET tx = 0, position = :last")

log = structlog.get_logger(__name__)


def number_anew(connection: sa.Connection) -> None:
    """Give the events of such a dump numbers that are past, in their order; does nothing where there is none.

    For a database at head; on SQLite events have no such numbers. Of several processes one does it, the others wait.
    """
    if connection.dialect.name != "postgresql" or connection.scalar(_LAST) is None:
        return
    connection.execute(_LOCK)
    last = connection.scalar(_LAST)
    if last is not None:
        count = connection.execute(_NUMBER, {"last": last}).rowcount
        connection.execute(_PLACE, {"last": last})
        log.info("the database was restored into another server: events numbered anew", events=count)
