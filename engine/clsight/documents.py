"""Rows of a dataset -> documents with their words, or with the reason why they cannot be used."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clsight import shards, store
from clsight.columns import Reasons, identifiers, of_type, shown, spelled, text, unpacked
from clsight.errors import ClsightError, listed, said
from clsight.readers import Rows

if TYPE_CHECKING:
    import duckdb

    from clsight.dataset import Dataset

MEMORY_LIMIT = "1GB"
"""What the search for repeated ids may take; the rest is spilled."""
_REPEATED = """
CREATE TABLE repeated AS
WITH usable AS (SELECT "row", document_id FROM read_parquet($files) WHERE reason IS NULL),
     firsts AS (SELECT document_id, min("row") AS first FROM usable GROUP BY document_id
                HAVING count(*) > 1)
SELECT "row", first FROM usable JOIN firsts USING (document_id) WHERE "row" > first"""


def table(
    rows: Rows, dataset: "Dataset", labels: dict[str, list[int | str]], first: int
) -> pa.Table:
    """Documents as in `tables.documents`; of the reasons, the first that is found counts.

    Args:
        rows: of the dataset.
        dataset: which columns are what.
        labels: model -> the labels it knows.
        first: `row` of the first of the rows.
    """
    # Imported here: extraction reads documents on machines without Polars.
    from clsight.words import segment

    none = pa.nulls(len(rows), pa.string())
    row = pa.array(range(first, first + len(rows)), pa.int64())
    body, reason = _text(rows, dataset.text, "text")
    segmented, pair, pair_reason = body, none, none
    if dataset.text_pair is not None:
        pair, pair_reason = _text(rows, dataset.text_pair, "second text")
        # White space parts words, so these are the words of both.
        segmented = pc.binary_join_element_wise(body, pair, "\n")
    label, label_reason = of_type(rows.values.column(dataset.label), dataset.label_type, "label")
    document_id, id_reason = (row, none) if dataset.id is None else _ids(rows, dataset)
    group = none if dataset.group_by is None else spelled(
        rows.values.column(dataset.group_by), "")[0]
    words = segment(segmented)
    return pa.table({
        "row": row, "document_id": document_id, "text": body, "text_pair": pair, "label": label,
        "slice": group,
        "reason": pc.coalesce(rows.problem, reason, pair_reason, label_reason,
                              _label_reasons(label, labels), id_reason),
        "form": words.form, "start": words.start, "end": words.end,
    })


def mark_repeated(drafts: Path, folder: Path) -> None:
    """Give later documents with the id of an earlier one that reason, in shards that are drafts.

    Args:
        drafts: folder of the document shards that may be rewritten.
        folder: of those that are final already.
    """
    import duckdb

    names = shards.done(drafts)
    files = [drafts / name for name in names]
    files += [store.fetched(folder / name) for name in shards.done(folder) - names]
    spilled = drafts / "spilled"
    try:
        with duckdb.connect(config={"memory_limit": MEMORY_LIMIT,
                                    "temp_directory": str(spilled)}) as connection:
            connection.execute(_REPEATED, {"files": [str(file) for file in files]})
            for name in sorted(names):
                _mark(drafts / name, connection)
    except duckdb.Error as error:
        raise ClsightError(f"{folder}: repeated ids cannot be looked for: {said(error)}") from error


def _mark(path: Path, connection: "duckdb.DuckDBPyConnection") -> None:
    """Rewrite a shard of documents if it holds ids that were there before."""
    bounds = pc.min_max(pq.read_table(path, columns=["row"])["row"]).as_py()
    first = dict(connection.execute(
        'SELECT "row", first FROM repeated WHERE "row" BETWEEN $min AND $max', bounds).fetchall())
    if not first:
        return
    shard = pq.read_table(path)
    reasons = [
        f"id {shown(name)} is that of row {first[row]:,} already" if row in first else reason
        for row, name, reason in zip(*(shard[column].to_pylist() for column in
                                       ("row", "document_id", "reason")), strict=True)
    ]
    place = shard.column_names.index("reason")
    shards.write(shard.set_column(place, "reason", pa.array(reasons, pa.string())), path)


def _text(rows: Rows, column: str, name: str) -> tuple[pa.Array, Reasons]:
    """A column of texts; one that is null or empty has a reason."""
    values, reason = text(unpacked(rows.values.column(column)), name)
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(values, ""))
    blank = pc.if_else(pc.equal(pc.binary_length(trimmed), 0), f"{name} is empty", None)
    return values, pc.coalesce(
        reason, pc.if_else(values.is_null(), f"{name} is null", blank))


def _ids(rows: Rows, dataset: "Dataset") -> tuple[pa.Array, Reasons]:
    column = rows.values.column(dataset.id)
    if pa.types.is_int64(dataset.id_type):
        ids, reason = of_type(column, dataset.id_type, "id")
    else:
        ids, reason = identifiers(column, "id")
    return ids, pc.coalesce(reason, pc.if_else(ids.is_null(), "id is missing", None))


def _label_reasons(label: pa.Array, labels: dict[str, list[int | str]]) -> Reasons:
    """Why a label cannot be used. Each distinct one is looked up once."""
    encoded = label.dictionary_encode()
    found = [_unknown(value, labels) for value in encoded.dictionary.to_pylist()]
    reasons = pa.array(found, pa.string()).take(encoded.indices)
    return pc.if_else(label.is_null(), "label is missing", reasons)


def _unknown(label: int | str, labels: dict[str, list[int | str]]) -> str | None:
    """Names the first model that lacks the label."""
    for model, known in labels.items():
        if label not in known:
            return (f"label {shown(label)} is not among {model}'s: "
                    f"{listed([shown(value) for value in known])}")
    return None
