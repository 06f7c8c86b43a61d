"""The database as the services use it: one writer, some readers, the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from service.db.blobs import BlobStore
from service.db.engine import NO_DRIVER, DatabaseKind, database_kind
from service.db.ground import Ground
from service.db.reader import Reader
from service.db.sqlite import SqliteBackend
from service.db.transaction import Backend, Gauge
from service.db.wal import WalLimits
from service.db.writer import Writer
from service.errors import StartupError
from service.events import EventBus
from service.models import Timestamp, timestamp

READER_CONNECTIONS = 4


class Database:
    """An open database at this version's schema (see `migrate.upgrade`)."""

    def __init__(self, backend: Backend, writer: Writer, reader: Reader, blobs: BlobStore) -> None:
        self._backend = backend
        self.ground = writer.ground
        self.writer = writer
        self.reader = reader
        self.blobs = blobs

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        database_url: str,
        blob_directory: Path,
        *,
        inline_bytes: int,
        clock: Callable[[], Timestamp] | None = None,
        wal_limits: WalLimits | None = None,
    ) -> AsyncIterator[Database]:
        """The database for as long as the block runs; leaving it commits what is queued and closes every connection.

        `clock` decides what is due, expired or lost; where none is given, this process's on SQLite, the server's on
        PostgreSQL. SQLite's log has `wal_limits`.
        """
        ground = Ground()
        backend = _backend(database_url, ground, clock, wal_limits)
        writer = Writer(backend, ground)
        reader = Reader(backend, connections=READER_CONNECTIONS)
        try:
            await writer.start()
            await reader.start()
            yield cls(backend, writer, reader, BlobStore(blob_directory, reader, inline_bytes=inline_bytes))
        finally:
            await writer.close()
            await reader.close()
            await backend.close()

    @property
    def gauges(self) -> Sequence[Gauge]:
        """What only this kind of database has to show."""
        return self._backend.gauges

    async def relay(self, events: EventBus) -> None:
        """Carry wake-ups between the processes on this database, until cancelled."""
        await self._backend.relay(events)


def _backend(
    database_url: str, ground: Ground, clock: Callable[[], Timestamp] | None, wal_limits: WalLimits | None
) -> Backend:
    if database_kind(database_url) is DatabaseKind.SQLITE:
        return SqliteBackend(
            database_url, ground, readers=READER_CONNECTIONS, clock=clock or timestamp, wal_limits=wal_limits
        )
    # Its driver is an extra.
    try:
        from service.db.postgresql import PostgresqlBackend
    except ImportError as error:
        raise StartupError(NO_DRIVER) from error
    return PostgresqlBackend(database_url, clock)
