"""The role of `docs/reporting.md`, made as the page says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tests.conftest import driver_url, sql

PAGE = (Path(__file__).parents[2] / "docs/reporting.md").read_text()


@contextlib.contextmanager
def reader_of(url: str) -> Iterator[str]:
    """The URL of a PostgreSQL database for the role that may read its reports and nothing else."""
    statements = re.search(r"<!-- a test runs this -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
    assert statements
    role = f"reporting_{str(sa.make_url(url).database)[-12:]}"  # roles are of the whole server
    try:
        for statement in statements[1].replace("reporting", role).split(";")[:-1]:
            sql(url, statement)
        reader = sa.make_url(url).set(username=role, password="choose-one")
        yield driver_url(reader.render_as_string(hide_password=False))
    finally:
        sql(url, f"DROP OWNED BY {role}")
        sql(url, f"DROP ROLE {role}")
