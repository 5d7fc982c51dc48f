"""A dataset's rows in any format -> Arrow batches; a row that cannot be read says why.

Read in batches, never as a whole: memory does not grow with the dataset. A broken row counts as a
row, so that `row` stays the position in the dataset.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clsight import lines
from clsight.errors import ClsightError, UsageError, listed, said
from clsight.lines import Record

ROWS = 4096
"""Most rows of a batch."""
BYTES = 1 << 26
"""Size at which a batch ends before it has that many."""
UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeError, OverflowError)
"""What libraries raise on files that are damaged."""


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset that follow one another."""

    names: Collection[str]
    """All columns of the dataset; of JSON Lines, those that its first rows have."""
    values: pa.RecordBatch
    """The wanted columns that there are; texts are strings or binary, and may be invalid UTF-8."""
    problem: pa.Array
    """Why a row cannot be read; null where it can."""
    typed: bool = True
    """False where numbers are texts that spell them, as in CSV."""

    def __len__(self) -> int:
        """Number of rows, readable or not."""
        return len(self.problem)

    def slice(self, first: int, n: int) -> "Rows":
        """`n` of the rows, from the row `first` of these."""
        return Rows(self.names, self.values.slice(first, n), self.problem.slice(first, n),
                    self.typed)


def read(path: str, kind: str, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
    """The rows of a file.

    Args:
        path: where it is; gzip where the name ends with .gz.
        kind: one of `FORMATS`.
        wanted: columns to read, as far as they are there.
        texts: those of them that hold texts.
    """
    return _READERS[kind](path, wanted, texts)


def named(path: str, batches: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows in batches that are not too large; what libraries raise becomes one sentence.

    Raises:
        ClsightError: naming the last row that could be read.
    """
    n = 0
    try:
        for batch in batches:
            for rows in _cut(batch):
                yield rows
                n += len(rows)
    except UNREADABLE as error:
        behind = f" behind row {n - 1:,}" if n else ""
        raise ClsightError(f"{path} cannot be read{behind}: {said(error)}") from error


def _cut(rows: Rows) -> Iterator[Rows]:
    """The rows in halves of halves, where a format could not tell their size before."""
    if len(rows) == 1 or rows.values.nbytes <= 2 * BYTES:
        yield rows
        return
    half = len(rows) // 2
    yield from _cut(rows.slice(0, half))
    yield from _cut(rows.slice(half, len(rows) - half))


def hugging_face(data: Any, wanted: Sequence[str]) -> Iterator[Rows]:
    """The rows of a `datasets.Dataset`."""
    names = data.column_names
    for table in data.with_format("arrow").iter(ROWS):
        for batch in table.select(_there(names, wanted)).to_batches():
            yield Rows(names, batch, pa.nulls(len(batch), pa.string()))


def _parquet(path: str, wanted: Sequence[str], _: Collection[str]) -> Iterator[Rows]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        _refuse_doubles(path, names, wanted)
        there = _there(names, wanted)
        for batch in file.iter_batches(_at_once(file.metadata), columns=there):
            # A name that begins like that of a nested column would bring it along.
            yield Rows(names, batch.select(there), pa.nulls(len(batch), pa.string()))


def _at_once(metadata: pq.FileMetaData) -> int:
    """Rows of a batch that is about as large as may be, from the sizes that the file tells.

    Of whole row groups: to ask a damaged file for those of a column ends the process.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    most = min((BYTES * group.num_rows // max(group.total_byte_size, 1) for group in groups),
               default=ROWS)
    return max(1, min(ROWS, most))


def _delimited(delimiter: str) -> "_Reader":
    def read(path: str, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
        with lines.opened(path) as file:
            reader = lines.delimited(file, delimiter)
            names = lines.header(path, reader)
            _refuse_doubles(path, names, wanted)
            records = lines.fields(reader, names, wanted, texts)
            for batch in _batched(names, wanted, records, _encoded):
                yield dataclasses.replace(batch, typed=False)

    return read


def _json_lines(path: str, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
    names: dict[str, None] = {}
    with lines.opened(path) as file:
        yield from _batched(names, wanted, lines.objects(file, names, wanted, texts), _inferred)


def _batched(
    names: Collection[str], wanted: Sequence[str], records: Iterator[Record],
    column: Callable[[list[Any]], pa.Array],
) -> Iterator[Rows]:
    """Records in batches; what was read before an error comes before it."""
    held: list[Record] = []
    size = 0

    def rows() -> Rows:
        there = _there(names, wanted)
        values = [column([None if of is None else of[i] for of, _ in held])
                  for i, name in enumerate(wanted) if name in there]
        problem = pa.array([problem for _, problem in held], pa.string())
        return Rows(names, pa.RecordBatch.from_arrays(values, there), problem)

    try:
        for record in records:
            held.append(record)
            size += sum(len(value) for value in record[0] or () if isinstance(value, str))
            if len(held) == ROWS or size >= BYTES:
                yield rows()
                held, size = [], 0
    except UNREADABLE:
        if held:
            yield rows()
        raise
    if held:
        yield rows()


def _encoded(texts: list[str | None], errors: str = "surrogateescape") -> pa.Array:
    """Texts as strings; as the bytes that they were where those are not UTF-8."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        encoded = [None if text is None else text.encode("utf-8", errors) for text in texts]
        return pa.array(encoded, pa.binary())


def _inferred(values: list[Any]) -> pa.Array:
    """Values of JSON: numbers where all are, else the text that each is, or that spells it."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds and str not in kinds:
        with suppress(pa.ArrowException, OverflowError):  # no type holds them all
            return pa.array(values)
    return _encoded([value if value is None or isinstance(value, str) else json.dumps(value)
                     for value in values], "surrogatepass")


def _there(names: Collection[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if name in names]


def _refuse_doubles(path: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    if double := [repr(name) for name in wanted if names.count(name) > 1]:
        raise UsageError(f"{path} has the column {listed(double)} more than once; give each column "
                         "a name of its own")


_Reader = Callable[[str, Sequence[str], Collection[str]], Iterator[Rows]]
_READERS: dict[str, _Reader] = {
    ".parquet": _parquet,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
FORMATS = tuple(_READERS)
OBJECTS = (".jsonl", ".ndjson")
"""Those in which each row has names of its own."""
