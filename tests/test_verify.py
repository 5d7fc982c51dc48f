"""`verify` names what is wrong in a run, and `repair` makes just that again."""

import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import clsight
from clsight import plan, shards
from clsight.cli import cli
from clsight.verify import ASIDE, repair, verify
from test_pipeline import assert_same_statistics, contents, extracted, run


@pytest.fixture
def copied_run(small_run, tmp_path):
    return shutil.copytree(small_run.folder, tmp_path / "run")


def flipped(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)


def rewritten(path, change):
    shards.write(change(pq.read_table(path)), path)


def test_a_finished_run_has_no_problem(small_run):
    assert verify(small_run.folder) == []


def test_flipped_bytes_in_any_shard_are_found(copied_run):
    random, files = np.random.default_rng(1), sorted(copied_run.rglob("*.parquet"))
    for path in files:
        content = path.read_bytes()
        flipped(path, int(random.integers(len(content))))
        assert not shards.is_sound(path)
        path.write_bytes(content)
    flipped(files[3])
    flipped(files[-1])
    assert {problem.file for problem in verify(copied_run)} == {
        str(path.relative_to(copied_run)) for path in (files[3], files[-1])}


WRONG = {
    "bert/attention/00001.parquet": (lambda path: path.unlink(), "is missing"),
    "roberta/scores/00002.parquet": (flipped, "is not as it was written"),
    "documents/00000.parquet": (flipped, "is not as it was written"),
    "documents/00001.parquet": (lambda path: path.unlink(), "is missing"),
    "bert/head_weights.parquet": (lambda path: path.unlink(), "is missing"),
    "bert/heads/00000.parquet": (lambda path: path.write_bytes(b""), "is not as it was written"),
    "roberta/attention/00000.parquet": (
        lambda path: rewritten(path, lambda table: table.slice(3)),
        "holds 253 documents that are not the 256"),
    "bert/scores/00000.parquet": (
        lambda path: rewritten(path, lambda table: table.drop_columns("uniform")),
        "has other columns than planned"),
    "bert/heads/00001.parquet": (
        lambda path: shutil.copy(path.with_name("00000.parquet"), path),
        "is 00000.parquet under another name"),
    "roberta/agreement/00000.parquet": (
        lambda path: shutil.copy(str(path).replace("roberta", "bert"), path),
        "is of another model"),
    "roberta/sums/00001.parquet": (flipped, "is not as it was written"),
    "documents/00007.parquet": (
        lambda path: shutil.copy(path.with_name("00000.parquet"), path), "is no part of the plan"),
    "clsight.duckdb": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
    "plan.json": (flipped, "cannot be read as a plan|is not as it was written"),
}


@pytest.mark.parametrize("file", WRONG)
def test_what_is_wrong_is_named_and_only_that_is_made_again(copied_run, small_run, file):
    before = extracted(copied_run)
    harm, message = WRONG[file]
    harm(copied_run / file)
    problems = verify(copied_run)
    assert {problem.file for problem in problems} == {file}
    assert re.search(message, problems[0].what)
    assert repair(copied_run) == []
    model, name = file.split("/")[0], file.split("/")[-1]
    changed = {path.relative_to(copied_run).as_posix() for path, time in before.items()
               if path.stat().st_mtime_ns != time}
    assert changed <= {file, f"{model}/head_weights.parquet",
                       *(f"{model}/{made}/{name}" for made in shards.SCORED)}
    order = "model, document_id, position"
    assert contents(copied_run, "words", order).equals(contents(small_run.folder, "words", order))
    assert_same_statistics(copied_run, small_run.folder)
    assert (copied_run / f"{file}{ASIDE}").exists() == (file == "documents/00007.parquet")


def test_a_damaged_plan_is_read_from_its_copy(copied_run):
    flipped(copied_run / "plan.json")
    assert clsight.open(copied_run).plan.n_rows == 600
    assert set(plan.damaged(copied_run)) == {"plan.json"}
    flipped(copied_run / "log" / "plan.json")
    with pytest.raises(clsight.UsageError, match=r"plan\.json"):
        clsight.open(copied_run)


def test_a_repair_with_another_dataset_is_refused(reviews, tmp_path):
    data = tmp_path / "reviews.parquet"
    pq.write_table(pq.read_table(reviews).slice(0, 100), data)
    made = run(data, tmp_path / "run", shard_size=40)
    (made.folder / "documents" / "00001.parquet").unlink()
    pq.write_table(pq.read_table(reviews).slice(1, 100), data)
    with pytest.raises(clsight.UsageError, match=r"dataset sha256 was .* and is now"):
        repair(made.folder)
    data.unlink()
    with pytest.raises(clsight.UsageError, match="no dataset at"):
        repair(made.folder)


def test_a_run_that_was_stopped_is_not_well(reviews, small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    shutil.rmtree(folder / "roberta" / "scores")
    assert {problem.kind for problem in verify(folder)} == {"missing"}
    assert verify(run(reviews, folder).folder) == []


def test_the_command_says_a_line_a_problem(copied_run):
    well = CliRunner().invoke(cli, ["verify", str(copied_run)], standalone_mode=False)
    assert (well.return_value, well.stdout) == (0, "")
    flipped(copied_run / "bert" / "scores" / "00001.parquet")
    ill = CliRunner().invoke(cli, ["verify", str(copied_run)], standalone_mode=False)
    assert ill.return_value == 1
    assert ill.stdout == ("bert/scores/00001.parquet: is not as it was written "
                          "(its checksum differs)\n")
