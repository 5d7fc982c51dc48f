"""What is tested: words, pairs of neighbouring words, groups of words; and where they stand.

A unit covers places of a document: a word's are those of its form, a bigram's those of both words,
a group's those of all its forms. Units are chosen by the number of documents that hold them, never
by errors. Nothing here depends on a model.
"""

from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsight import dataset, shards
from clsight.errors import UsageError, listed

Integers = npt.NDArray[np.int64]

KINDS = ("word", "bigram", "group")


@dataclass(frozen=True)
class Groups:
    """Words that a user wants tested together: members[i] belongs to group names[i]."""

    members: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    names: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))


@dataclass(frozen=True)
class Units:
    """The U units that are tested: words first, then bigrams, then groups."""

    table: pa.Table
    """[U] kind, form, n_documents"""
    words: pa.Array
    """[V] forms of the tested words; unit u < V is words[u]."""
    bigrams: Integers
    """[B] first word * V + second word, ascending; the units from V on."""
    members: pa.Array
    """Forms that belong to groups, distinct."""
    groups: tuple[Integers, Integers]
    """offsets [members + 1] and the units that each member belongs to."""

    def __len__(self) -> int:
        """U"""
        return int(self.table.num_rows)


@dataclass(frozen=True)
class Places:
    """Where units stand in the n documents of a shard, in the order of documents and places."""

    offsets: Integers
    """[n + 1] into the others."""
    unit: Integers
    first: Integers
    """First place that is covered, among all words of the shard."""
    width: int
    """Places covered."""


def read_groups(path: str) -> Groups:
    """Read a table of groups: a CSV, JSON Lines or Parquet file with the columns form and group.

    Raises:
        UsageError: there is no such file, or it lacks a column.
    """
    table = pa.Table.from_batches(dataset.Dataset(path, "form", "group").batches())
    if missing := {"form", "group"} - {*table.column_names}:
        raise UsageError(f"--groups {path} has no column {' or '.join(sorted(missing))}; it needs "
                         "form and group")
    from clsight.words import segment

    words = segment(table["form"].cast(pa.string()).combine_chunks())
    many = [form for form, own in zip(table["form"].to_pylist(), words.form.to_pylist(),
                                      strict=True) if not own or len(own) != 1]
    if many:
        raise UsageError(f"--groups {path}: {listed(many)}: each form must be one word")
    return Groups(pc.list_flatten(words.form), table["group"].cast(pa.string()).combine_chunks())


def tested(
    connection: duckdb.DuckDBPyConnection, min_documents: int, bigrams: bool, groups: Groups
) -> Units:
    """The units that at least `min_documents` documents of a run hold.

    Args:
        connection: to the run's database, which has `tested_documents`.
        min_documents: least support.
        bigrams: whether pairs of neighbouring words are tested.
        groups: of words.
    """
    least = {"least": min_documents}
    words = connection.sql(_WORDS, params=least).to_arrow_table()
    kinds = [("word", words)]
    keys = np.empty(0, dtype=np.int64)
    if bigrams:
        connection.register("tested_form", words)
        pairs = connection.sql(_BIGRAMS, params=least).to_arrow_table()
        connection.unregister("tested_form")
        code = [pc.index_in(pairs[name], words["form"].combine_chunks()).to_numpy()
                for name in ("one", "other")]
        keys = code[0].astype(np.int64) * len(words) + code[1]
        order = np.argsort(keys)
        keys, pairs = keys[order], pairs.take(order)
        kinds.append(("bigram", pairs.select(["form", "n_documents"])))
    before = len(words) + len(keys)
    found = _held_groups(connection, least, groups)
    kinds.append(("group", found))
    return Units(
        pa.concat_tables([table.add_column(0, "kind", pa.repeat(kind, len(table)))
                          for kind, table in kinds]),
        words["form"].combine_chunks(), keys, *_memberships(groups, found["form"], before),
    )


def _held_groups(
    connection: duckdb.DuckDBPyConnection, least: dict[str, int], groups: Groups
) -> pa.Table:
    connection.register("member", pa.table({"form": groups.members, "name": groups.names}))
    found = connection.sql(_GROUPS, params=least).to_arrow_table()
    connection.unregister("member")
    return found


def _memberships(
    groups: Groups, names: pa.ChunkedArray, before: int
) -> tuple[pa.Array, tuple[Integers, Integers]]:
    """Distinct members, and for each the units of its groups; untested groups are left out."""
    members = pc.unique(groups.members)
    member = pc.index_in(groups.members, members).to_numpy(False).astype(np.int64)
    group = pc.index_in(groups.names, names.combine_chunks()).to_numpy(False).astype(float)
    known = ~np.isnan(group)
    pairs = np.unique(np.stack([member[known], group[known].astype(np.int64) + before]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(members))
    return members, (np.concatenate([[0], np.cumsum(counts)]), pairs[1])


def places(shard: Path, units: Units) -> tuple[Integers, Integers, list[Places]]:
    """Where the units stand in a shard's n usable documents.

    Returns:
        rows [n] of the documents, offsets [n + 1] of their words, and the places.
    """
    table = shards.read(shard, ["row", "text", "form", "start", "reason"])
    table = table.filter(table["reason"].is_null()).combine_chunks()
    row = table["row"].to_numpy()
    n_words = pc.list_value_length(table["form"]).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(n_words)])
    forms = pc.list_flatten(table["form"])
    code = pc.fill_null(pc.index_in(forms, units.words), -1).to_numpy().astype(np.int64)
    at = np.flatnonzero(code >= 0)
    found = [_placed(offsets, code[at], at, 1)]
    if len(units.bigrams):
        found.append(_bigram_places(table, offsets, code, units))
    if len(units.groups[1]):
        found.append(_group_places(forms, offsets, units))
    return row, offsets, found


def _bigram_places(table: pa.Table, offsets: Integers, code: Integers, units: Units) -> Places:
    """Neighbours within one text: those of a pair of texts do not touch."""
    second = pc.utf8_length(table["text"]).to_numpy() + 1
    document = np.repeat(np.arange(len(second)), np.diff(offsets))
    start = pc.list_flatten(table["start"]).to_numpy()
    text = 2 * document + (start >= second[document])
    known = (code[:-1] >= 0) & (code[1:] >= 0) & (text[:-1] == text[1:])
    at = np.flatnonzero(known)
    key = code[at] * len(units.words) + code[at + 1]
    unit = np.minimum(np.searchsorted(units.bigrams, key), len(units.bigrams) - 1)
    is_tested = units.bigrams[unit] == key
    return _placed(offsets, unit[is_tested] + len(units.words), at[is_tested], 2)


def _group_places(forms: pa.Array, offsets: Integers, units: Units) -> Places:
    member = pc.fill_null(pc.index_in(forms, units.members), -1).to_numpy().astype(np.int64)
    at = np.flatnonzero(member >= 0)
    first, last = units.groups[0][member[at]], units.groups[0][member[at] + 1]
    each = last - first
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    return _placed(offsets, units.groups[1][np.repeat(first, each) + within], np.repeat(at, each),
                   1)


def _placed(offsets: Integers, unit: Integers, at: Integers, width: int) -> Places:
    return Places(np.searchsorted(at, offsets), unit, at, width)


_WORDS = """
SELECT form, count(*) AS n_documents
FROM (
    SELECT unnest(list_distinct(form)) AS form
    FROM read_parquet('documents/*.parquet') SEMI JOIN tested_documents USING ("row")
)
GROUP BY form HAVING count(*) >= $least ORDER BY form"""

# A pair that is in enough documents consists of words that are.
_BIGRAMS = """
WITH neighbours AS (
    SELECT unnest(list_distinct(list_transform(
        list_filter(
            list_zip(form[:-2], form[2:], "start"[:-2], "start"[2:]),
            lambda w: (w[3] > length(text)) = (w[4] > length(text))
        ),
        lambda w: {one: w[1], other: w[2]}
    )), recursive := true)
    FROM read_parquet('documents/*.parquet') SEMI JOIN tested_documents USING ("row")
)
SELECT one || ' ' || other AS form, count(*) AS n_documents, one, other
FROM neighbours
SEMI JOIN tested_form AS a ON a.form = one
SEMI JOIN tested_form AS b ON b.form = other
GROUP BY one, other HAVING count(*) >= $least"""

_GROUPS = """
SELECT name AS form, count(DISTINCT "row") AS n_documents
FROM (
    SELECT "row", unnest(list_distinct(form)) AS form
    FROM read_parquet('documents/*.parquet') SEMI JOIN tested_documents USING ("row")
) JOIN member USING (form)
GROUP BY name HAVING count(DISTINCT "row") >= $least ORDER BY name"""
