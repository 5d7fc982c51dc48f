"""Files: streamed into one beside, which takes the target's name when it is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clsight.export.rows import Rows, comments_on, quoted_name
from clsight.output import write_csv, write_json_lines
from clsight.shards import replaced


def write(rows: Rows, path: Path) -> None:
    """Write a file in the format that its ending names (`FORMATS`), replacing one that is there.

    Raises:
        ClsightError: the format cannot hold a column.
    """
    with (rows.failures_named(str(path), pa.ArrowException), replaced(path) as temporary,
          temporary.open("wb") as out):
        FORMATS[path.suffix](rows.reader(), out)


def _parquet(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    with pq.ParquetWriter(out, answer.schema, compression="zstd") as writer:
        for batch in answer:
            writer.write_batch(batch)


def _arrow(answer: pa.RecordBatchReader, out: IO[bytes]) -> None:
    with pa.ipc.new_file(out, answer.schema) as writer:
        for batch in answer:
            writer.write_batch(batch)


FORMATS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], None]] = {
    ".parquet": _parquet,
    ".csv": write_csv,
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".arrow": _arrow,
}
DATABASES = (".duckdb", ".db")


def write_table(rows: Rows, path: Path, table: str) -> None:
    """Write a table of a DuckDB file, replacing that table, and that alone, where it is there.

    Raises:
        ClsightError: the file is no DuckDB database, or another process has it open.
    """
    with rows.failures_named(str(path), duckdb.Error):
        if path.exists():
            _into(rows, path, table)
        else:
            with replaced(path) as temporary:
                _into(rows, temporary, table)


def _into(rows: Rows, path: Path, table: str) -> None:
    name = quoted_name(table)
    with duckdb.connect(path) as connection:
        connection.register("clsight_rows", rows.reader())
        connection.begin()
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM clsight_rows")
        for statement in comments_on(name, rows.schema):
            connection.execute(statement)
        connection.commit()
        # Closing does the same, and says nothing where it fails.
        connection.execute("CHECKPOINT")
