"""The calls on schedules."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from service.client import encoding, records
from service.client.connection import Answer, Connection
from service.client.records import Job, NewSchedule, Schedule

_PATH: Final = "/v1/schedules"
_JSON: Final = {"Content-Type": "application/json"}


class Schedules:
    """The schedules of a service; use it as `client.schedules`. Its calls raise what those of `Client` raise.

    Making a schedule and running one are not repeated when their answer was lost, for they may have had their effect:
    `ServiceUnreachableError` says so.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> Sequence[Schedule]:
        """Every schedule by name, without its payload."""
        return self._connection.made(records.schedules, await self._connection.send("GET", _PATH))

    async def get(self, schedule_id: str) -> Schedule:
        """One schedule."""
        return self._schedule(await self._connection.send("GET", _of(schedule_id)))

    async def create(self, wanted: NewSchedule) -> Schedule:
        """A new schedule; its name must be its own."""
        body = await asyncio.to_thread(_body, wanted)
        return self._schedule(await self._connection.send("POST", _PATH, body=body, headers=_JSON, repeatable=False))

    async def replace(self, schedule_id: str, wanted: NewSchedule) -> Schedule:
        """The schedule, which from now on is what is `wanted`."""
        body = await asyncio.to_thread(_body, wanted)
        return self._schedule(await self._connection.send("PUT", _of(schedule_id), body=body, headers=_JSON))

    async def delete(self, schedule_id: str) -> None:
        """Forget a schedule; the jobs that it made stay."""
        await self._connection.send("DELETE", _of(schedule_id), done=frozenset({HTTPStatus.NOT_FOUND}))

    async def pause(self, schedule_id: str) -> Schedule:
        """The schedule, which makes no jobs for now."""
        return self._schedule(await self._connection.send("POST", _of(schedule_id) + "/pause"))

    async def resume(self, schedule_id: str) -> Schedule:
        """The schedule, which makes jobs again."""
        return self._schedule(await self._connection.send("POST", _of(schedule_id) + "/resume"))

    async def run_now(self, schedule_id: str) -> Job:
        """One job of a schedule, made now."""
        answer = await self._connection.send("POST", _of(schedule_id) + "/run", repeatable=False)
        return self._connection.made(records.job, answer)

    def _schedule(self, answer: Answer) -> Schedule:
        return self._connection.made(records.schedule, answer)


def _of(schedule_id: str) -> str:
    return f"{_PATH}/{encoding.segment(schedule_id)}"


def _body(wanted: NewSchedule) -> bytes:
    given = {field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)}
    return encoding.body({name: value for name, value in given.items() if value is not None})
