"""PostgreSQL: connections on which values come and go as on SQLite, and which come back after the server was away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import asyncpg
import structlog
from sqlalchemy.engine import make_url

from service.db.statements import POSTGRESQL, Statement
from service.db.transaction import RefusedError, Transaction, Value
from service.errors import ServiceUnavailableError
from service.models import Timestamp

CONNECT_TIMEOUT_S: Final = 5.0
_COMMAND_TIMEOUT_S: Final = 35.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
#: How often a transaction is begun anew that was the victim of a deadlock, a conflict or a lost connection.
_TRIES: Final = 5

_SESSION: Final[Mapping[str, str]] = {
    "application_name": "jobservice",
    "timezone": "UTC",
    "datestyle": "ISO",
    "jit": "off",  # compiling costs more than these short statements
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
# A server that is told not to wait for its disk would lose what was acknowledged; stricter settings than `on` stay.
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_NOW: Final = "SELECT date_trunc('milliseconds', clock_timestamp())"

_FAULTS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
#: Classes of SQLSTATE that say something about the server at this moment, not about the statement: connection,
#: authorization, catalog, read-only after a failover, resources, operator, system.
_AWAY: Final = frozenset({"08", "25", "28", "3D", "53", "55", "57", "58", "XX"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})

log = structlog.get_logger(__name__)


class PostgresqlBackend:
    """A `Backend` on a server, which any number of processes share."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[PostgresqlWriteConnection]:
        """See `Backend`. Connects when it is first used."""
        async with contextlib.aclosing(Link(self._database_url)) as link:
            yield PostgresqlWriteConnection(link)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresqlReadConnection]:
        """See `Backend`. Connects when it is first used."""
        link = Link(self._database_url, default_transaction_read_only="on")
        async with contextlib.aclosing(link):
            yield PostgresqlReadConnection(link)

    async def close(self) -> None:
        """Nothing is open but the connections."""


class Link:
    """One connection that is made again when it was lost, at growing intervals while the server is away.

    Ids and times come and go as text, as on SQLite: UUIDs lower-case and dashed, times as `Timestamp`.
    """

    def __init__(self, database_url: str, **session: str) -> None:
        _, options = POSTGRESQL.create_connect_args(make_url(database_url))  # type: ignore[no-untyped-call]
        self._options: dict[str, Any] = {
            name: value for name, value in options.items() if not name.startswith("prepared_statement_")
        }
        self._session = {**_SESSION, **session}
        self._connection: Any = None
        self._pause_s = 0.0
        self._next_try = float("-inf")
        self._why = ""

    async def get(self) -> Any:
        """The connection; raises `ServiceUnavailableError` when there is none now."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        now = asyncio.get_running_loop().time
        if now() < self._next_try:
            raise ServiceUnavailableError(self._why)
        try:
            self._connection = await self._connect()
        except _FAULTS as error:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._next_try = now() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            self._why = f"The database cannot be reached now: {_text(error)}."
            raise ServiceUnavailableError(self._why) from error
        self._pause_s = 0.0
        return self._connection

    async def _connect(self) -> Any:
        connection = await asyncpg.connect(
            **self._options,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=_COMMAND_TIMEOUT_S,
            server_settings=self._session,
        )
        try:
            for name, decoder in (("uuid", str), ("timestamptz", _timestamp)):
                await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=decoder, format="text")
            await connection.execute(_DURABLE)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def drop(self) -> None:
        """Give the connection up as it is; the next `get` makes another."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(*_FAULTS):
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
            self.drop()


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
            except _FAULTS as error:
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
    """A `WriteConnection` on PostgreSQL."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """See `WriteConnection`.

        Begun anew as long as nothing can have been committed. When the connection is lost during the commit nobody
        knows whether it happened: that is `ServiceUnavailableError`, and never tried again.
        """
        for left in reversed(range(_TRIES)):
            connection = await self._link.get()
            try:
                value = await self._work(connection, work)
                await self._commit(connection)
                return value
            except _FAULTS as error:
                if not left or not (self._link_is_lost(connection, error) or _is_conflict(error)):
                    raise _translated(error, "take writes") from error
                log.info("transaction begun anew", error=_text(error))
                await asyncio.sleep(random.uniform(0.0, 0.02) * (_TRIES - left))  # noqa: S311 - no secret
        raise AssertionError  # the last turn returns or raises

    def _link_is_lost(self, connection: Any, error: BaseException) -> bool:
        if lost := _is_lost(connection, error):
            self._link.drop()
        return lost

    async def _work(self, connection: Any, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        try:
            await connection.execute("BEGIN")
            return await work(_PostgresqlTransaction(connection, await connection.fetchval(_NOW)))
        except BaseException:
            try:
                await connection.execute("ROLLBACK", timeout=CONNECT_TIMEOUT_S)
            except _FAULTS:
                self._link.drop()
            raise

    async def _commit(self, connection: Any) -> None:
        try:
            done = await connection.execute("COMMIT")
        except _FAULTS as error:
            if _is_conflict(error):
                raise
            self._link.drop()
            raise ServiceUnavailableError(
                f"The database went away during a commit ({_text(error)}): whether this was stored is not known."
            ) from error
        if done != "COMMIT":
            raise RefusedError("The database rolled the transaction back.")


class _PostgresqlTransaction:
    __slots__ = ("_connection", "now")

    def __init__(self, connection: Any, now: Timestamp) -> None:
        self._connection = connection
        self.now = now

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        compiled = statement.postgresql
        return [tuple(row) for row in await self._connection.fetch(compiled.text, *compiled.bind(**values))]

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        await self._connection.executemany(statement.postgresql.text, rows)


def _timestamp(text: str) -> Timestamp:
    """`2026-01-31 12:00:00.5+00`, as a server at UTC writes it, as a `Timestamp`."""
    moment, _, fraction = text.removesuffix("+00").partition(".")
    return Timestamp(f"{moment[:10]}T{moment[11:]}.{fraction[:3]:0<3}Z")


def _is_conflict(error: BaseException) -> bool:
    # A migration beside us changes tables; the next transaction prepares its statements anew.
    return getattr(error, "sqlstate", None) in _CONFLICTS or isinstance(error, asyncpg.InvalidCachedStatementError)


def _is_lost(connection: Any, error: BaseException) -> bool:
    """Whether the connection cannot be used any more."""
    if isinstance(error, asyncpg.DataError):
        return False
    return (
        connection.is_closed()
        or isinstance(error, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError))
        or getattr(error, "sqlstate", "")[:2] in ("08", "57")
    )


def _translated(error: BaseException, doing: str) -> Exception:
    sqlstate = getattr(error, "sqlstate", None)
    is_away = sqlstate[:2] in _AWAY or _is_conflict(error) if sqlstate else not isinstance(error, asyncpg.DataError)
    if is_away:
        return ServiceUnavailableError(f"The database cannot {doing} now: {_text(error)}.")
    return RefusedError(_text(error))


def _text(error: BaseException) -> str:
    """One line, without the values that the server or the driver repeat below the first."""
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")
