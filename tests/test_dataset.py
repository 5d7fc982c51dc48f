"""Every format gives the same documents; what cannot be used is named with its rows."""

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from clsight.dataset import (
    Dataset,
    Fingerprint,
    bad_documents,
    refuse_bad_documents,
    write_documents,
)
from clsight.errors import ClsightError, UsageError
from clsight.readers import Rows

ROWS = [
    {"key": "a1", "text": "good, \"really\" good", "label": 1},
    {"key": "b2", "text": "two\nlines", "label": 0},
    {"key": "c3", "text": "naïve 😀", "label": 1},
]


def save(rows, path):
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix in (".csv", ".tsv"):
        options = pyarrow.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(table, path, options)
    elif path.suffix in (".jsonl", ".ndjson"):
        datasets.Dataset(table).to_json(path)
    else:
        datasets.Dataset(table).save_to_disk(path)
    return str(path)


def documents(dataset, tmp_path, labels=(0, 1), shard_size=2):
    n, _ = write_documents(dataset, {"m": list(labels)}, tmp_path / "documents", shard_size)
    table = pq.read_table(tmp_path / "documents")
    assert table.num_rows == n
    return table.to_pylist()


@pytest.mark.parametrize("name", ["d.parquet", "d.csv", "d.tsv", "d.jsonl", "d.ndjson", "folder"])
def test_all_formats_give_the_same_documents(name, tmp_path):
    path = save(ROWS, tmp_path / name)
    got = documents(Dataset(path, "text", "label", "key"), tmp_path)
    assert [(d["row"], d["document_id"], d["text"], d["label"]) for d in got] == [
        (i, row["key"], row["text"], row["label"]) for i, row in enumerate(ROWS)
    ]
    assert all(d["reason"] is None for d in got)


@pytest.mark.parametrize("shard_size", [1, 2, 3, 100])
def test_shards_hold_the_rows_in_order(shard_size, tmp_path):
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(7)]
    dataset = Dataset(save(rows, tmp_path / "d.parquet"), "text", "label")
    documents(dataset, tmp_path, shard_size=shard_size)
    tables = [pq.read_table(p) for p in sorted((tmp_path / "documents").iterdir())]
    assert [t.num_rows for t in tables[:-1]] == [shard_size] * (len(tables) - 1)
    assert pa.concat_tables(tables)["document_id"].to_pylist() == list(range(7))


def test_bad_rows_are_named_with_their_reasons(tmp_path):
    rows = [
        {"text": "fine", "label": 0}, {"text": None, "label": 0}, {"text": " \t", "label": 1},
        {"text": "x", "label": None}, {"text": "y", "label": 2}, {"text": "", "label": 1},
    ]
    dataset = Dataset(save(rows, tmp_path / "d.parquet"), "text", "label")
    documents(dataset, tmp_path)
    bad = bad_documents(tmp_path / "documents").to_pylist()
    assert {b["row"]: b["reason"] for b in bad} == {
        1: "text is null", 2: "text is empty", 3: "label is missing",
        4: "label 2 is not among m's: 0 and 1", 5: "text is empty",
    }
    with pytest.raises(ClsightError, match=r"text is empty in rows 2 and 5.*--on-bad-row skip"):
        refuse_bad_documents(tmp_path / "documents")


@pytest.mark.parametrize("labels", [[0.0, 1.0], [False, True]])
def test_whole_numbers_of_any_type_are_classes(labels, tmp_path):
    rows = [{"text": "a", "label": label} for label in labels]
    dataset = Dataset(save(rows, tmp_path / "d.parquet"), "text", "label")
    assert [d["label"] for d in documents(dataset, tmp_path)] == [0, 1]


def test_an_unknown_column_names_those_there_are(tmp_path):
    dataset = Dataset(save(ROWS, tmp_path / "d.parquet"), "body", "label")
    with pytest.raises(UsageError, match=r"no column 'body'.*key, text and label"):
        _ = dataset.schema


def test_texts_must_be_text(tmp_path):
    dataset = Dataset(save(ROWS, tmp_path / "d.parquet"), "label", "label")
    with pytest.raises(UsageError, match="not text"):
        _ = dataset.schema


def test_an_empty_dataset_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "d.parquet")
    with pytest.raises(ClsightError, match="has no rows"):
        _ = Dataset(str(tmp_path / "d.parquet"), "text", "label").schema


@pytest.mark.parametrize(("name", "content", "message"), [
    ("d.parquet", b"not parquet at all", "cannot be read"),
    ("d.jsonl", b'{"text": "a", "label": 0}\n{broken', "cannot be read"),
    ("d.csv", b"text,label\na,0\nb,1,2\n", "cannot be read"),
    ("d.xyz", b"", "is not a known format"),
])
def test_broken_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClsightError, match=message):
        list(Dataset(str(tmp_path / name), "text", "label").batches())


def test_a_missing_file_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match="no dataset at"):
        list(Dataset(str(tmp_path / "none.csv"), "text", "label").batches())


def test_a_split_must_be_named(tmp_path):
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    data.save_to_disk(tmp_path / "d")
    with pytest.raises(UsageError, match="has the splits train"):
        _ = Dataset(str(tmp_path / "d"), "text", "label").schema
    assert Dataset(str(tmp_path / "d"), "text", "label", split="train").labels() == [0, 1]


def test_a_saved_dataset_of_several_files_gives_all_its_rows(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d", num_shards=3)
    got = documents(Dataset(str(tmp_path / "d"), "text", "label", "key"), tmp_path)
    assert [d["document_id"] for d in got] == ["a1", "b2", "c3"]


def test_content_decides_the_fingerprint(tmp_path):
    names = ("a.csv", "b.csv", "c.jsonl", "d.parquet", "e")
    same = {Dataset(save(ROWS, tmp_path / n), "text", "label").sha256() for n in names}
    assert len(same) == 1
    changes = [ROWS[:2], ROWS[::-1], [*ROWS, ROWS[0]],
               [ROWS[0] | {"text": ROWS[0]["text"] + "t"}, *ROWS[1:]],
               [ROWS[0] | {"label": 0}, *ROWS[1:]]]
    others = {Dataset(save(rows, tmp_path / f"{i}.csv"), "text", "label").sha256()
              for i, rows in enumerate(changes)}
    assert len(others - same) == len(changes)
    # A column that is not read is no part of it; where values end, is.
    assert Dataset(save([row | {"key": ""} for row in ROWS], tmp_path / "k.csv"), "text", "label",
                   ).sha256() in same
    moved = [{"text": a, "label": 1, "key": b} for a, b in (("ab", "c"), ("a", "bc"))]
    assert len({Dataset(save([row], tmp_path / f"{i}.jsonl"), "text", "label", "key").sha256()
                for i, row in enumerate(moved)}) == 2


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_batches_are_no_part_of_the_fingerprint(rows):
    batch = pa.record_batch({"text": pa.array(["a", None, "ccc", "", "é", "f"]),
                             "label": pa.array([1, 2, None, 3, 4, 5], pa.float16())})
    whole = Rows(batch.schema.names, batch, pa.array([None, "torn", None, None, None, "x"]))
    parts = Fingerprint(["text", "label", "missing"])
    for first in range(0, 6, rows):
        parts.add(whole.slice(first, min(rows, 6 - first)))
    one = Fingerprint(["text", "label", "missing"])
    one.add(whole)
    assert one.sha256() == parts.sha256() != Fingerprint(["text", "label", "missing"]).sha256()
