"""An answer of the database on the screen or in a file: table, JSON, CSV, Parquet or Arrow."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

TABLE_ROWS = 100
"""Rows that a table on the screen shows; the other formats have all."""
UNKNOWN_WIDTH = 160
"""Columns of characters where the output is not a terminal."""


def write(answer: pa.RecordBatchReader, form: str, out: IO[bytes]) -> None:
    """Write an answer in one of `FORMATS`, batch by batch."""
    FORMATS[form](answer, out)


def _json(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    separator = "[\n"
    for row in _rows(answer):
        out.write(f"{separator}{json.dumps(row, ensure_ascii=False, default=str)}".encode())
        separator = ",\n"
    out.write(b"\n]\n" if separator == ",\n" else b"[]\n")


def _csv(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.schema.names)
    for row in _rows(answer):
        writer.writerow(
            json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict)
            else value for value in row.values()
        )
    text.detach()


def _parquet(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    # Parquet's footer holds file positions, and a pipe has none: counted in memory.
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as writer:
        for batch in answer:
            writer.write_batch(batch)
    out.write(sink.getvalue())


def _arrow(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    with pa.ipc.new_stream(out, answer.schema) as writer:
        for batch in answer:
            writer.write_batch(batch)


def _table(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    rows = _rows(answer)
    shown = list(itertools.islice(rows, TABLE_ROWS))
    more = sum(1 for _ in rows)
    text = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    console = Console(file=text)
    if not console.is_terminal:
        console = Console(file=text, width=UNKNOWN_WIDTH)
    console.print(table(answer.schema, shown))
    if more:
        console.print(f"{more:,} more rows; --format json, csv, parquet or arrow has them all")
    text.detach()


FORMATS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], None]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}


def table(schema: pa.Schema, rows: list[dict[str, Any]]) -> Table:
    """A table for the screen: numbers to the right, four significant digits."""
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for field in schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        drawn.add_column(field.name, justify="right" if number else "left",
                         no_wrap=number, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(value)) for value in row.values()))
    return drawn


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(shown, value))
    # Control characters could move the cursor or change the terminal's colours.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _rows(answer: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in answer:
        yield from batch.to_pylist()
