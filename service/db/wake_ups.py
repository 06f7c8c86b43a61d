"""Wake-ups between the processes on one PostgreSQL: never the truth, which is polled; they only shorten the wait."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import structlog

from service.db.link import FAULTS, Link, fault_text
from service.errors import ServiceUnavailableError
from service.events import EventBus

CHANNEL: Final = "jobservice"
#: What happens within this time goes out together.
_GATHER_S: Final = 0.02
#: How long nothing may be heard of the server before it is asked whether it is there.
_PING_S: Final = 20.0
_PAUSE_S: Final = 1.0
#: A server takes 8000 bytes; an id has 36.
_IDS_A_MESSAGE: Final = 200
#: Beyond this the others are told to look at everything.
_MANY: Final = 2_000
_EVERYTHING: Final = "*"

log = structlog.get_logger(__name__)


class WakeUps:
    """Carries the events of a bus to the other processes and back, after their commits and coalesced."""

    def __init__(self, link: Link, events: EventBus) -> None:
        self._link = link
        self._events = events
        self._untold: set[str] = set()
        self._stir = asyncio.Event()
        self._listening: Any = None

    async def carry(self) -> None:
        """Carry until cancelled; while the server is away, nothing is carried."""
        self._events.tell_others = self._tell
        is_away = False  # each outage is told once
        try:
            while True:
                try:
                    await self._listen()
                    if is_away:
                        log.info("wake-ups from other processes again")
                    is_away = False
                    await self._pass_on()
                except (ServiceUnavailableError, *FAULTS) as error:
                    if not is_away:
                        log.warning("no wake-ups from other processes now; polling goes on", error=fault_text(error))
                    is_away = True
                    self._link.drop()
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._events.tell_others = lambda what: None

    async def _listen(self) -> None:
        connection = await self._link.get()
        if connection is self._listening:
            return
        await connection.add_listener(CHANNEL, self._hear)
        connection.add_termination_listener(lambda _: self._stir.set())
        self._listening = connection
        self._untold.clear()
        self._events.missed_some()

    async def _pass_on(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PING_S):
                await self._stir.wait()
        await asyncio.sleep(_GATHER_S)
        self._stir.clear()
        connection = await self._link.get()
        if connection is not self._listening:
            return
        untold, self._untold = sorted(self._untold), set()
        if len(untold) > _MANY:
            untold = [_EVERYTHING]
        if not untold:
            await connection.execute("SELECT 1")
        for start in range(0, len(untold), _IDS_A_MESSAGE):
            message = " ".join(untold[start : start + _IDS_A_MESSAGE])
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)

    def _tell(self, what: str) -> None:
        self._untold.add(what)
        self._stir.set()

    def _hear(self, connection: Any, sender: int, _channel: str, message: object) -> None:
        if sender == connection.get_server_pid():
            return
        if message == _EVERYTHING:
            self._events.missed_some()
        else:
            for what in str(message).split():
                self._events.heard(what)
