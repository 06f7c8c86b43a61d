"""The calls on reports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from service.client import encoding, records
from service.client.connection import Connection
from service.client.records import Report
from service.models import JSON

_PATH: Final = "/v1/reports"
_PAGE: Final = 500


class Reports:
    """The reports of a service; use it as `client.reports`. Its calls raise what those of `Client` raise.

    A window of time is from `since` on, before `until`, by a time of the report; of jobs and their executions it has
    all that will ever be in it, and `ApiError` 409 is raised for one that is not over.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> Sequence[Report]:
        """Every report that the key may read."""
        return self._connection.made(records.reports, await self._connection.send("GET", _PATH))

    async def rows(
        self,
        name: str,
        *,
        columns: Sequence[str] = (),
        plugin: str | None = None,
        since: str | None = None,
        until: str | None = None,
        by: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Mapping[str, JSON], None]:
        """The rows of a report in the order of its key, read page after page; a lost connection is made again."""
        query = _query(columns, plugin, since, until, by)
        left, cursor = limit, None
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            place = [("limit", str(size)), *([("cursor", cursor)] if cursor else [])]
            answer = await self._connection.send("GET", _of(name), query=[*query, *place])
            rows, cursor = self._connection.made(_page, answer)
            for row in rows:
                yield row
            if cursor is None:
                return
            left = None if left is None else left - len(rows)

    async def file(
        self,
        name: str,
        form: str,
        *,
        columns: Sequence[str] = (),
        plugin: str | None = None,
        since: str | None = None,
        until: str | None = None,
        by: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """A report as csv, ndjson or parquet, piece by piece.

        One that breaks off raises `ServiceUnreachableError`: what came is not the whole, and is not gone on with.
        """
        query = [("format", form), *_query(columns, plugin, since, until, by)]
        if limit is not None:
            query.append(("limit", str(limit)))
        async with contextlib.aclosing(self._connection.pieces(_of(name), query)) as pieces:
            async for piece in pieces:
                yield piece


def _of(name: str) -> str:
    return f"{_PATH}/{encoding.segment(name)}"


def _query(
    columns: Sequence[str], plugin: str | None, since: str | None, until: str | None, by: str | None
) -> list[tuple[str, str]]:
    given = {"columns": ",".join(columns) or None, "plugin": plugin, "from": since, "until": until, "by": by}
    return [(name, value) for name, value in given.items() if value is not None]


def _page(document: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, JSON]], str | None]:
    return document["items"], document["next"]
