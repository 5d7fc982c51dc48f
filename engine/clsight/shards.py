"""Parquet shards: written beside, renamed when whole; the final name is the only marker."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCORED = ("heads", "agreement", "scores")
"""Folders of what is made of a shard's attention, in the order in which it is committed."""


def name(shard: int) -> str:
    """File name of a shard: `00042.parquet`."""
    return f"{shard:05d}.parquet"


def done(folder: Path) -> set[str]:
    """Names of the complete shards in a folder; empty where the folder is missing."""
    return {path.name for path in folder.glob("*.parquet")}


def write(table: pa.Table, path: Path) -> None:
    """Write a table under its final name, or not at all.

    Floats are split by byte and compressed without a dictionary: 1.9 bytes for a value rounded to
    half precision, and every reader sees plain FLOAT.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_float = [field.name for field in table.schema if pa.types.is_floating(_value_type(field))]
    with replaced(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=[f.name for f in table.schema if f.name not in is_float],
            use_byte_stream_split=[_leaf(table.schema.field(column)) for column in is_float],
            write_page_checksum=True,
        )


class replaced:  # noqa: N801 (a context manager, read like a function)
    """Context manager: a temporary path that takes its final name if the block succeeds.

    The file's content is on disk before the rename (fsync), so that a crash leaves either the old
    file or the new one.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is touched before the block is entered."""
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        """The path to write to."""
        return self.temporary

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Sync and rename, or remove what was written."""
        if failure is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
