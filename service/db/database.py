"""The database as the services use it: one writer, some readers, the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from service.db.blobs import BlobStore
from service.db.engine import create_reader_engine, create_writer_engine
from service.db.reader import Reader
from service.db.writer import Writer
from service.models import Timestamp, timestamp

READER_CONNECTIONS = 4


class Database:
    """An open database at this version's schema (see `migrate.upgrade`)."""

    def __init__(self, writer: Writer, reader: Reader, blobs: BlobStore) -> None:
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
        clock: Callable[[], Timestamp] = timestamp,
    ) -> AsyncIterator[Database]:
        """The database for as long as the block runs; leaving it commits what is queued and closes every connection.

        `clock` decides what is due, expired or lost.
        """
        writer_engine = create_writer_engine(database_url)
        reader_engine = create_reader_engine(database_url, connections=READER_CONNECTIONS)
        writer = Writer(writer_engine, clock=clock)
        reader = Reader(reader_engine, connections=READER_CONNECTIONS)
        try:
            await writer.start()
            await reader.start()
            yield cls(writer, reader, BlobStore(blob_directory, reader, inline_bytes=inline_bytes))
        finally:
            await writer.close()
            await reader.close()
            await reader_engine.dispose()
            await writer_engine.dispose()
