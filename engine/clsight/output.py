"""An answer of the database on the screen or in a file: table, JSON, CSV, Parquet or Arrow."""

import io
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clsight.errors import printable

TABLE_ROWS = 100
"""Rows that a table on the screen shows; the other formats have all."""
FOLDED = 60
"""Characters of a column, beyond which values go on in the next line."""
ROWS_AT_A_TIME = 10_000
"""Rows that are Python objects at one time, which take ten times the memory of Arrow's."""
UNLIMITED = 10_000
"""Width for measuring, and for output that is not a terminal."""


def write(answer: pa.RecordBatchReader, form: str, out: IO[bytes]) -> None:
    """Write an answer in one of `FORMATS`, batch by batch."""
    FORMATS[form](answer, out)


def _json(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    separator = "[\n"
    for row in _rows(answer):
        out.write(f"{separator}{as_json(row)}".encode())
        separator = ",\n"
    out.write(b"\n]\n" if separator == ",\n" else b"[]\n")


def write_csv(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    """Write an answer as CSV: lists as JSON, texts in quotes, so that "" is no null."""
    schema = flat_schema(answer.schema)
    with pyarrow.csv.CSVWriter(out, schema) as writer:
        for batch in answer:
            writer.write_batch(in_schema(batch, schema))


def write_json_lines(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    """Write an answer as one JSON object a line."""
    for row in _rows(answer):
        out.write(f"{as_json(row)}\n".encode())


def as_json(value: Any, **layout: Any) -> str:
    """A value as JSON, which has no numbers that are not finite: they are texts.

    `layout` is what `json.dumps` has for that.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_spelled(value), ensure_ascii=False, default=str, **layout)


def compact_json(value: Any) -> str:
    """The same without spaces, for what is sent."""
    return as_json(value, separators=(",", ":"))


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def flat_schema(schema: pa.Schema) -> pa.Schema:
    """The same with text in place of what a plain cell cannot hold, such as lists."""
    return pa.schema([field.with_type(pa.string()) if _is_no_cell(field.type) else field
                      for field in schema])


def in_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in another schema, where columns that are text in it alone become JSON."""
    return pa.record_batch([
        pa.array([value if value is None else as_json(value) for value in column.to_pylist()],
                 pa.string())
        if _is_no_cell(column.type) and pa.types.is_string(field.type) else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)], schema)


def _is_no_cell(type_: pa.DataType) -> bool:
    return bool(pa.types.is_nested(type_) or pa.types.is_binary(type_)
                or pa.types.is_interval(type_))


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
    first = list(itertools.islice(rows, TABLE_ROWS))
    more = sum(1 for _ in rows)
    text = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    console = Console(file=text)
    whole = table(answer.schema, first)
    width = console.measure(whole, options=console.options.update(width=UNLIMITED)).maximum
    if not console.is_terminal:
        console = Console(file=text, width=width)
    for drawn in [whole] if width <= console.width else map(record, first):
        console.print(drawn)
    if not first:
        text.write("no rows\n")
    if more:
        text.write(f"{more:,} more rows; --format json, csv, parquet or arrow has them all\n")
    text.detach()


FORMATS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], None]] = {
    "table": _table,
    "json": _json,
    "csv": write_csv,
    "parquet": _parquet,
    "arrow": _arrow,
}


def table(schema: pa.Schema, rows: list[dict[str, Any]]) -> Table:
    """A table for the screen: numbers to the right, long texts folded."""
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for field in schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        drawn.add_column(field.name, justify="right" if number else "left",
                         overflow="fold", max_width=FOLDED)
    for row in rows:
        drawn.add_row(*(Text(shown(value)) for value in row.values()))
    return drawn


def record(row: dict[str, Any]) -> Table:
    """One row for a screen that is too narrow for the table: a line per column."""
    drawn = Table(box=box.HORIZONTALS, show_header=False, pad_edge=False)
    for name, value in row.items():
        drawn.add_row(Text(name, style="bold"), Text(shown(value)))
    return drawn


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return printable(str(value).replace("\n", "\N{REPLACEMENT CHARACTER}"))


def _rows(answer: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in answer:
        for first in range(0, len(batch), ROWS_AT_A_TIME):
            yield from batch.slice(first, ROWS_AT_A_TIME).to_pylist()
