"""The rows behind the examples of `docs/reporting.md`, and how those show them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.db.database import Database
from service.db.statements import Statement
from tests.reports.history import random_steps
from tests.reports.proof import lived

_SEED, _STEPS = 5, 400


@contextlib.asynccontextmanager
async def example(url: str, directory: Path) -> AsyncIterator[Database]:
    """A database with the history of the document."""
    async with lived(url, directory, itertools.islice(random_steps(_SEED), _STEPS)) as database:
        yield database


async def answer(database: Database, query: str) -> str:
    """The rows of a query as the document shows them."""
    rows = await database.reader.fetch(Statement(sa.text(query)))
    return "\n".join(_lines([[_cell(value) for value in row] for row in rows]))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
