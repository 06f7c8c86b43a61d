"""Pictures of 5 MB submitted, against a bare aiohttp handler that stores the same bodies in files and syncs them.

No two bodies are alike, so each is stored. The jobs are due in the far future: it is submission that is measured.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.common import Server
from benchmarks.context import FAR_FUTURE, Context, bare, ours
from benchmarks.figures import alternate, rates
from benchmarks.rates import whole
from benchmarks.wrk import Load, wrk_post_files

PICTURE_BYTES = 5_000_000
PATH = f"/v1/plugins/echo/jobs?job.run_at={FAR_FUTURE}"


def post(server: Server, picture: Path, seconds: float) -> Load:
    """Pictures for so long."""
    return whole(wrk_post_files(server, PATH, picture, "image/png", seconds=seconds))


def measure(context: Context) -> None:
    """Enter the rate and its ratio, on SQLite."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        picture, stored = Path(folder) / "picture", Path(folder) / "stored"
        picture.write_bytes(os.urandom(PICTURE_BYTES))
        stored.mkdir()
        with bare("benchmarks.storing", str(stored)) as plain, ours(context, "sqlite") as service:
            for server in (plain, service.server):
                post(server, picture, 1)
            samples = alternate(
                context.rounds,
                {
                    "bare": partial(post, plain, picture, context.seconds),
                    "pictures": context.lags.watched(
                        "5 MB pictures",
                        partial(post, service.server, picture, context.seconds),
                        service.server.url,
                    ),
                },
            )
    context.book.add("bare handler: 5 MB bodies", rates(samples["bare"]), durability="every file synced, no record")
    context.book.add("5 MB pictures submitted", rates(samples["pictures"]), durability="every row and file synced")
    context.book.add_ratio("5 MB pictures submitted / bare handler", rates(samples["pictures"]), rates(samples["bare"]))
