"""The bare echo that rates are compared with: aiohttp decodes a JSON POST and answers 202 with JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from aiohttp import web


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """By the same rule as the service, so that both run on the same event loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def accept(request: web.Request) -> web.Response:
    document = orjson.loads(await request.read())
    answer = {"id": "00000000-0000-7000-8000-000000000000", "status": "PENDING", "plugin": document["plugin"]}
    return web.Response(status=202, body=orjson.dumps(answer), content_type="application/json")


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/v1/jobs", accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
