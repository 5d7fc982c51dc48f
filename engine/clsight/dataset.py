"""A labelled dataset (CSV, JSON Lines, Parquet, Hugging Face) -> documents and their words.

Read in batches, never as a whole: memory does not grow with the dataset.
"""

import hashlib
import itertools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsight import documents, shards, sources, tables
from clsight.columns import is_number, is_text, mostly_numbers, of_type, text, unpacked
from clsight.errors import ClsightError, UsageError, listed
from clsight.readers import Rows
from clsight.sources import Source

MOST_REASONS = 10
"""As many reasons does a message name."""


@dataclass(frozen=True)
class Dataset:
    """A dataset and the columns that matter; `path` is as `sources.opened` takes it."""

    path: str
    text: str
    label: str
    id: str | None = None
    split: str | None = None
    text_pair: str | None = None
    """Column of the second text, for classifiers of pairs."""
    group_by: str | None = None
    """Column within whose values words are tested as well."""
    streaming: bool = False
    """Read a Hugging Face dataset row by row, without storing it."""

    @cached_property
    def source(self) -> Source:
        """Where the rows are.

        Raises:
            UsageError: there are none.
        """
        return sources.opened(self.path, self.split, self.streaming)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in dataset order: those of `columns` that there are, in batches of any size.

        Raises:
            ClsightError: a row cannot be read.
        """
        n = 0
        for rows in self.rows():
            names, values, problem = rows.values.schema.names, [], rows.problem
            for name, column in zip(names, rows.values, strict=True):
                column = unpacked(column)
                if is_text(column.type):
                    column, reason = text(column, name)
                    problem = pc.coalesce(problem, reason)
                values.append(column)
            if problem.null_count < len(rows):
                row = pc.index(problem.is_valid(), True).as_py()
                raise ClsightError(f"{self.path} cannot be read: row {n + row:,}: "
                                   f"{problem[row].as_py()}")
            yield pa.RecordBatch.from_arrays(values, names)
            n += len(rows)

    def rows(self) -> Iterator[Rows]:
        """The same, with the rows that cannot be read."""
        texts = [column for column in (self.text, self.text_pair) if column is not None]
        return self.source.rows(self.columns(), texts)

    def columns(self) -> list[str]:
        """The columns that are read: text, label, and what else is given; each once."""
        columns = (self.id, self.text, self.text_pair, self.label, self.group_by)
        return list(dict.fromkeys(column for column in columns if column is not None))

    @cached_property
    def schema(self) -> pa.Schema:
        """The dataset's own columns and types, as its first batch has them.

        Raises:
            UsageError: a column is missing or of a type that cannot serve.
            ClsightError: the dataset has no rows, or none that can be read.
        """
        names, schema = self._first.names, self._first.values.schema
        options = [("text", self.text), ("text-pair", self.text_pair), ("label", self.label),
                   ("id", self.id), ("group-by", self.group_by)]
        given = [(option, column) for option, column in options if column is not None]
        for option, column in given:
            if column not in names:
                there = listed([name if name.isprintable() else repr(name) for name in names], 20)
                raise UsageError(f"{self.path} has no column {column!r} (--{option}); "
                                 f"it has {there}")
        for option, column in given:
            kind = schema.field(column).type
            if option.startswith("text") and not is_text(_plain(kind)):
                raise UsageError(f"--{option} {column}: the column holds {kind}, not text")
            if pa.types.is_nested(_plain(kind)):
                raise UsageError(f"--{option} {column}: the column holds {kind}; single numbers or "
                                 "texts are needed")
        return schema

    @cached_property
    def label_type(self) -> pa.DataType:
        """Type of `label` in the run: int64 or string, by what most of the first rows hold."""
        field = self.schema.field(self.label)
        kind = _plain(field.type)
        if is_text(kind):
            untyped = not self._first.typed and mostly_numbers(self._of_first(self.label))
            return pa.int64() if untyped else pa.string()
        if is_number(kind):
            return pa.int64()
        raise UsageError(f"--label {self.label}: the column holds {field.type}; integers or "
                         "strings are needed")

    @cached_property
    def id_type(self) -> pa.DataType:
        """Type of `document_id` in the run: int64 (the row, where no id is given) or string."""
        if self.id is None:
            return pa.int64()
        kind = _plain(self.schema.field(self.id).type)
        if not is_number(kind) or pa.types.is_decimal(kind):
            return pa.string()
        # Hashes of 64 bits need all of them, which int64 has not.
        largest = pc.max(self._of_first(self.id)).as_py() if pa.types.is_uint64(kind) else None
        return pa.int64() if largest is None or largest < 2**63 else pa.string()

    def labels(self) -> list[int | str]:
        """The distinct labels of the first rows, sorted."""
        values, reasons = of_type(self._of_first(self.label), self.label_type, "label")
        return sorted(pc.unique(values.filter(pc.and_(values.is_valid(), reasons.is_null())))
                      .to_pylist())

    def sha256(self) -> str:
        """Fingerprint of all rows, which are read for it."""
        fingerprint = Fingerprint(self.columns())
        for rows in self.rows():
            fingerprint.add(rows)
        return fingerprint.sha256()

    @cached_property
    def _first(self) -> Rows:
        """The first rows of which some can be read; they decide types and spelling."""
        problem, n = None, 0
        for rows in self.rows():
            if rows.problem.null_count:
                return rows
            problem, n = problem or rows.problem[0].as_py(), n + len(rows)
        if problem is None:
            raise ClsightError(f"{self.path} has no rows")
        raise ClsightError(f"{self.path}: none of its {n:,} rows can be read; row 0: {problem}")

    def _of_first(self, column: str) -> pa.Array:
        return unpacked(self._first.values.column(column))


class Fingerprint:
    """SHA-256 of what rows say, however they are cut into batches and files."""

    def __init__(self, columns: list[str]) -> None:
        """Of no rows yet.

        Args:
            columns: those that count.
        """
        self._columns = columns
        self._digests = [hashlib.sha256() for _ in range(2 * len(columns) + 2)]

    def add(self, rows: Rows) -> None:
        """Count rows in: values as text, and why a row cannot be read."""
        there = rows.values.schema.names
        values = [unpacked(rows.values.column(name)) if name in there else pa.nulls(len(rows))
                  for name in self._columns]
        for i, column in enumerate([*values, rows.problem]):
            lengths, content = _spelled(column)
            self._digests[2 * i].update(lengths)
            self._digests[2 * i + 1].update(content)

    def sha256(self) -> str:
        """In hexadecimal."""
        return hashlib.sha256(b"".join(one.digest() for one in self._digests)).hexdigest()


def _spelled(column: pa.Array) -> tuple[memoryview, memoryview]:
    """Lengths of values as texts (int64; -1 where there is none), and the texts, end to end."""
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if not (is_text(column.type) or pa.types.is_fixed_size_binary(column.type)):
        column = column.cast(pa.large_string())
    texts = column.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(texts), -1).to_numpy()
    texts = texts.drop_null()
    if not len(texts):
        return memoryview(lengths), memoryview(b"")
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(lengths), memoryview(content or b"")[ends[0] : ends[-1]]


class Written(NamedTuple):
    """What `write_documents` has read."""

    n_rows: int
    sha256: str


def file_sha256(paths: list[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_documents(
    dataset: Dataset,
    labels: dict[str, list[int | str]],
    folder: Path,
    shard_size: int,
    progress: Callable[[int], None] = lambda _: None,
    only: Container[str] | None = None,
    expected: str | None = None,
) -> Written:
    """Write the document shards of a run; returns the number of rows, and their fingerprint.

    Until the dataset is read, and found to be the same still, they are under another name: what
    has its final name is final.

    Args:
        dataset: what to read.
        labels: model -> the labels it knows; a document with another label is unusable.
        folder: where the shards go; earlier ones are replaced.
        shard_size: documents a shard.
        progress: called with the number of documents of each shard written.
        only: names of the shards to write; by default all.
        expected: the fingerprint that the rows must have.

    Raises:
        ClsightError: the dataset cannot be read to its end, or has changed.
    """
    drafts, n_rows = folder / f"{shards.PARTIAL}documents", 0
    shards.remove([drafts])
    before, schema = dataset.source.version(), tables.documents(dataset.id_type, dataset.label_type)
    fingerprint = Fingerprint(dataset.columns())
    for shard, parts in itertools.groupby(_parts(dataset, shard_size, fingerprint),
                                          lambda part: part[0]):
        wanted, made = only is None or shards.name(shard) in only, []
        for _, first, rows in parts:
            n_rows = first + len(rows)
            if wanted:
                made.append(documents.table(rows, dataset, labels, first).cast(schema))
        if wanted:
            shards.write(pa.concat_tables(made), drafts / shards.name(shard))
            progress(sum(len(part) for part in made))
    sha256 = fingerprint.sha256()
    if dataset.source.version() != before or sha256 != (expected or sha256):
        since = "while it was read" if expected is None else "since the run began"
        raise ClsightError(f"{dataset.path} changed {since}; run again when it is at rest")
    if dataset.id is not None:
        documents.mark_repeated(drafts, folder)
    for path in sorted(drafts.glob("*.parquet")):
        with shards.replaced(folder / path.name) as draft:
            path.replace(draft)
    shards.remove([drafts])
    return Written(n_rows, sha256)


def _parts(
    dataset: Dataset, size: int, fingerprint: Fingerprint
) -> Iterator[tuple[int, int, Rows]]:
    """The rows cut where shards end: the shard, the first row, and the rows."""
    row = 0
    for rows in dataset.rows():
        fingerprint.add(rows)
        done = 0
        while done < len(rows):
            n = min(len(rows) - done, size - row % size)
            yield row // size, row, rows.slice(done, n)
            row, done = row + n, done + n


def bad_documents(folder: Path) -> pa.Table:
    """The documents that cannot be used: `row` and `reason`."""
    none = pa.schema({"row": pa.int64(), "reason": pa.string()}).empty_table()
    read = (shards.read(folder / name, none.column_names) for name in sorted(shards.done(folder)))
    return pa.concat_tables([none, *(part.filter(part["reason"].is_valid()) for part in read)])


def refuse_bad_documents(folder: Path) -> None:
    """Raise `ClsightError` that names the unusable documents of a run, if there are any."""
    bad = bad_documents(folder)
    if not bad.num_rows:
        return
    grouped = bad.group_by("reason", use_threads=False).aggregate([("row", "list")])
    reasons = [
        f"{group['reason']} in row{'s'[: len(group['row_list']) > 1]} {listed(group['row_list'])}"
        for group in grouped.slice(0, MOST_REASONS).to_pylist()
    ]
    if grouped.num_rows > MOST_REASONS:
        reasons.append(f"{grouped.num_rows - MOST_REASONS:,} more reasons")
    raise ClsightError(
        f"{bad.num_rows:,} of the documents cannot be used: {'; '.join(reasons)} "
        "(rows count from 0); pass --on-bad-row skip to leave them out"
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return unpacked(pa.array([], kind)).type
