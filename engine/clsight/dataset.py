"""A labelled dataset (CSV, JSON Lines, Parquet, Hugging Face) -> documents and their words.

Read in batches, never as a whole: memory does not grow with the dataset.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from clsight import shards, tables
from clsight.errors import ClsightError, UsageError, listed

BATCH = 4096


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
        """The rows in dataset order, all columns, as Arrow batches of any size."""
        try:
            yield from self._reader(self.path)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ClsightError(f"{self.path} cannot be read: {error}") from error

    def columns(self) -> list[str]:
        """The columns that are read: text, label, and what else is given."""
        columns = (self.id, self.text, self.text_pair, self.label, self.group_by)
        return [column for column in columns if column is not None]

    @cached_property
    def schema(self) -> pa.Schema:
        """The dataset's own columns and types, as its first batch has them.

        Raises:
            UsageError: a column is missing or of a type that cannot serve.
            ClsightError: the dataset has no rows.
        """
        first = self._first
        names: list[str] = first.schema.names
        texts = [("text", self.text), ("text-pair", self.text_pair)]
        others = [("label", self.label), ("id", self.id), ("group-by", self.group_by)]
        for option, column in (*texts, *others):
            if column is not None and column not in names:
                raise UsageError(f"{self.path} has no column {column!r} (--{option}); "
                                 f"it has {', '.join(names)}")
        for option, column in texts:
            kind = first.schema.field(column).type if column is not None else pa.string()
            if not _is_string(kind):
                raise UsageError(f"--{option} {column}: the column holds {kind}, not text")
        return first.schema

    @cached_property
    def label_type(self) -> pa.DataType:
        """Type of `label` in the run: int64 or string."""
        return _plain_type(self.schema.field(self.label).type, f"--label {self.label}")

    @cached_property
    def id_type(self) -> pa.DataType:
        """Type of `document_id` in the run: int64 (the row, where no id is given) or string."""
        if self.id is None:
            return pa.int64()
        return _plain_type(self.schema.field(self.id).type, f"--id {self.id}")

    def labels(self) -> list[int | str]:
        """The distinct labels of the first rows, sorted."""
        values = pc.unique(_plain(self._first.column(self.label), self.label_type, self.label))
        return sorted(value for value in values.to_pylist() if value is not None)

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the content: of the file's bytes, or as `datasets` computes it."""
        if Path(self.path).is_file():
            return file_sha256([Path(self.path)])
        fingerprint: str = self._hugging_face()._fingerprint
        return hashlib.sha256(fingerprint.encode()).hexdigest()

    @cached_property
    def _first(self) -> pa.RecordBatch:
        """The first rows, which decide types and spelling."""
        first = next((batch for batch in self.batches() if batch.num_rows), None)
        if first is None:
            raise ClsightError(f"{self.path} has no rows")
        return first

    def _reader(self, path: str) -> Iterator[pa.RecordBatch]:
        kind = Path(path.removesuffix(".gz")).suffix
        if Path(path).is_dir() or (not Path(path).exists() and not kind):
            data = self._hugging_face().with_format("arrow")
            return (table.to_batches()[0] for table in data.iter(batch_size=BATCH))
        if not Path(path).is_file():
            raise UsageError(f"there is no dataset at {path}")
        if kind not in _READERS:
            raise UsageError(f"{path}: {kind or 'a file without suffix'} is not a known format; "
                             f"clsight reads {', '.join(_READERS)}")
        return _READERS[kind](path, self)

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


def _parquet(path: str, dataset: Dataset) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    wanted = [column for column in dataset.columns() if column in file.schema_arrow.names]
    # Where a column is missing, all are read once, to be named in the error.
    columns = wanted if len(wanted) == len(dataset.columns()) else None
    yield from file.iter_batches(BATCH, columns=columns)


def _csv(path: str, dataset: Dataset) -> Iterator[pa.RecordBatch]:
    # An id is text and a text is text, whatever the first rows look like.
    texts = (dataset.text, dataset.text_pair, dataset.id)
    strings = {column: pa.string() for column in texts if column}
    yield from pyarrow.csv.open_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if ".tsv" in Path(path).suffixes else ",", newlines_in_values=True
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=strings, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _json_lines(path: str, _: Dataset) -> Iterator[pa.RecordBatch]:
    yield from pyarrow.json.open_json(path)


_READERS: dict[str, Callable[[str, Dataset], Iterator[pa.RecordBatch]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}


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
) -> int:
    """Write the document shards of a run; returns the number of rows.

    Args:
        dataset: what to read.
        labels: model -> the labels it knows; a document with another label is unusable.
        folder: where the shards go; earlier ones are replaced.
        shard_size: documents a shard.
        progress: called with the number of documents of each shard written.
    """
    schema = tables.documents(dataset.id_type, dataset.label_type)
    row = 0
    for shard, rows in enumerate(_chunked(dataset, shard_size)):
        table = _documents(rows, dataset, labels, row).cast(schema)
        shards.write(table, folder / shards.name(shard))
        row += rows.num_rows
        progress(rows.num_rows)
    return row


def bad_documents(folder: Path) -> pa.Table:
    """The documents that cannot be used: `row` and `reason`."""
    return pq.read_table(folder, columns=["row", "reason"], filters=pc.field("reason").is_valid())


def refuse_bad_documents(folder: Path) -> None:
    """Raise `ClsightError` that names the unusable documents of a run, if there are any."""
    bad = bad_documents(folder)
    if not bad.num_rows:
        return
    grouped = bad.group_by("reason", use_threads=False).aggregate([("row", "list")])
    reasons = [
        f"{group['reason']} in row{'s'[: len(group['row_list']) > 1]} {listed(group['row_list'])}"
        for group in grouped.to_pylist()
    ]
    raise ClsightError(
        f"{bad.num_rows:,} of the documents cannot be used: {'; '.join(reasons)} "
        "(rows count from 0); pass --on-bad-row skip to leave them out"
    )


def _chunked(dataset: Dataset, size: int) -> Iterator[pa.Table]:
    """The dataset's columns in tables of exactly `size` rows, the last one shorter."""
    held: list[pa.RecordBatch] = []
    n_held = 0
    for batch in dataset.batches():
        held.append(batch.select(dataset.columns()))
        n_held += batch.num_rows
        while n_held >= size:
            table = pa.Table.from_batches(held)
            yield table.slice(0, size)
            rest = table.slice(size)
            held, n_held = rest.to_batches(), rest.num_rows
    if n_held:
        yield pa.Table.from_batches(held)


def _documents(
    rows: pa.Table, dataset: Dataset, labels: dict[str, list[int | str]], first: int
) -> pa.Table:
    # Imported here: extraction reads documents on machines without Polars.
    from clsight.words import segment

    row = pa.array(range(first, first + rows.num_rows), pa.int64())
    text = rows[dataset.text].cast(pa.string()).combine_chunks()
    label = _plain(rows[dataset.label], dataset.label_type, f"--label {dataset.label}")
    pair = reason = pa.nulls(len(text), pa.string())
    segmented = text
    if dataset.text_pair is not None:
        pair = rows[dataset.text_pair].cast(pa.string()).combine_chunks()
        # White space parts words, so these are the words of both.
        segmented = pc.binary_join_element_wise(text, pair, "\n")
        reason = _blank(pair, "second text")
    words = segment(segmented)
    return pa.table(
        {
            "row": row,
            "document_id": row if dataset.id is None
            else _plain(rows[dataset.id], dataset.id_type, f"--id {dataset.id}"),
            "text": text,
            "text_pair": pair,
            "label": label,
            "slice": pa.nulls(rows.num_rows, pa.string()) if dataset.group_by is None
            else rows[dataset.group_by].cast(pa.string()),
            "reason": pc.coalesce(_blank(text, "text"), reason, _label_reasons(label, labels)),
            "form": words.form,
            "start": words.start,
            "end": words.end,
        }
    )


def _blank(text: pa.Array, name: str) -> pa.Array:
    """Why a text cannot be used; null where it can."""
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(text, ""))
    reason = pc.if_else(pc.equal(pc.utf8_length(trimmed), 0), f"{name} is empty", None)
    return pc.if_else(pc.is_null(text), f"{name} is null", reason)


def _label_reasons(label: pa.Array, labels: dict[str, list[int | str]]) -> pa.Array:
    """Why a label cannot be used; null where it can. The first model that lacks it counts."""
    reason = pa.nulls(len(label), pa.string())
    for model, known in reversed(labels.items()):
        unknown = pc.invert(pc.is_in(label, pa.array(known, label.type)))
        spelled = pc.binary_join_element_wise(
            "label", label.cast(pa.string()), f"is not among {model}'s", " ",
            null_handling="replace", null_replacement="",
        )
        known_text = f": {listed(list(known))}"
        message = pc.binary_join_element_wise(spelled, known_text, "")
        reason = pc.if_else(unknown, message, reason)
    return pc.if_else(pc.is_null(label), "label is missing", reason)


def _plain_type(kind: pa.DataType, option: str) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_string(kind):
        return pa.string()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return pa.int64()
    raise UsageError(f"{option}: the column holds {kind}; integers or strings are needed")


def _plain(column: pa.ChunkedArray | pa.Array, kind: pa.DataType, option: str) -> pa.Array:
    """The column as int64 or string; 1.0 and true count as 1, NaN as missing."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        column = column.cast(kind)
    except pa.ArrowInvalid as error:
        raise ClsightError(f"{option}: {error}; whole numbers or strings are needed") from error
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_string(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
