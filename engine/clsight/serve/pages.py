"""Pages of answers as JSON, CSV, Arrow and Parquet."""

import io
from dataclasses import dataclass

import pyarrow as pa
from pydantic_core import to_json

from clsight import output

MOST_BYTES = 64 << 20
"""Of a page as Arrow has it in memory; a page ends with the batch that comes to more."""
BATCH = 2048
"""Rows that DuckDB makes at once."""


@dataclass(frozen=True)
class Format:
    """How an answer is written."""

    media_type: str
    most_rows: int
    """Of a page."""
    is_text: bool = False
    """Shrinks when it is compressed."""


FORMATS = {
    "json": Format("application/json", 10_000, is_text=True),
    "csv": Format("text/csv; charset=utf-8; header=present", 10_000, is_text=True),
    "arrow": Format("application/vnd.apache.arrow.stream", 100_000),
    "parquet": Format("application/vnd.apache.parquet", 100_000),
}


def encoded(table: pa.Table, form: str) -> bytes:
    """The table in one of `FORMATS`, as `output` writes it; JSON by a faster library."""
    if form == "json":
        return to_json(table.to_pylist(), inf_nan_mode="strings", bytes_mode="base64",
                       serialize_unknown=True)
    out = io.BytesIO()
    output.write(table.to_reader(), form, out)
    return out.getvalue()


def first_rows(reader: pa.RecordBatchReader, most: int) -> tuple[pa.Table, bool]:
    """As many rows, or fewer where they are large; and whether there are more."""
    batches, rows, size = [], 0, 0
    for batch in reader:
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if size > MOST_BYTES or rows > most:
            break
    more = rows > most or (size > MOST_BYTES and any(batch.num_rows for batch in reader))
    return pa.Table.from_batches(batches, reader.schema).slice(0, most), more
