"""A run in parts, by processes that know nothing of each other, and its merge."""

import shutil
import subprocess
import sys
from itertools import chain

import pytest

from clsight import events, lock, pipeline, shards, status
from clsight.errors import ClsightError, UsageError
from clsight.parts import Part
from conftest import demo_models
from test_pipeline import assert_same_statistics, contents, run

RELATIONS = {
    "documents": "document_id", "predictions": "model, document_id",
    "words": "model, document_id, position",
}


def command(name, *more):
    return [sys.executable, "-m", "clsight.cli", name, *map(str, more)]


def in_part(reviews, output, part):
    models = [part for pair in demo_models().items() for part in ("--model", "=".join(pair))]
    return command("run", reviews, "--text", "text", "--label", "label", *models, "-o", output,
                   "--layers", "all", "--shard-size", 256, "--dtype", "float32",
                   "--min-documents", 20, "--shards", part)


def test_two_processes_at_once_and_a_merge_are_one_run(reviews, small_run, tmp_path):
    folder = tmp_path / "run"
    both = [subprocess.Popen(in_part(reviews, folder, part), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for part in ("0/2", "1/2")]
    for process, part in zip(both, ("0/2", "1/2"), strict=True):
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert out == ""
        assert f"part {part} is complete" in said
    assert status.status(folder).state == "stopped"
    merged = subprocess.run(command("merge", folder), capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    assert "bert" in merged.stdout
    for relation, order in RELATIONS.items():
        one, other = (contents(at, relation, order) for at in (folder, small_run.folder))
        assert one.equals(other), relation
    assert_same_statistics(folder, small_run.folder)
    assert status.status(folder).state == "complete"
    extracted = [(e["part"], e["shard"]) for e in events.read(folder) if e["event"] == "extracted"]
    assert sorted(extracted) == sorted(
        (part, name) for part, names in (("0/2", ("00000.parquet", "00002.parquet")),
                                         ("1/2", ("00001.parquet",)))
        for name in names for _ in demo_models())


def test_what_a_part_has_not_made_is_named_by_the_merge(reviews, small_run, tmp_path):
    run(reviews, tmp_path / "run", part=Part(1, 2))
    with pytest.raises(ClsightError, match=r"bert lacks 2 of 3 shards \(00000.parquet and 00002"):
        pipeline.merge(tmp_path / "run")
    seen = status.status(tmp_path / "run")
    assert {name: model.scored for name, model in seen.models.items()} == {"bert": 1, "roberta": 1}
    # The whole run goes on from there.
    made = run(reviews, tmp_path / "run")
    assert_same_statistics(made.folder, small_run.folder)


def test_a_merge_of_a_complete_run_does_nothing_and_of_lost_tables_makes_them(small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    before = (folder / "clsight.duckdb").stat().st_mtime_ns
    pipeline.merge(folder)
    assert (folder / "clsight.duckdb").stat().st_mtime_ns == before
    (folder / "clsight.duckdb").unlink()
    shutil.rmtree(folder / "bert" / "sums")
    pipeline.merge(folder)
    assert_same_statistics(folder, small_run.folder)


def test_parts_with_other_options_are_refused(reviews, small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    with pytest.raises(UsageError, match="options"):
        run(reviews, folder, part=Part(0, 2), options=pipeline.Options(min_documents=30))
    with pytest.raises(UsageError, match="model roberta"):
        run(reviews, folder, part=Part(0, 2), models={"bert": demo_models()["bert"]})
    with pytest.raises(UsageError, match="scores"):
        run(reviews, folder, part=Part(0, 2), scores="uniform,contribution")
    assert shards.done(folder / "bert" / "scores") == {*small_run.plan.shard_names()}


def test_who_has_a_part_keeps_others_from_it_and_from_the_whole(reviews, small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    with lock.part_held(folder, Part(0, 2)):
        with pytest.raises(ClsightError, match=r"in parts, by 1 processes \(.lock-0-of-2\)"):
            run(reviews, folder)
        with pytest.raises(ClsightError, match="in parts"):
            pipeline.merge(folder)
        with pytest.raises(ClsightError, match="at work in another process"):
            run(reviews, folder, part=Part(0, 2))
        assert lock.is_held(folder)
        run(reviews, folder, part=Part(1, 2))
    assert not lock.is_held(folder)


@pytest.mark.parametrize("spelled", ["2/2", "1", "-1/2", "0/0", "a/b", "0/2/3"])
def test_parts_that_are_none_are_refused(spelled):
    with pytest.raises(UsageError, match="write I/N"):
        Part.of(spelled)


def test_parts_have_every_shard_once():
    names = [shards.name(i) for i in range(11)]
    own = [Part(i, 4).own(names) for i in range(4)]
    assert sorted(chain(*own)) == names
    assert max(map(len, own)) - min(map(len, own)) == 1
