"""Rows on their way into a target: in plain types, counted, and with the reason of a failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pyarrow as pa

from clsight.errors import ClsightError, UsageError, listed, said
from clsight.output import in_schema

RUN_ID = "run_id"
"""First column of tables that several runs share."""
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(),
          pa.uint64(): pa.decimal128(20), pa.null(): pa.string()}


class Rows:
    """The answer of a query, read once, batch by batch.

    Enums become text and unsigned integers the next larger signed ones, which every target has.
    With a run id, it is the first column, and what is more than a list of plain values is JSON.
    """

    def __init__(
        self, answer: pa.RecordBatchReader, comments: dict[str, str], run_id: str | None = None
    ) -> None:
        """Take an answer, what its columns hold, and the run's id for a shared table.

        Raises:
            UsageError: two columns have the same name.
        """
        self._answer, self.run_id = answer, run_id
        typed = plain if run_id is None else _cell
        self._own = pa.schema([_described(field.with_type(typed(field.type)), comments)
                               for field in answer.schema])
        shared = pa.field(RUN_ID, pa.string(), metadata={"comment": "the run that the row is of"})
        self.schema = pa.schema([*([shared] if run_id is not None else []), *self._own])
        self.n_rows = 0
        self.failure: BaseException | None = None
        names = self.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{listed(twice)}: columns of the same name; give each one of its own")

    def reader(self) -> pa.RecordBatchReader:
        """The rows, as anything that takes Arrow reads them."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._answer:
                columns = in_schema(batch, self._own).columns
                if self.run_id is not None:
                    columns = [pa.repeat(self.run_id, len(batch)), *columns]
                yield pa.record_batch(columns, self.schema)
                self.n_rows += len(batch)
        except BaseException as error:
            self.failure = error
            raise

    @contextmanager
    def failures_named(self, where: str, *kinds: type[Exception]) -> Iterator[None]:
        """Errors of a target's library are one sentence.

        Raises:
            ClsightError: `where`, and what the library says.
        """
        try:
            yield
        except Exception as error:
            # On its way through a library an error of ours becomes text, with a trace in it, and on
            # one core deltalake raises that as an Exception of no kind.
            if self.failure:
                raise self.failure from error
            if not isinstance(error, kinds):
                raise
            raise ClsightError(f"{where}: {said(error)}") from error


def plain(type_: pa.DataType) -> pa.DataType:
    """The type that a column has in every target."""
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if _is_list(type_):
        return pa.list_(plain(type_.value_type))
    return _WIDER.get(type_, type_)


def _cell(type_: pa.DataType) -> pa.DataType:
    nested = pa.types.is_nested(type_.value_type if _is_list(type_) else type_)
    return pa.string() if nested else plain(type_)


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_))


def _described(field: pa.Field, comments: dict[str, str]) -> pa.Field:
    what = comments.get(field.name)
    return field.with_metadata({"comment": what} if what else None)


def comments_on(table: str, schema: pa.Schema) -> Iterator[str]:
    """Statements that describe the columns of a table (its name quoted), as its schema does."""
    for field in schema:
        if field.metadata:
            what = field.metadata[b"comment"].decode().replace("'", "''")
            yield f"COMMENT ON COLUMN {table}.{quoted_name(field.name)} IS '{what}'"


def quoted_name(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def refuse_other_columns(where: str, there: list[str], ours: list[str]) -> None:
    """Raise where a shared table is there with other columns, each given as name and type.

    Raises:
        UsageError: with what only one of the two has.
    """
    if there == ours:
        return
    unlike = [[c for c in there if c not in ours], [c for c in ours if c not in there]]
    differ = "in another order" if unlike == [[], []] else (
        f"that differ: {listed(unlike[0])} there alone, {listed(unlike[1])} in this answer alone")
    raise UsageError(f"{where} is there, with columns {differ}; remove it or write to another")


def extra(module: str) -> Any:
    """A library of the extra [export].

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"this target needs {module.partition('.')[0]}: "
                         "pip install 'clsight[export]'") from error
