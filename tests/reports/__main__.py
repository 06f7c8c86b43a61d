"""The long proof: histories of many transitions on a database, each report held against counting."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from service.db.migrate import upgrade
from tests.conftest import sqlite_url
from tests.reports.history import random_steps
from tests.reports.proof import check, lived


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database-url", help="an empty PostgreSQL database; default: a new SQLite file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = args.database_url or sqlite_url(Path(directory) / "jobs.db")
        await upgrade(url)
        began = time.monotonic()
        steps = random_steps(args.seed)
        async with lived(url, Path(directory), steps, transitions=args.transitions) as database:
            await check(database)
        took = time.monotonic() - began
        print(f"{args.transitions:,} transitions of seed {args.seed}: every report is right ({took:.0f} s)")


if __name__ == "__main__":
    asyncio.run(main())
