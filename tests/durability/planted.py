"""`python -m tests.durability.planted BUG serve ...`: the real service with one bug in it that audits must find."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from service.cli import main


def commit_without_sync() -> None:
    """`synchronous=NORMAL`: a commit is in the log, but not on the disk."""

    @sa.event.listens_for(sa.Pool, "checkout")
    def relax(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL").close()


def keep_bytes_without_sync() -> None:
    """Files of bytes are written, never synced."""
    os.fsync = lambda descriptor: None


BUGS: Mapping[str, Callable[[], None]] = {
    "commit-without-sync": commit_without_sync,
    "keep-bytes-without-sync": keep_bytes_without_sync,
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
