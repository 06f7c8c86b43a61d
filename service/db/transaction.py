"""What a change may do inside the writer's transaction, and how it is brought there, whatever the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeVar

from service.db.statements import Insert, Statement
from service.events import EventBus
from service.models import Timestamp

Item = TypeVar("Item", contravariant=True)
Outcome = TypeVar("Outcome", covariant=True)
Value = TypeVar("Value")


class Transaction(Protocol):
    """An open transaction. Its methods are all that an operation may await."""

    async def now(self) -> Timestamp:
        """The database's time when it is first asked for; the same ever after.

        What is due, expired or lost is decided by this one clock, however many processes there are and whatever theirs
        say.
        """

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """Run one statement; the rows it returns."""

    async def insert(self, into: Insert, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Insert `rows`; what they return.

        Where `into` returns nothing they may go with what is inserted next, and are refused only then.
        """

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run one statement for each row of positional parameters."""


class Operation(Protocol[Item, Outcome]):
    """A kind of change, applied to all its items of one transaction at once; one outcome for each, in order."""

    def __call__(self, tx: Transaction, items: Sequence[Item], /) -> Awaitable[Sequence[Outcome]]:
        """Apply `items`; raise and none of them has happened."""


_APART: Final[set[Operation[Any, Any]]] = set()
_Marked = TypeVar("_Marked", bound=Operation[Any, Any])


def apart(operation: _Marked) -> _Marked:
    """Mark an operation that waits for rows on which others depend: it shares no transaction with other operations.

    Beside what such a transaction holds already, it could wait for another process that waits for that.
    """
    _APART.add(operation)
    return operation


def is_apart(operation: Operation[Any, Any]) -> bool:
    """Whether the operation is marked so."""
    return operation in _APART


_TURNS: Final[dict[Operation[Any, Any], int]] = {}


def early(operation: _Marked) -> _Marked:
    """Mark an operation that is applied before others of its transaction: what they change it would come too late for.

    All others are applied in the order in which the first of each kind was asked for.
    """
    _TURNS[operation] = -1
    return operation


def late(operation: _Marked) -> _Marked:
    """Mark an operation that is applied after all others of its transaction, and sees what was asked for before it."""
    _TURNS[operation] = 1
    return operation


def turn_of(operation: Operation[Any, Any]) -> int:
    """Where the operation stands in a transaction: the lowest are applied first."""
    return _TURNS.get(operation, 0)


class RefusedError(Exception):
    """The database refuses a statement for what it says: waiting and trying again does not help."""


class WriteConnection(Protocol):
    """The one connection that the writer holds."""

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """Run `work` in a transaction and commit it; whatever `work` raises is raised, and nothing has happened.

        Raises `RefusedError` when the database refuses what was asked, `AwayError` when it takes no writes at all now,
        `ServiceUnavailableError` when it did not take this one. `work` may run more than once, each time from the
        beginning in a new transaction.
        """

    async def probe(self) -> None:
        """Commit something small that changes nothing; raises as `transact` does."""

    async def tidy(self) -> None:
        """Do what is due between two transactions; raises as `transact` does."""


class ReadConnection(Protocol):
    """A connection that can only read."""

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """All rows of one statement; raises as `WriteConnection.transact` does."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A figure worth watching: the name of its metric, what it is, and how it is read."""

    name: str
    text: str
    read: Callable[[], float]


class Backend(Protocol):
    """A kind of database: how connections are had that behave alike on all of them."""

    @property
    def gauges(self) -> Sequence[Gauge]:
        """What only this kind of database has to show."""

    def writing(self) -> AbstractAsyncContextManager[WriteConnection]:
        """The writer's connection, for as long as the block runs."""

    def reading(self) -> AbstractAsyncContextManager[ReadConnection]:
        """One of the readers' connections, for as long as the block runs."""

    async def relay(self, events: EventBus) -> None:
        """Carry wake-ups between the processes on this database, until cancelled."""

    async def close(self) -> None:
        """Let go of everything, once all connections have been given back."""
