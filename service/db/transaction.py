"""What a change may do inside the writer's transaction, and how it is brought there, whatever the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from service.db.ground import Fault
from service.db.statements import Statement
from service.models import Timestamp

Item = TypeVar("Item", contravariant=True)
Outcome = TypeVar("Outcome", covariant=True)
Value = TypeVar("Value")


class Transaction(Protocol):
    """An open transaction. Its methods are all that an operation may await.

    `now` is the database's time at its beginning: what is due, expired or lost is decided by this one clock, however
    many processes there are and whatever theirs say.
    """

    @property
    def now(self) -> Timestamp:
        """When the transaction began."""

    async def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """Run one statement; the rows it returns."""

    async def execute_many(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run one statement for each row of positional parameters."""


class Operation(Protocol[Item, Outcome]):
    """A kind of change, applied to all its items of one transaction at once; one outcome for each, in order."""

    def __call__(self, tx: Transaction, items: Sequence[Item], /) -> Awaitable[Sequence[Outcome]]:
        """Apply `items`; raise and none of them has happened."""


class WriteConnection(Protocol):
    """The one connection that the writer holds."""

    async def transact(self, work: Callable[[Transaction], Coroutine[Any, Any, Value]]) -> Value:
        """Run `work` in a transaction and commit it; if anything is raised, nothing of it has happened."""

    async def probe(self) -> None:
        """Commit something small that changes nothing; raises what stands in the way."""

    async def tidy(self) -> None:
        """Do what is due between two transactions; raises as they do."""

    def diagnose(self, error: BaseException) -> Fault | None:
        """The fault of the whole database behind `error`; None when it lies with an item."""
