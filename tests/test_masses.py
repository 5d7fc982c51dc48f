"""Units, their masses and sums: against plain Python over documents, and for any sharding."""

from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsight import masses, shards, tables, units
from clsight.database import at, sql_files
from clsight.errors import UsageError
from clsight.units import Groups, Units

DOCUMENTS = [
    # text, second text (no neighbour of the first)
    ("very very very good film", None),
    ("not good , not bad", None),
    ("good not", None),
    ("very good", "film not"),
    ("bad film", "very good"),
    ("film", None),
]
GROUPS = Groups(pa.array(["good", "bad", "good", "rare"]),
                pa.array(["praise", "blame", "mood", "x"]))


@pytest.fixture
def folder(tmp_path):
    """A run folder's documents in two shards, one of them unusable."""
    rows = []
    for text, pair in DOCUMENTS:
        whole = text if pair is None else f"{text}\n{pair}"
        words = whole.replace("\n", " ").split(" ")
        start, at_ = [], 0
        for word in words:
            start.append(at_)
            at_ += len(word) + 1
        rows.append({"text": text, "text_pair": pair, "form": words, "start": start,
                     "reason": None, "row": len(rows), "label": 0})
    rows.insert(3, {"text": "good good", "text_pair": None, "form": ["good", "good"],
                    "start": [0, 5], "reason": "label is missing", "row": 99, "label": 0})
    schema = pa.schema({"row": pa.int64(), "label": pa.int64(), "text": pa.string(),
                        "text_pair": pa.string(), "reason": pa.string(),
                        "form": pa.list_(pa.string()), "start": pa.list_(pa.int32())})
    for i, part in enumerate((rows[:4], rows[4:])):
        shards.write(pa.Table.from_pylist(part, schema=schema),
                     tmp_path / "documents" / shards.name(i))
    return tmp_path


def covered(kind, form, words, n_first):
    """Places of a document that a unit covers."""
    if kind == "bigram":
        found = set()
        for i, pair in enumerate(pairwise(words)):
            if " ".join(pair) == form and (i + 1 < n_first or i >= n_first):
                found |= {i, i + 1}
        return found
    names = zip(GROUPS.members.to_pylist(), GROUPS.names.to_pylist(), strict=True)
    members = {form} if kind == "word" else {word for word, group in names if group == form}
    return {i for i, word in enumerate(words) if word in members}


def opened(folder):
    connection = at(duckdb.connect(), folder)
    connection.execute('CREATE TABLE bad_documents AS SELECT 99 AS "row"')
    connection.execute(sql_files("views")["tested_documents"])
    return connection


def documents():
    """(words, words of the first text) of the usable documents."""
    for text, pair in DOCUMENTS:
        yield text.split(" ") + (pair.split(" ") if pair else []), len(text.split(" "))


def expected_units(least):
    forms = {("word", word) for words, _ in documents() for word in words}
    forms |= {("bigram", " ".join(pair)) for words, _ in documents() for pair in pairwise(words)}
    forms |= {("group", name) for name in GROUPS.names.to_pylist()}
    found = {}
    for kind, form in forms:
        n = sum(bool(covered(kind, form, words, first)) for words, first in documents())
        if n >= least:
            found[kind, form] = n
    return found


@pytest.mark.parametrize("least", [1, 2, 3])
def test_units_are_those_in_enough_documents(folder, least):
    got = units.tested(opened(folder), least, True, GROUPS)
    rows = got.table.to_pylist()
    assert {(row["kind"], row["form"]): row["n_documents"] for row in rows} == expected_units(least)
    assert [row["kind"] for row in rows] == sorted((row["kind"] for row in rows),
                                                   key=units.KINDS.index)
    alone = units.tested(opened(folder), least, False, Groups())
    assert {row["kind"] for row in alone.table.to_pylist()} == {"word"}


@pytest.mark.parametrize("least", [1, 2])
def test_masses_are_summed_shares_of_the_places_covered(folder, least):
    tested = units.tested(opened(folder), least, True, GROUPS)
    rng, usable = np.random.default_rng(0), list(documents())
    scores = [rng.normal(size=(2, len(words))).astype(np.float32) for words, _ in usable]
    scores[5][:] = -1  # no share where nothing is positive
    got = {}
    first = 0
    for name in sorted(shards.done(folder / "documents")):
        row, offsets, places = units.places(folder / "documents" / name, tested)
        assert len(row) == len(offsets) - 1
        own = np.concatenate(scores[first : first + len(offsets) - 1], axis=1)
        pairs = masses.pairs(offsets, places, own, len(tested))
        assert (np.diff(pairs.unit) >= 0).all()
        for i, unit in enumerate(pairs.unit):
            got[int(unit), first + int(pairs.document[i])] = pairs.covered[i], *pairs.x[:, i]
        first += len(offsets) - 1
    assert first == len(usable)
    expected = {}
    for unit, row in enumerate(tested.table.to_pylist()):
        for i, (words, n_first) in enumerate(usable):
            places = sorted(covered(row["kind"], row["form"], words, n_first))
            if places:
                positive = np.maximum(scores[i].astype(float), 0)
                share = positive[:, places].sum(1) / np.maximum(positive.sum(1), 1e-300)
                expected[unit, i] = len(places), *share
    assert got.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-12, atol=1e-300, err_msg=str(key))


def random_pairs(n=50, n_units=9, seed=0):
    rng = np.random.default_rng(seed)
    unit, document = np.nonzero(rng.random((n_units, n)) < 0.4)
    return masses.Pairs(unit, document, rng.integers(1, 4, len(unit)), rng.random((2, len(unit))))


def test_sums_are_those_of_each_unit_and_pair_of_strata(tmp_path):
    rng, given, names = np.random.default_rng(1), random_pairs(), ("uniform", "contribution_3")
    error = rng.random(50) < 0.4
    strata = np.stack([rng.integers(0, 3, 50), 2 * rng.integers(0, 3, 50) + error])
    n_words = rng.integers(5, 30, 50)
    table = pa.table({"kind": ["word"] * 9, "form": list("abcdefghi"), "n_documents": [50] * 9})
    tested = Units(table, table["form"].combine_chunks(), np.empty(0, np.int64), None, None)
    masses.write_sums(tmp_path / "sums.parquet", "m", tested, names, given,
                      strata.astype(np.int32), error, n_words[given.document])
    stored = pq.read_table(tmp_path / "sums.parquet")
    assert stored.schema.equals(tables.sums(names))
    rows = stored.to_pylist()
    assert sum(row["n_documents"] for row in rows) == len(given.unit)
    for row in rows:
        inside = ((given.unit == "abcdefghi".index(row["form"]))
                  & (strata[0, given.document] == row["predicted_stratum"])
                  & (strata[1, given.document] == row["label_stratum"]))
        own = given.document[inside]
        assert row["n_documents"] == inside.sum()
        assert (error[own] == row["error"]).all()
        for i, name in enumerate(names):
            x = given.x[i, inside]
            lift = (x * n_words[own] / given.covered[inside]).sum()
            got = [row[f"{name}_{moment}"] for moment in masses.MOMENTS]
            np.testing.assert_allclose(got, [x.sum(), (x**2).sum(), (x**3).sum(), lift], rtol=1e-12)


def test_pairs_are_those_of_the_documents_that_are_chosen():
    given, place = random_pairs(), np.full(50, -1)
    place[10:30] = np.arange(20)
    got = masses.among(given, place)
    kept = (given.document >= 10) & (given.document < 30)
    np.testing.assert_array_equal(got.document, given.document[kept] - 10)
    np.testing.assert_array_equal(got.unit, given.unit[kept])
    np.testing.assert_array_equal(got.x, given.x[:, kept])


def test_groups_are_read_from_a_table(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("form,group\nNot,negations\nnever,negations\n.,punctuation\n")
    groups = units.read_groups(str(path))
    assert groups.members.to_pylist() == ["not", "never", "."]
    assert groups.names.to_pylist() == ["negations", "negations", "punctuation"]
    path.write_text("form,group\nnot good,negations\n")
    with pytest.raises(UsageError, match="not good: each form must be one word"):
        units.read_groups(str(path))
    path.write_text("word,group\nnot,negations\n")
    with pytest.raises(UsageError, match="no column form"):
        units.read_groups(str(path))
    with pytest.raises(UsageError, match="no dataset at"):
        units.read_groups(str(tmp_path / "none.csv"))
