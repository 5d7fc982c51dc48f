"""Parquet shards: written beside, checked, renamed when whole; the final name is the only marker.

Each shard holds the SHA-256 of itself, in which the digits of that checksum count as zeros.
Parquet's own page checksums leave out page headers and the footer; this leaves out nothing.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from clsight import object_storage, store
from clsight.errors import ClsightError, said

SCORED = ("heads", "agreement", "scores")
"""Folders of what is made of a shard's attention, in the order in which it is committed."""
MADE = ("attention", *SCORED)
"""Folders of a model in which every shard has a file before the statistics."""
PARTIAL = object_storage.PARTIAL
_KEY, _NAME = b"clsight.sha256", b"clsight.shard"
_ZEROS = b"0" * 64
_BLOCK = 1 << 20


def name(shard: int) -> str:
    """File name of a shard: `00042.parquet`."""
    return f"{shard:05d}.parquet"


def done(folder: Path) -> set[str]:
    """Names of the complete shards in a folder; empty where the folder is missing."""
    return {name for name in store.names(folder) if name.endswith(".parquet")}


def write(table: pa.Table, path: Path) -> None:
    """Write a table under its final name, or not at all.

    Floats are split by byte and compressed without a dictionary: 1.9 bytes for a value rounded to
    half precision, and every reader sees plain FLOAT.
    """
    is_float = [field.name for field in table.schema if pa.types.is_floating(_value_type(field))]
    with replaced(path, lambda made: _refuse_other_rows(made, table.num_rows)) as temporary:
        with pq.ParquetWriter(
            temporary,
            table.schema,
            compression="zstd",
            use_dictionary=[f.name for f in table.schema if f.name not in is_float],
            use_byte_stream_split=[_leaf(table.schema.field(column)) for column in is_float],
            write_page_checksum=True,
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_NAME: path.name.encode(), _KEY: _ZEROS})
        _seal(temporary)


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A shard, or some of its columns, each column in one piece.

    Raises:
        ClsightError: it is missing or damaged.
    """
    try:
        table = pq.read_table(store.fetched(path), columns=columns,
                              page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ClsightError(f"{path} cannot be read ({said(error)}); clsight verify names all such "
                           "files of a run, and --repair makes them again") from error
    return table.combine_chunks()


def was(path: Path) -> str:
    """The name under which a shard was written, whatever it is called now."""
    return str((pq.read_metadata(path).metadata or {}).get(_NAME, b"").decode())


def is_sound(path: Path) -> bool:
    """True where a shard is, byte for byte, as it was written.

    Raises:
        OSError: it cannot be read.
    """
    try:
        place, stored = _checksum(path)
    except ClsightError:
        return False
    return _digest(path, place) == stored


@contextmanager
def replaced(path: Path, check: Callable[[Path], object] = lambda _: None) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name if the block succeeds.

    What was written is on disk (fsync) before it is read back by `check`, which raises where it
    cannot be; then it is renamed, and the folder synced, so that a crash at any moment leaves
    either the old file or the new one.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f"{PARTIAL}{path.name}-{uuid4().hex}")  # as no other machine's
    try:
        yield temporary
        _sync(temporary)
        check(temporary)
        store.push(temporary, path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def sweep(run: Path) -> None:
    """Remove what killed processes left half-written; nobody else may be at work in the run."""
    for path in run.rglob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove(paths: list[Path]) -> None:
    """Remove files and folders for good: the folders that held them are synced."""
    for path in paths:
        store.remove(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths if path.parent.is_dir()}:
        _sync(folder)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, onto the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_other_rows(path: Path, n_rows: int) -> None:
    there = pq.read_metadata(path).num_rows
    if there != n_rows:
        raise ClsightError(f"{path} holds {there} rows where {n_rows} were written: the disk does "
                           "not keep what it is given")


def _seal(path: Path) -> None:
    """Put the checksum in its place."""
    place, _ = _checksum(path)
    digest = _digest(path, place)
    with path.open("rb+") as file:
        file.seek(place)
        file.write(digest)


def _checksum(path: Path) -> tuple[int, bytes]:
    """Where in the file the checksum stands, and what it says.

    The footer is Thrift's compact protocol: a key, the byte 0x18 (the next field, a string), the
    length 64, the value.

    Raises:
        ClsightError: there is none.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        start = max(0, size - 8 - length)
        file.seek(start)
        footer = file.read(size - start)
    marked = _KEY + b"\x18" + bytes([len(_ZEROS)])
    place = footer.rfind(marked) + len(marked)
    if place < len(marked) or place + len(_ZEROS) > len(footer):
        raise ClsightError(f"{path} holds no checksum")
    return start + place, footer[place : place + len(_ZEROS)]


def _digest(path: Path, place: int) -> bytes:
    """SHA-256 of a file, in hexadecimal, with zeros where the checksum stands."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file.read, place):
            digest.update(block)
        digest.update(_ZEROS)
        file.seek(len(_ZEROS), os.SEEK_CUR)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest().encode()


def _blocks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := read(min(size, _BLOCK))):
        size -= len(block)
        yield block


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
