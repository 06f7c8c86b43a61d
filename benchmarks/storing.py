"""The bare handler that large bodies are compared with: aiohttp reads a body, stores it in a synced file, answers."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from uuid import uuid4

from aiohttp import web

from benchmarks.echo import loop_factory

MAX_BYTES = 20_000_000


def store(path: Path, body: bytes) -> None:
    """Write the body and have the disk hold it."""
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


async def serve(folder: Path) -> None:
    async def accept(request: web.Request) -> web.Response:
        await asyncio.to_thread(store, folder / uuid4().hex, await request.read())
        return web.Response(status=202)

    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_post("/{path:.*}", accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(options.folder))


if __name__ == "__main__":
    main()
