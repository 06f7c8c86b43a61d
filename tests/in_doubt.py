"""A relay to PostgreSQL that loses the answer to a commit: whoever asked for it cannot know that it happened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import sqlalchemy as sa

_COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
_COMMITTED = b"C\0\0\0\x0bCOMMIT\0"


class Relay:
    """Cuts the connection, once for each of `doomed`, when what was told that text is committed."""

    def __init__(self, server: sa.URL) -> None:
        self._server = server
        self.url = ""
        self.doomed: list[bytes] = []

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._connect()
        is_cut, told = asyncio.Event(), b""

        async def back() -> None:
            while answer := await server_reader.read(65_536):
                if is_cut.is_set() and _COMMITTED in answer:
                    break
                writer.write(answer)
            writer.close()

        with contextlib.closing(server_writer):
            answering = asyncio.create_task(back())
            with contextlib.suppress(ConnectionError):
                while request := await reader.read(65_536):
                    told += request
                    if told.endswith(_COMMIT):
                        for text in [text for text in self.doomed if text in told][:1]:
                            self.doomed.remove(text)
                            is_cut.set()
                        told = b""
                    server_writer.write(request)
            server_writer.close()
            with contextlib.suppress(ConnectionError):
                await answering

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port, folder = self._server.port or 5432, self._server.query.get("host")
        if folder:
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._server.host, port)


@contextlib.asynccontextmanager
async def losing_commits(url: str) -> AsyncIterator[Relay]:
    """A relay to the server of `url`, whose own `url` leads to the same database."""
    server = sa.make_url(url)
    relay = Relay(server)
    async with await asyncio.start_server(relay.relay, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        through = server.set(host="127.0.0.1", port=port, query={"ssl": "disable"})
        relay.url = through.render_as_string(hide_password=False)
        yield relay
