"""PostgreSQL: connections on which values come and go as on SQLite, and which come back after the server was away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
import structlog

from service.db.link import CONNECT_TIMEOUT_S, FAULTS, Link, away, fault_text
from service.db.statements import Insert, Statement, batch
from service.db.transaction import Gauge, RefusedError, Transaction, Value
from service.db.wake_ups import WakeUps
from service.errors import ServiceUnavailableError
from service.events import EventBus
from service.models import Timestamp

#: How often a transaction is begun anew that was the victim of a deadlock, a conflict or a lost connection.
_TRIES: Final = 5

_NOW: Final = "SELECT date_trunc('milliseconds', clock_timestamp())"

#: Takes no lock that anybody else waits for, and fails where a server takes no writes at all.
_PROBE: Final = Statement(sa.text("UPDATE alembic_version SET version_num = version_num"))

#: Classes of SQLSTATE that say something about the server at this moment, not about the statement: connection,
#: authorization, catalog, read-only after a failover, resources, operator, system.
_AWAY: Final = frozenset({"08", "25", "28", "3D", "53", "57", "58", "XX"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})
#: Bytes went between the step that found them and the one that names them (see `blob_references`): the next time they
#: are stored anew. Whatever else breaks a foreign key breaks it again.
_MAY_PASS: Final = frozenset({"23503"})
#: The server takes no writes: it is a standby, or was told so.
_READ_ONLY: Final = "25006"
#: A lock was not to be had in time: others may go on.
_BUSY: Final = frozenset({"55"})
#: The statement took too long, or an administrator ended it. Its connection is well; begun anew it takes as long again.
_CANCELED: Final = "57014"

log = structlog.get_logger(__name__)


class PostgresqlBackend:
    """A `Backend` on a server, which any number of processes share."""

    def __init__(self, database_url: str, clock: Callable[[], Timestamp] | None = None) -> None:
        self._database_url = database_url
        self._clock = clock
        self.gauges: Sequence[Gauge] = ()

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[PostgresqlWriteConnection]:
        """See `Backend`. Connects when it is first used."""
        async with contextlib.aclosing(Link(self._database_url)) as link:
            yield PostgresqlWriteConnection(link, self._clock)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresqlReadConnection]:
        """See `Backend`. Connects when it is first used."""
        link = Link(self._database_url, default_transaction_read_only="on")
        async with contextlib.aclosing(link):
            yield PostgresqlReadConnection(link)

    async def relay(self, events: EventBus) -> None:
        """See `Backend`."""
        async with contextlib.aclosing(Link(self._database_url)) as link:
            await WakeUps(link, events).carry()

    async def close(self) -> None:
        """Nothing is open but the connections."""


class PostgresqlReadConnection:
    """A `ReadConnection` on PostgreSQL."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """See `ReadConnection`. A read that lost its connection is done again on a new one."""
        parameters = statement.postgresql.bind(**values)
        for left in reversed(range(_TRIES)):
            connection = await self._link.get()
            try:
                return [tuple(row) for row in await connection.fetch(statement.postgresql.text, *parameters)]
            except FAULTS as error:
                lost = _is_lost(connection, error)
                if lost:
                    self._link.drop()
                if not left or not (lost or _is_conflict(error)):
                    raise _translated(error, "read") from error
            except BaseException:
                self._link.drop()  # cancelled in the middle of an answer
                raise
        raise AssertionError  # the last turn returns or raises


class PostgresqlWriteConnection:
    """A `WriteConnection` on PostgreSQL, whose clock is the server's where no other is given."""

    def __init__(self, link: Link, clock: Callable[[], Timestamp] | None = None) -> None:
        self._link = link
        self._clock = clock

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """See `WriteConnection`.

        Begun anew as long as nothing can have been committed. When the connection is lost during the commit, or
        the one statement that is the transaction, nobody knows whether it happened: that is `ServiceUnavailableError`,
        and never tried again.
        """
        for left in reversed(range(_TRIES)):
            connection = await self._link.get()
            tx = _PostgresqlTransaction(connection, self._clock)
            try:
                value = await self._work(tx, work)
                await self._commit(connection, tx)
                return value
            except FAULTS as error:
                if not left or not (self._link_is_lost(connection, error) or _is_conflict(error) or _may_pass(error)):
                    if _is_read_only(error):
                        # The session may keep that, and the name may lead to another server since.
                        self._link.drop()
                    raise _translated(error, "take writes") from error
                log.info("transaction begun anew", error=fault_text(error))
                await asyncio.sleep(random.uniform(0.0, 0.02) * (_TRIES - left))  # noqa: S311 - no secret
        raise AssertionError  # the last turn returns or raises

    async def probe(self) -> None:
        """See `WriteConnection`."""
        await self.transact(lambda tx: tx.fetch(_PROBE))

    async def tidy(self) -> None:
        """See `WriteConnection`. A server keeps its own house."""

    def _link_is_lost(self, connection: Any, error: BaseException) -> bool:
        if lost := _is_lost(connection, error):
            self._link.drop()
        return lost

    async def _work(
        self, tx: _PostgresqlTransaction, work: Callable[[Transaction], Coroutine[Any, Any, Value]]
    ) -> Value:
        try:
            value = await work(tx)
            await tx.settle()
            return value
        except BaseException:
            try:
                await tx.rollback()
            except FAULTS:
                self._link.drop()
            raise

    async def _commit(self, connection: Any, tx: _PostgresqlTransaction) -> None:
        try:
            await tx.commit()
        except FAULTS as error:
            if _is_conflict(error) or not self._link_is_lost(connection, error):
                raise  # the server has said that nothing has happened
            raise ServiceUnavailableError(
                f"The database went away during a commit ({fault_text(error)}): whether this was stored is not known."
            ) from error


class _PostgresqlTransaction:
    """Saves round trips: five would be most of the time of a short transaction.

    New rows from which nothing comes back wait, and go as one statement with those that come next: they read nothing,
    so their order means nothing. `BEGIN` is sent before the first statement that does not wait. Where there is none,
    what waits is the transaction, which the server begins and commits: 32 clients submit 30 % more.
    """

    __slots__ = ("_begun", "_clock", "_connection", "_now", "_waiting")

    def __init__(self, connection: Any, clock: Callable[[], Timestamp] | None) -> None:
        self._connection = connection
        self._clock = clock
        self._now: Timestamp | None = None
        self._begun = False
        self._waiting: dict[Insert, str] = {}

    async def now(self) -> Timestamp:
        if self._now is None:
            if self._clock is None:
                await self._catch_up()
                self._now = await self._connection.fetchval(_NOW)
            else:
                self._now = self._clock()
        return self._now

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        await self._catch_up()
        compiled = statement.postgresql
        return [tuple(row) for row in await self._connection.fetch(compiled.text, *compiled.bind(**values))]

    async def insert(self, into: Insert, rows: Sequence[Sequence[Any]]) -> list[Any]:
        if into.returns or into in self._waiting:
            await self._catch_up()
        if into.returns:
            return [tuple(row) for row in await self._connection.fetch(into.postgresql.text, batch(rows))]
        self._waiting[into] = batch(rows)
        return []

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        await self._catch_up()
        await self._connection.executemany(statement.postgresql.text, rows)

    async def settle(self) -> None:
        """Have the server carry out what waits, unless that is all there is."""
        if self._begun:
            await self._flush()

    async def commit(self) -> None:
        if not self._begun:
            await self._flush()
        elif await self._connection.execute("COMMIT") != "COMMIT":
            raise RefusedError("The database rolled the transaction back.")

    async def rollback(self) -> None:
        if self._begun:
            await self._connection.execute("ROLLBACK", timeout=CONNECT_TIMEOUT_S)

    async def _catch_up(self) -> None:
        """Have the server begin, and carry out what waits."""
        if not self._begun:
            self._begun = True  # whatever becomes of it: what was sent may be carried out
            await self._connection.execute("BEGIN")
        await self._flush()

    async def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            await self._connection.execute(_together(tuple(waiting)), *waiting.values())


@functools.lru_cache(maxsize=64)
def _together(inserts: tuple[Insert, ...]) -> str:
    """One statement that inserts into all of these, each of which has one parameter; its parameters are those."""
    *first, last = (into.postgresql.text.replace("$1", f"${number}") for number, into in enumerate(inserts, start=1))
    also = ", ".join(f"also_{number} AS ({text})" for number, text in enumerate(first))
    return f"WITH {also} {last}" if also else last


def _is_conflict(error: BaseException) -> bool:
    # A migration beside us changes tables; the next transaction prepares its statements anew.
    return getattr(error, "sqlstate", None) in _CONFLICTS or isinstance(error, asyncpg.InvalidCachedStatementError)


def _is_read_only(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) == _READ_ONLY


def _may_pass(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) in _MAY_PASS


def _is_lost(connection: Any, error: BaseException) -> bool:
    """Whether the connection cannot be used any more."""
    if isinstance(error, asyncpg.DataError):
        return False
    sqlstate = getattr(error, "sqlstate", "")
    return (
        connection.is_closed()
        or isinstance(error, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError))
        or (sqlstate[:2] in ("08", "57") and sqlstate != _CANCELED)
    )


def _translated(error: BaseException, doing: str) -> Exception:
    sqlstate = getattr(error, "sqlstate", None)
    why = f"The database cannot {doing} now: {fault_text(error)}."
    if _is_conflict(error) or sqlstate == _CANCELED or (sqlstate or "")[:2] in _BUSY:
        return ServiceUnavailableError(why)
    if sqlstate[:2] in _AWAY if sqlstate else not isinstance(error, asyncpg.DataError):
        return away(why)
    return RefusedError(fault_text(error))
