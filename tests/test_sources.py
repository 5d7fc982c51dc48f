"""Datasets of many files, here and in object storage, and streams: the same rows in order."""

import gzip
import shutil
import time

import datasets
import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from clsight import events, shards, sources
from clsight.dataset import Dataset
from clsight.errors import ClsightError, UsageError
from test_dataset import documents, save
from test_pipeline import assert_same_statistics, contents, run

MANY = [{"key": f"k{i}", "text": f"text {i}", "label": i % 2, "source": "ab"[i % 3 == 0],
         "year": 2000 + i % 2} for i in range(60)]


@pytest.fixture
def folder(tmp_path):
    """The rows in files of several formats, with others that are none of the dataset's."""
    inside = tmp_path / "data"
    (inside / "more").mkdir(parents=True)
    for i, name in enumerate(["a.parquet", "b.csv", "c.jsonl", "more/d.parquet"]):
        save(MANY[15 * i : 15 * (i + 1)], inside / name)
    with gzip.open(inside / "b.csv.gz", "wb") as packed:
        packed.write((inside / "b.csv").read_bytes())
    (inside / "b.csv").unlink()
    (inside / "_SUCCESS").touch()
    (inside / ".hidden.csv").write_text("text")
    (inside / "README.md").write_text("# mine")
    return inside


def read(path, **more):
    """(key, text, label) of all rows."""
    dataset = Dataset(str(path), "text", "label", "key", **more)
    return [tuple(str(value) for value in row.values()) for batch in dataset.batches()
            for row in batch.select(["key", "text", "label"]).to_pylist()]


EXPECTED = [(row["key"], row["text"], str(row["label"])) for row in MANY]


@pytest.fixture
def uploaded(folder):
    """The same folder in object storage, as a URL."""
    filesystem, root = fsspec.filesystem("memory"), f"/data-{time.monotonic_ns()}"
    filesystem.put(str(folder), root, recursive=True)
    yield f"memory:/{root}"
    filesystem.rm(root, recursive=True)


def test_a_folder_is_its_files_by_name(folder, uploaded):
    assert read(folder) == read(uploaded) == EXPECTED
    assert read(folder / "a.parquet") == read(f"{uploaded}/a.parquet") == EXPECTED[:15]
    here, there = (Dataset(str(path), "text", "label") for path in (folder, uploaded))
    assert here.sha256() == there.sha256()


@pytest.mark.parametrize(("pattern", "n"), [("*.parquet", 15), ("**/*.parquet", 30), ("?.*", 45),
                                            ("[ac].*", 30)])
def test_patterns(folder, uploaded, pattern, n):
    assert len(read(folder / pattern)) == n
    assert read(folder / pattern) == read(f"{uploaded}/{pattern}")


def test_partitions_are_columns(tmp_path):
    table = pa.Table.from_pylist(MANY)
    pyarrow.dataset.write_dataset(table, tmp_path / "d", format="parquet", partitioning=(
        pyarrow.dataset.partitioning(pa.schema([("source", pa.string()), ("year", pa.int64())]),
                                     flavor="hive")))
    dataset = Dataset(str(tmp_path / "d"), "text", "label", "key", group_by="source")
    assert dataset.schema.field("source").type == pa.string()
    got = {d["document_id"]: d["slice"] for d in documents(dataset, tmp_path)}
    assert got == {row["key"]: row["source"] for row in MANY}
    by_year = Dataset(str(tmp_path / "d" / "**" / "*.parquet"), "text", "year", "key")
    assert by_year.label_type == pa.int64()
    got = {d["document_id"]: d["label"] for d in
           documents(by_year, tmp_path / "years", labels=(2000, 2001))}
    assert got == {row["key"]: row["year"] for row in MANY}


def test_what_is_wrong_names_the_file(folder):
    with pytest.raises(UsageError, match=r"README\.md: \.md is not a known format"):
        read(folder / "*")
    with pytest.raises(UsageError, match=r"there is no dataset at .*\*\.tsv"):
        read(folder / "*.tsv")
    with pytest.raises(UsageError, match="there is no dataset at memory://nowhere"):
        read("memory://nowhere/data")
    save([{"text": "a", "key": "x"}], folder / "more" / "e.parquet")
    with pytest.raises(ClsightError, match=r"e.parquet has other columns than .*a.parquet: of those"
                                           r" that are read key and text, and not key, label and"):
        read(folder)
    (folder / "more" / "e.parquet").write_bytes(b"PAR1")
    with pytest.raises(ClsightError, match=r"more/e.parquet cannot be read"):
        read(folder)


def test_the_version_is_that_of_the_files(folder, uploaded):
    before = [sources.opened(str(path), None, False).version() for path in (folder, uploaded)]
    again = [sources.opened(str(path), None, False).version() for path in (folder, uploaded)]
    assert before == again
    moved = shutil.copytree(folder, folder.with_name("elsewhere"))
    assert sources.opened(str(moved), None, False).version() == before[0]
    (folder / "more" / "d.parquet").touch()
    assert sources.opened(str(folder), None, False).version() != before[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_loader_of_hugging_face_reads_folders_by_split(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    save(MANY[:40], tmp_path / "d" / "train.parquet")
    save(MANY[40:], tmp_path / "d" / "test.parquet")
    more = {"split": "test", "streaming": streaming}
    assert read(tmp_path / "d", **more) == EXPECTED[40:]
    known = sources.opened(str(tmp_path / "d"), "test", streaming).version()
    assert (known is None) is streaming
    with pytest.raises(UsageError, match=r"has the splits (train, test|test, train)"):
        read(tmp_path / "d", **more | {"split": "dev"})


def test_a_run_on_many_files_is_that_on_one(reviews, small_run, tmp_path):
    whole, inside = pq.read_table(reviews), tmp_path / "data"
    inside.mkdir()
    for i in range(0, 600, 90):
        pq.write_table(whole.slice(i, 90), inside / f"{i:04d}.parquet")
    made = run(inside / "*.parquet", tmp_path / "run")
    assert made.plan.dataset.sha256 == small_run.plan.dataset.sha256
    assert made.plan.dataset.path == str(inside / "*.parquet")
    assert_same_statistics(made.folder, small_run.folder)
    # It goes on without reading; with reading where files were touched, or are others.
    before = [e["event"] for e in events.read(made.folder)].count("reading")
    run(inside / "*.parquet", tmp_path / "run")
    (inside / "0000.parquet").touch()
    run(inside / "*.parquet", tmp_path / "run")
    run(reviews, tmp_path / "run")
    after = [e["event"] for e in events.read(made.folder)].count("reading")
    assert (before, after) == (0, 2)


def test_a_stream_is_read_once_and_its_length_is_found_out(reviews, small_run, tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    shutil.copy(reviews, inside / "train.parquet")
    made = run(inside, tmp_path / "run", split="train", streaming=True)
    assert made.plan.n_rows == 600
    assert made.plan.dataset.sha256 == small_run.plan.dataset.sha256
    assert contents(made.folder, "documents", "document_id").equals(
        contents(small_run.folder, "documents", "document_id"))
    run(inside, tmp_path / "run", split="train", streaming=True)
    assert "not read" in [e["event"] for e in events.read(made.folder)]
    (made.folder / "documents" / "00001.parquet").unlink()
    run(inside, tmp_path / "run", split="train", streaming=True)
    assert shards.done(made.folder / "documents") == {*made.plan.shard_names()}
    pq.write_table(pq.read_table(reviews).slice(1), inside / "train.parquet")
    (made.folder / "documents" / "00001.parquet").unlink()
    with pytest.raises(ClsightError, match="changed since the run began"):
        run(inside, tmp_path / "run", split="train", streaming=True)
