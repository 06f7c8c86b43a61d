"""Reports as files: CSV, NDJSON and Parquet, made a page at a time."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import orjson

from service.api.route import JSON_TYPE, NDJSON_TYPE
from service.report_models import ColumnType, ReportColumn

CSV_TYPE: Final = "text/csv"
PARQUET_TYPE: Final = "application/vnd.apache.parquet"
#: A row group of Parquet has so many rows at least, except for the last one: fewer would not compress.
_ROW_GROUP: Final = 16_000

Rows = Sequence[Sequence[Any]]


class Encoder(Protocol):
    """Makes a file of pages. Its work is for a thread."""

    def page(self, rows: Rows) -> bytes:
        """What the next page adds to the file; may be nothing yet."""
        ...

    def end(self) -> bytes:
        """What the file ends with."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A form of a report. `encoder` is None for JSON, which comes in pages of their own."""

    name: str
    media_type: str
    encoder: Callable[[Sequence[ReportColumn]], Encoder] | None


class CsvEncoder:
    """RFC 4180 with a header row. NULL is an empty field, and empty text `""`."""

    def __init__(self, columns: Sequence[ReportColumn]) -> None:
        self._columns = columns
        self._head = _csv_line([column.name for column in columns])

    def page(self, rows: Rows) -> bytes:
        """See `Encoder`."""
        head, self._head = self._head, ""
        return (head + "".join(map(_csv_line, rows))).encode()

    def end(self) -> bytes:
        """See `Encoder`."""
        return self._head.encode()


def _csv_line(values: Sequence[Any]) -> str:
    line = ",".join(map(_csv_field, values))
    # A line without anything would be no row.
    return (line or '""') + "\r\n"


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    text = value if type(value) is str else str(value)
    return '"' + text.replace('"', '""') + '"' if not text or _QUOTED.search(text) else text


_QUOTED: Final = re.compile(r'[",\r\n]|^\s|\s$')


class NdjsonEncoder:
    """A JSON object a line."""

    def __init__(self, columns: Sequence[ReportColumn]) -> None:
        self._columns = columns

    def page(self, rows: Rows) -> bytes:
        """See `Encoder`."""
        return b"".join(orjson.dumps(row_object(self._columns, row)) + b"\n" for row in rows)

    def end(self) -> bytes:
        """See `Encoder`."""
        return b""


class ParquetEncoder:
    """Apache Parquet with typed columns, through Arrow. Raises `ImportError` without the extra `parquet`."""

    def __init__(self, columns: Sequence[ReportColumn]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [
                pyarrow.field(
                    column.name, self._type(column), metadata={"unit": column.unit, "meaning": column.meaning}
                )
                for column in columns
            ]
        )
        self._sink = _Sink()
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, self._schema)
        self._batches: list[Any] = []
        self._count = 0

    def _type(self, column: ReportColumn) -> Any:
        match column.type:
            case ColumnType.TIME:
                return self._arrow.timestamp("ms", tz="UTC")
            case ColumnType.INTEGER:
                return self._arrow.int64()
            case ColumnType.NUMBER:
                return self._arrow.float64()
            case _:
                return self._arrow.string()

    def page(self, rows: Rows) -> bytes:
        """See `Encoder`."""
        values = zip(*rows, strict=True) if rows else ([] for _ in self._schema)
        arrays = [self._array(column, field) for column, field in zip(values, self._schema, strict=True)]
        self._batches.append(self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._count += len(rows)
        if self._count >= _ROW_GROUP:
            self._write()
        return self._sink.take()

    def _array(self, values: Sequence[Any], field: Any) -> Any:
        if self._arrow.types.is_timestamp(field.type):
            return self._arrow.array(values, self._arrow.string()).cast(field.type)
        return self._arrow.array(values, field.type)

    def _write(self) -> None:
        table = self._arrow.Table.from_batches(self._batches, schema=self._schema)
        self._writer.write_table(table.combine_chunks())
        self._batches, self._count = [], 0

    def end(self) -> bytes:
        """See `Encoder`."""
        if self._count:
            self._write()
        self._writer.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file that keeps only what was not yet taken away."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def row_object(columns: Sequence[ReportColumn], row: Sequence[Any]) -> dict[str, Any]:
    """A row as JSON."""
    return {
        column.name: orjson.Fragment(value) if column.type is ColumnType.JSON and value is not None else value
        for column, value in zip(columns, row, strict=True)
    }


FORMATS: Final[Mapping[str, Format]] = {
    each.name: each
    for each in (
        Format(name="json", media_type=JSON_TYPE, encoder=None),
        Format(name="csv", media_type=CSV_TYPE, encoder=CsvEncoder),
        Format(name="ndjson", media_type=NDJSON_TYPE, encoder=NdjsonEncoder),
        Format(name="parquet", media_type=PARQUET_TYPE, encoder=ParquetEncoder),
    )
}
