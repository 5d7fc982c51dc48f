"""A labelled dataset (CSV, JSON Lines, Parquet, Hugging Face) -> documents and their words.

Read in batches, never as a whole: memory does not grow with the dataset.
"""

import hashlib
import itertools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clsight import documents, readers, shards, tables
from clsight.columns import is_number, is_text, mostly_numbers, of_type, text, unpacked
from clsight.errors import ClsightError, UsageError, listed
from clsight.readers import Rows

MOST_REASONS = 10
"""As many reasons does a message name."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk and the columns that matter.

    `path` is a .parquet, .csv, .tsv, .jsonl or .ndjson file, a folder written by
    `datasets.save_to_disk`, or the name of a dataset on the Hugging Face Hub.
    """

    path: str
    text: str
    label: str
    id: str | None = None
    split: str | None = None
    text_pair: str | None = None
    """Column of the second text, for classifiers of pairs."""
    group_by: str | None = None
    """Column within whose values words are tested as well."""

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
        return readers.named(self.path, self._rows())

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

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the content: of the file's bytes, or as `datasets` computes it."""
        if Path(self.path).is_file():
            return file_sha256([Path(self.path)])
        fingerprint: str = self._hugging_face()._fingerprint
        return hashlib.sha256(fingerprint.encode()).hexdigest()

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

    def _rows(self) -> Iterator[Rows]:
        path = self.path
        kind = Path(path.removesuffix(".gz")).suffix
        if Path(path).is_dir() or (not Path(path).exists() and not kind):
            return readers.hugging_face(self._hugging_face(), self.columns())
        if not Path(path).is_file():
            raise UsageError(f"there is no dataset at {path}")
        if kind not in readers.FORMATS:
            raise UsageError(f"{path}: {kind or 'a file without suffix'} is not a known format; "
                             f"clsight reads {', '.join(readers.FORMATS)}")
        texts = [column for column in (self.text, self.text_pair) if column is not None]
        return readers.read(path, kind, self.columns(), texts)

    def _hugging_face(self) -> Any:
        import datasets

        try:
            if Path(self.path).is_dir():
                data = datasets.load_from_disk(self.path)
            else:
                data = datasets.load_dataset(self.path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} is neither a file, nor a saved Hugging Face dataset, "
                             f"nor one on the Hub: {error}") from error
        if isinstance(data, datasets.DatasetDict):
            if self.split not in data:
                raise UsageError(f"{self.path} has the splits {', '.join(data)}: pass --split")
            data = data[self.split]
        return data


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
) -> int:
    """Write the document shards of a run; returns the number of rows.

    Until the dataset is read, and found to be the same still, they are under another name: what
    has its final name is final.

    Args:
        dataset: what to read.
        labels: model -> the labels it knows; a document with another label is unusable.
        folder: where the shards go; earlier ones are replaced.
        shard_size: documents a shard.
        progress: called with the number of documents of each shard written.
        only: names of the shards to write; by default all.

    Raises:
        ClsightError: the dataset cannot be read to its end, or has changed.
    """
    drafts, n_rows = folder / f"{shards.PARTIAL}documents", 0
    shards.remove([drafts])
    before, schema = dataset.sha256, tables.documents(dataset.id_type, dataset.label_type)
    for shard, parts in itertools.groupby(_parts(dataset, shard_size), lambda part: part[0]):
        wanted, made = only is None or shards.name(shard) in only, []
        for _, first, rows in parts:
            n_rows = first + len(rows)
            if wanted:
                made.append(documents.table(rows, dataset, labels, first).cast(schema))
        if wanted:
            shards.write(pa.concat_tables(made), drafts / shards.name(shard))
            progress(sum(len(part) for part in made))
    _refuse_changed(dataset, before)
    if dataset.id is not None:
        documents.mark_repeated(drafts, folder)
    for path in sorted(drafts.glob("*.parquet")):
        with shards.replaced(folder / path.name) as draft:
            path.replace(draft)
    shards.remove([drafts])
    return n_rows


def _parts(dataset: Dataset, size: int) -> Iterator[tuple[int, int, Rows]]:
    """The rows cut where shards end: the shard, the first row, and the rows."""
    row = 0
    for rows in dataset.rows():
        done = 0
        while done < len(rows):
            n = min(len(rows) - done, size - row % size)
            yield row // size, row, rows.slice(done, n)
            row, done = row + n, done + n


def _refuse_changed(dataset: Dataset, before: str) -> None:
    if Path(dataset.path).is_file() and (now := file_sha256([Path(dataset.path)])) != before:
        raise ClsightError(f"{dataset.path} changed while it was read: its SHA-256 was "
                           f"{before[:12]}… and is now {now[:12]}…; run again when it is at rest")


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
