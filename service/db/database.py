"""The database as the services use it: one writer, some readers, the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from service.db.blobs import BlobStore
from service.db.engine import create_reader_engine, create_writer_engine, sqlite_path
from service.db.ground import Ground
from service.db.reader import Reader
from service.db.sqlite_file import SqliteFile
from service.db.wal import WalLimits
from service.db.writer import Writer

READER_CONNECTIONS = 4


class Database:
    """An open database at this version's schema (see `migrate.upgrade`)."""

    def __init__(self, writer: Writer, reader: Reader, blobs: BlobStore) -> None:
        self.ground = writer.ground
        self.writer = writer
        self.reader = reader
        self.blobs = blobs

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, database_url: str, blob_directory: Path, *, inline_bytes: int, wal_limits: WalLimits | None = None
    ) -> AsyncIterator[Database]:
        """The database for as long as the block runs; leaving it commits what is queued and closes every connection."""
        writer_engine = create_writer_engine(database_url)
        reader_engine = create_reader_engine(database_url, connections=READER_CONNECTIONS)
        file = SqliteFile(sqlite_path(database_url))
        writer = Writer(writer_engine, file, Ground(), wal_limits=wal_limits)
        reader = Reader(reader_engine, file, connections=READER_CONNECTIONS)
        try:
            await writer.start()
            await reader.start()
            yield cls(writer, reader, BlobStore(blob_directory, reader, inline_bytes=inline_bytes))
        finally:
            await writer.close()
            await reader.close()
            await reader_engine.dispose()
            await writer_engine.dispose()
