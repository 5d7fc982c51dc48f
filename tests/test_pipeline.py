"""A run as its user sees it: complete, resumable, refusing other plans, readable anywhere."""

import dataclasses
import errno
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clsight
from clsight import build, database, events, lock, pipeline, shards
from clsight.errors import ClsightError, UsageError
from clsight.words import segment
from conftest import demo_models
from reference import Eager

OPTIONS = pipeline.Options(min_documents=20)


def run(reviews, output, **changes):
    arguments = {"text": "text", "label": "label", "models": demo_models(), "dtype": "float32",
                 "layers": "all", "shard_size": 256, "options": OPTIONS}
    return pipeline.run(str(reviews), output=output, **(arguments | changes))


@pytest.fixture
def copied_run(small_run, tmp_path):
    return shutil.copytree(small_run.folder, tmp_path / "run")


def contents(folder, relation, order):
    return clsight.open(folder).sql(f'SELECT * FROM {relation} ORDER BY {order}')


def test_predictions_are_the_models(small_run, reviews):
    texts = pq.read_table(reviews)["text"].to_pylist()[:50]
    for model, path in demo_models().items():
        eager = Eager(path)
        stored = small_run.sql(
            f"SELECT * FROM predictions WHERE model = '{model}' ORDER BY document_id"
        )
        for text, row in zip(texts, stored.iter_rows(named=True), strict=False):
            logits, *_ = eager(text, small_run.plan.models[model].max_length)
            probability = np.exp(logits) / np.exp(logits).sum()
            assert row["predicted"] == logits.argmax()
            assert row["confidence"] == pytest.approx(probability.max(), abs=1e-5)
            assert row["margin"] == pytest.approx(np.ptp(logits), abs=1e-4)
            assert row["correct"] == (row["predicted"] == row["label"])


def test_uniform_is_the_row_of_the_question_summed_over_words(small_run, reviews):
    text = pq.read_table(reviews)["text"][7].as_py()
    words = segment(pa.array([text]))
    for model, path in demo_models().items():
        eager = Eager(path)
        _, rows, _ = eager(text)
        spans = eager.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        expected = [
            sum(a for a, (s, e) in zip(rows[-1].mean(0), spans, strict=True)
                if s < e and word_s <= s < word_e)
            for word_s, word_e in zip(words.start[0].as_py(), words.end[0].as_py(), strict=True)
        ]
        got = small_run.sql(
            f"SELECT * FROM words WHERE model = '{model}' AND document_id = 7 ORDER BY position"
        )
        assert got["form"].to_list() == words.form[0].as_py()
        np.testing.assert_allclose(got["uniform"], expected, atol=1e-5)


def test_all_models_share_the_words(small_run):
    spans = small_run.sql(
        "SELECT document_id, position, form, start_char, end_char, count(DISTINCT model) AS n "
        "FROM words GROUP BY ALL"
    )
    assert set(spans["n"]) == {2}


def test_word_mass_is_the_share_of_positive_scores(small_run):
    words = small_run.sql("words")
    mass = small_run.sql('SELECT m.*, document_id FROM word_mass AS m JOIN documents USING ("row")')
    some = mass.sample(200, seed=1)
    for row in some.iter_rows(named=True):
        document = words.filter(model=row["model"], document_id=row["document_id"])
        for score in ("uniform", "contribution"):
            positive = np.maximum(document[score].to_numpy(), 0)
            own = positive[(document["form"] == row["form"]).to_numpy()].sum()
            assert row[score] == pytest.approx(own / positive.sum(), abs=1e-6)
        assert row["n_words"] == len(document)


def test_running_again_does_nothing(copied_run, reviews, caplog):
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("*.parquet")}
    with caplog.at_level("INFO", "clsight"):
        run(reviews, copied_run)
    assert "nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in copied_run.rglob("*.parquet")}


def extracted(folder):
    """When each shard was written, but for the sums, which belong to the statistics."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")
            if path.parent.name != "sums"}


@pytest.mark.parametrize("lost", [
    "bert/scores/00001.parquet", "roberta/attention/00000.parquet", "clsight.duckdb",
])
def test_only_what_is_missing_is_made_again(copied_run, reviews, small_run, lost):
    before = extracted(copied_run)
    (copied_run / lost).unlink()
    if "attention" in lost:
        (copied_run / lost.replace("attention", "scores")).unlink()
    run(reviews, copied_run)
    changed = {
        str(path.relative_to(copied_run)) for path, time in before.items()
        if path.stat().st_mtime_ns != time
    }
    model, name = lost.split("/")[0], lost.split("/")[-1]
    assert changed <= {lost, f"{model}/head_weights.parquet",
                       *(f"{model}/{made}/{name}" for made in ("heads", "agreement", "scores"))}
    order = "model, document_id, position"
    assert contents(copied_run, "words", order).equals(contents(small_run.folder, "words", order))
    assert_same_statistics(copied_run, small_run.folder)


def assert_same_statistics(one, other):
    """To the last digits: sums are added up in any order."""
    order = "model, score, kind, form"
    mine, theirs = (contents(folder, "word_statistics", order) for folder in (one, other))
    assert mine.columns == theirs.columns
    for name in mine.columns:
        if mine[name].dtype.is_float():
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-11, atol=1e-12,
                                       err_msg=name)
        else:
            assert mine[name].equals(theirs[name])


@pytest.mark.parametrize("shard_size", [100, 10_000])
def test_shards_do_not_change_the_numbers(small_run, reviews, tmp_path, shard_size):
    other = run(reviews, tmp_path / "run", shard_size=shard_size)
    order = "model, document_id, position"
    mine, theirs = (contents(r.folder, "words", order) for r in (small_run, other))
    assert mine.drop("uniform", "classifier", "projected", "contribution").equals(
        theirs.drop("uniform", "classifier", "projected", "contribution")
    )
    for score in ("uniform", "classifier", "projected", "contribution"):
        np.testing.assert_allclose(mine[score], theirs[score], atol=1e-5)


@pytest.mark.parametrize("shard_size", [97, 600])
def test_sums_of_any_shards_add_up_to_the_same_statistics(small_run, tmp_path, shard_size):
    """The same scores in other shards, and their sums merged in SQL in any order."""
    folder, plan = tmp_path / "run", dataclasses.replace(small_run.plan, shard_size=shard_size)
    folder.mkdir()
    plan.save(folder)
    for made in ("documents", *(f"{model}/{stage}" for model in plan.models
                                for stage in ("attention", "scores"))):
        whole = pq.read_table(small_run.folder / made)
        whole = whole.sort_by("row")
        for i, name in enumerate(plan.shard_names()):
            shards.write(whole.slice(i * shard_size, shard_size), folder / made / name)
    for model in plan.models:
        for made in ("heads", "agreement"):
            shutil.copytree(small_run.folder / model / made, folder / model / made)
        shutil.copy(small_run.folder / model / "head_weights.parquet", folder / model)
    build.build(folder, plan, OPTIONS)
    assert_same_statistics(small_run.folder, folder)


def test_another_plan_is_refused_with_both_values(copied_run, reviews, tmp_path):
    with pytest.raises(UsageError, match="dtype was float32 and is now bfloat16"):
        run(reviews, copied_run, dtype="bfloat16")
    changed = tmp_path / "changed.parquet"
    pq.write_table(pq.read_table(reviews).slice(1), changed)
    with pytest.raises(UsageError, match=r"dataset sha256 was [0-9a-f]{64} and is now [0-9a-f]"):
        run(changed, copied_run)
    with pytest.raises(UsageError, match=r"model roberta sha256 was .* and is now absent"):
        run(reviews, copied_run, models={"bert": demo_models()["bert"]})


def test_new_scores_from_stored_rows_repeat_no_extraction(copied_run, reviews, small_run):
    before = extracted(copied_run)
    made = run(reviews, copied_run, scores="uniform,uniform_0")
    assert made.plan.scores == ("uniform", "uniform_0", "contribution")
    kept = {path for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert {path.parent.name for path in before.keys() - kept} == set(shards.SCORED)
    assert made.sql("words").columns[-3:] == ["uniform", "uniform_0", "contribution"]
    again = run(reviews, copied_run)
    assert again.plan.fingerprint == small_run.plan.fingerprint
    order = "model, document_id, position"
    assert contents(copied_run, "words", order).equals(contents(small_run.folder, "words", order))
    assert_same_statistics(copied_run, small_run.folder)


def test_scores_that_need_another_forward_pass_are_refused(copied_run, reviews):
    with pytest.raises(UsageError, match=r"piece_scores was \['contribution'\] and is now "
                                         r"\['contribution', 'conservative'\]"):
        run(reviews, copied_run, scores="conservative")
    with pytest.raises(UsageError, match=r"shard_size was 256 and is now 100"):
        run(reviews, copied_run, shard_size=100)


def test_another_model_is_extracted_beside_those_that_are_there(reviews, small_run, tmp_path):
    first = run(reviews, tmp_path / "run", models={"bert": demo_models()["bert"]})
    before = extracted(first.folder)
    both = run(reviews, tmp_path / "run")
    assert list(both.plan.models) == ["bert", "roberta"]
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == set()
    order = "model, document_id, position"
    assert contents(both.folder, "words", order).equals(
        contents(small_run.folder, "words", order))
    assert_same_statistics(both.folder, small_run.folder)


def test_another_major_version_of_a_library_is_refused(copied_run, reviews, monkeypatch):
    monkeypatch.setattr("clsight.plan.version", lambda name: "99.1")
    with pytest.raises(UsageError, match=r"transformers \(major version\) was 5 and is now 99"):
        run(reviews, copied_run)


def test_two_runs_on_one_folder_do_not_meet(copied_run, reviews):
    with lock.held(copied_run), pytest.raises(ClsightError, match="at work in another process"):
        run(reviews, copied_run)


def test_what_a_killed_process_left_is_swept(copied_run, reviews, small_run):
    (copied_run / "clsight.duckdb").rename(copied_run / ".partial-clsight.duckdb-99")
    (copied_run / ".partial-pairs-x").mkdir()
    (copied_run / ".partial-pairs-x" / "0").write_bytes(b"x")
    run(reviews, copied_run)
    assert not list(copied_run.rglob(".partial-*"))
    assert_same_statistics(copied_run, small_run.folder)


def test_a_full_disk_is_a_sentence_and_no_loss(reviews, small_run, tmp_path, monkeypatch):
    written, write = [], shards.write

    def filling(table, path):
        if len(written) >= 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write", filling)
        with pytest.raises(ClsightError, match=r"the disk is full.*make room"):
            run(reviews, tmp_path / "run")
    assert [e["event"] for e in events.read(tmp_path / "run")][-1] == "stopped"
    assert all(shards.is_sound(path) for path in written if path.exists())
    made = run(reviews, tmp_path / "run")
    order = "model, document_id, position"
    assert contents(made.folder, "words", order).equals(contents(small_run.folder, "words", order))


def test_other_test_options_make_only_the_statistics_again(copied_run, reviews):
    before = extracted(copied_run)
    again = run(reviews, copied_run, options=pipeline.Options(min_documents=100))
    assert before == extracted(copied_run)
    assert again.sql("word_statistics")["n_documents"].min() >= 100


@pytest.mark.parametrize(("chosen", "note"), [
    ("correct", "no errors, so nothing to compare"),
    ("NOT correct", "errors alone, so nothing to compare them with"),
    ("predicted = 1", "cannot be said: no error stands beside a correct document of the same gold "
                      "label and like confidence"),
    ("correct OR document_id % 3 = 0",
     r"too few errors \(\d+ of \d+ stand beside correct documents of the same (prediction|gold "
     r"label)\) to find any but a gross effect"),
    ("document_id BETWEEN 100 AND 118", "too little data: no word is in at least 20 documents"),
])
def test_what_cannot_be_known_is_said(small_run, reviews, tmp_path, chosen, note):
    """Of some of the documents on which bert is as asked for."""
    rows = small_run.sql(f"SELECT document_id FROM predictions WHERE model = 'bert' AND ({chosen})")
    some = pq.read_table(reviews).take(rows["document_id"].sort().to_list())
    pq.write_table(some, tmp_path / "some.parquet")
    models = {"bert": demo_models()["bert"]}
    made = run(tmp_path / "some.parquet", tmp_path / "run", models=models)
    (said,) = made.sql("model_summary")["note"]
    assert re.match(note, said)
    if "gross" not in note:
        assert made.sql("findings").is_empty()
    for name in ("word_statistics", "stratification", "model_differences", "heterogeneity"):
        for column in made.sql(name):
            assert not column.dtype.is_float() or not column.is_nan().any()


def test_copies_are_counted_and_left_out_of_the_tests(small_run, reviews, tmp_path):
    """The same documents with copies between them, in other case and with other white space."""
    table = pq.read_table(reviews)
    copies = table.slice(100, 150).set_column(
        table.column_names.index("text"), "text",
        [[text.upper().replace(" ", "  ") for text in table["text"].to_pylist()[100:250]]])
    pq.write_table(pa.concat_tables([table.slice(0, 300), copies, table.slice(300)]),
                   tmp_path / "copies.parquet")
    made = run(tmp_path / "copies.parquet", tmp_path / "run")
    assert set(made.sql("model_summary")["n_documents"]) == {750}
    assert set(made.sql("model_summary")["n_copies"]) == {150}
    mine, theirs = (own.sql("SELECT * FROM word_statistics ORDER BY model, score, form")
                    for own in (made, small_run))
    for name in ("form", "n_documents", "n_errors"):
        assert mine[name].equals(theirs[name])
    np.testing.assert_allclose(mine["z"], theirs["z"], atol=1e-3)


def test_a_moved_run_still_answers(small_run, tmp_path, monkeypatch):
    moved = shutil.copytree(small_run.folder, tmp_path / "it's moved")
    odd = shutil.copytree(small_run.folder, tmp_path / "a[1]*?{b}'\"c;--")
    assert clsight.open(odd).sql("words").height == small_run.sql("words").height
    with pytest.raises(UsageError, match="must have no comma"):
        clsight.open(shutil.copytree(small_run.folder, tmp_path / "a,b")).sql("words")
    monkeypatch.chdir(tmp_path)
    assert clsight.open(moved).sql("words").height == small_run.sql("words").height
    assert clsight.open("it's moved").sql("documents").height == 600


def test_folders_that_are_no_runs_are_refused(reviews, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        clsight.open(tmp_path / "none")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="not a clsight run"):
        run(reviews, tmp_path)
    with pytest.raises(UsageError, match="must have no comma"):
        run(reviews, tmp_path / "a,b" / "run")
    with pytest.raises(UsageError, match="is a file"):
        run(reviews, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_bad_rows_stop_the_run_or_are_listed(reviews, tmp_path):
    rows = pq.read_table(reviews).slice(0, 300).to_pylist()
    rows[3]["text"], rows[10]["label"], rows[11]["text"] = "  ", 7, None
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ClsightError, match=r"3 of the documents cannot be used.*label 7"):
        run(path, tmp_path / "run")
    skipped = run(path, tmp_path / "run", on_bad_row="skip")
    assert skipped.sql("bad_documents").select("row", "reason").rows() == [
        (3, "text is empty"), (10, "label 7 is not among bert's: 0 and 1"), (11, "text is null"),
    ]
    assert skipped.sql("documents").height == 297
    assert skipped.sql("predictions").height == 2 * 297
    assert skipped.sql("documents")["row"].is_in([3, 10, 11]).sum() == 0


def test_a_shard_without_a_usable_document_counts_for_nothing(reviews, tmp_path):
    rows = pq.read_table(reviews).slice(0, 30).to_pylist()
    for row in rows[:10]:
        row["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    made = run(tmp_path / "bad.parquet", tmp_path / "run", on_bad_row="skip", shard_size=10,
               options=pipeline.Options(min_documents=5))
    assert made.plan.n_shards == 3
    assert set(made.sql("head_profile").select("model", "n_documents").rows()) == {
        ("bert", 20), ("roberta", 20)
    }


def test_long_texts_are_flagged(reviews, tmp_path):
    rows = pq.read_table(reviews).slice(0, 60).to_pylist()
    rows[5]["text"] = rows[5]["text"] + " and on it went" * 200
    path = tmp_path / "long.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = run(path, tmp_path / "run").sql("predictions")
    assert set(found.filter(truncated=True)["document_id"]) == {5}
    longest = {name: model.max_length for name, model in clsight.open(tmp_path / "run").plan.models
               .items()}
    for model, n_pieces in found.filter(truncated=True).select("model", "n_pieces").rows():
        assert n_pieces == longest[model]


def test_names_as_labels_and_ids_of_the_dataset(reviews, tmp_path):
    table = pq.read_table(reviews).slice(0, 100)
    names = ["negative", "positive"]
    named = pa.table({
        "id": [f"doc-{i}" for i in range(100)], "body": table["text"],
        "sentiment": [names[label] for label in table["label"].to_pylist()],
    })
    pq.write_table(named, tmp_path / "named.parquet")
    found = run(tmp_path / "named.parquet", tmp_path / "run", text="body", label="sentiment",
                id="id")
    predictions = found.sql("predictions")
    assert set(predictions["predicted"]) <= set(names)
    assert set(predictions["document_id"]) == set(named["id"].to_pylist())


@pytest.mark.parametrize("name", ["documents", "log", "../up", "a b", "", "-x"])
def test_names_that_cannot_be_folders_are_refused(reviews, tmp_path, name):
    with pytest.raises(UsageError, match="cannot be a model's name"):
        run(reviews, tmp_path / "run", models={name: demo_models()["bert"]})


def test_half_precision_is_stored_as_such(reviews, tmp_path):
    table = pq.read_table(reviews).slice(0, 50)
    pq.write_table(table, tmp_path / "d.parquet")
    run(tmp_path / "d.parquet", tmp_path / "run", dtype="bfloat16")
    stored = pq.read_table(tmp_path / "run" / "bert" / "attention")["attention"]
    values = stored.combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(values, values.astype(np.float16).astype(np.float32))


def rewritten(path, change):
    shards.write(change(pq.read_table(path)), path)


BROKEN = {
    "attention_above_one": ("bert/scores/00001.parquet", lambda t: t.set_column(
        t.column_names.index("uniform"), "uniform", [[[9.0] * len(x) for x in t["uniform"]]])),
    "duplicate_rows": ("roberta/attention/00002.parquet", lambda t: pa.concat_tables(
        [t, t.slice(0, 1)])),
    "documents_without_prediction": ("bert/attention/00000.parquet", lambda t: t.slice(1)),
    "duplicate_ids": ("documents/00000.parquet", lambda t: t.set_column(
        1, "document_id", [[5] * len(t)])),
    "orphans": ("documents/00001.parquet", lambda t: t.slice(3)),
    "scores_not_finite": ("roberta/scores/00001.parquet", lambda t: t.set_column(
        t.column_names.index("contribution"), "contribution", [[[float("nan")]] * len(t)])),
    "words_without_score": ("bert/scores/00001.parquet", lambda t: t.set_column(
        t.column_names.index("uniform"), "uniform", [[[0.1]] * len(t)])),
    "sums_unlike_documents": ("bert/sums/00001.parquet", lambda t: t.slice(5)),
    "missing_shards": ("roberta/heads/00001.parquet", None),
}


@pytest.mark.parametrize("check", database.sql_files("checks"))
def test_checks_are_empty_and_can_fail(copied_run, check):
    with database.connect(copied_run) as connection:
        assert database.failed_checks(connection) == {}
    path, change = BROKEN[check]
    if change is None:
        (copied_run / path).unlink()
    else:
        rewritten(copied_run / path, change)
    with database.connect(copied_run) as connection:
        assert check in database.failed_checks(connection)
        assert database.query(connection, check, {}).read_all().num_rows


def test_the_plan_is_plain_json(small_run):
    stored = json.loads((small_run.folder / "plan.json").read_text())
    assert stored["n_rows"] == 600
    assert stored["models"]["bert"]["labels"] == [0, 1]


def test_scores_are_chosen_by_name_and_stand_in_their_order(reviews, tmp_path):
    table = pq.read_table(reviews).slice(0, 80)
    pq.write_table(table, tmp_path / "some.parquet")
    made = run(tmp_path / "some.parquet", tmp_path / "run", layers="last",
               scores="conservative,contribution_0,uniform_0,norm")
    names = ["uniform", "uniform_0", "norm", "contribution", "contribution_0", "conservative"]
    assert list(made.plan.scores) == names
    assert made.sql("words").columns[-6:] == names
    assert {layers for model in made.plan.models.values() for layers in model.layers} == {0, 1}
    assert set(made.sql("word_statistics")["score"]) <= set(names)
    assert made.sql("compare_scores").height == 2 * 6 * 5


def test_scores_explain_the_target_that_was_asked_for(reviews, tmp_path):
    table = pq.read_table(reviews).slice(0, 80)
    pq.write_table(table, tmp_path / "some.parquet")
    made = {target: run(tmp_path / "some.parquet", tmp_path / target, target=target,
                        scores="conservative") for target in ("predicted", "gold", "1")}
    order = "ORDER BY model, document_id"
    predicted, gold, one = (
        made[target].sql(f"FROM predictions {order}") for target in ("predicted", "gold", "1")
    )
    assert (gold["target"] == gold["label"]).all()
    assert (one["target"] == 1).all()
    assert not gold["correct"].all()
    sign = np.where(gold["correct"], 1, -1)
    np.testing.assert_allclose(gold["target_margin"], sign * predicted["margin"].to_numpy(),
                               atol=1e-5)
    # With two classes the margin of the other class is the same with the other sign.
    words = {target: run_.sql("FROM words ORDER BY model, document_id, position")
             for target, run_ in made.items()}
    keys = words["gold"].select("model", "document_id").join(
        gold.select("model", "document_id", "correct"), on=["model", "document_id"], how="left",
        maintain_order="left")
    sign = np.where(keys["correct"], 1, -1)
    for score in ("contribution", "conservative"):
        np.testing.assert_allclose(words["gold"][score],
                                   sign * words["predicted"][score].to_numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="--target 2: bert knows the labels 0 and 1"):
        run(tmp_path / "some.parquet", tmp_path / "other", target="2")
