"""A connection to PostgreSQL that is made again when it was lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from service.db.engine import server_options
from service.db.ground import AwayError, Fault
from service.models import Timestamp

CONNECT_TIMEOUT_S: Final = 5.0
_COMMAND_TIMEOUT_S: Final = 35.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
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

FAULTS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class Link:
    """One connection that is made again when it was lost, at growing intervals while the server is away.

    Ids and times come and go as text, as on SQLite: UUIDs lower-case and dashed, times as `Timestamp`.
    """

    def __init__(self, database_url: str, **session: str) -> None:
        self._options = {
            name: value
            for name, value in server_options(database_url).items()
            if not name.startswith("prepared_statement_")
        }
        self._session = {**_SESSION, **session}
        self._connection: Any = None
        self._pause_s = 0.0
        self._next_try = float("-inf")
        self._why = ""

    async def get(self) -> Any:
        """The connection; raises `AwayError` when there is none now."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        now = asyncio.get_running_loop().time
        if now() < self._next_try:
            raise away(self._why)
        try:
            self._connection = await self._connect()
        except FAULTS as error:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._next_try = now() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            self._why = f"The database cannot be reached now: {fault_text(error)}."
            raise away(self._why) from error
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
            with contextlib.suppress(*FAULTS):
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
            self.drop()


def _timestamp(text: str) -> Timestamp:
    """`2026-01-31 12:00:00.5+00`, as a server at UTC writes it, as a `Timestamp`."""
    moment, _, fraction = text.removesuffix("+00").partition(".")
    return Timestamp(f"{moment[:10]}T{moment[11:]}.{fraction[:3]:0<3}Z")


def away(why: str) -> AwayError:
    """The server takes nothing now; it comes back by itself."""
    return AwayError(Fault(kind="away", reason=why))


def fault_text(error: BaseException) -> str:
    """One line, without the values that the server or the driver repeat below the first."""
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")
