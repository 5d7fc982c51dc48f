"""The SQL is part of the product: headers, stable columns, every query runs."""

import itertools
import shutil
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clsight
from clsight import blocks, build, database, shards
from clsight.statistics import Options, weaker
from reference import statistic

STABLE = {
    "documents": "document_id row text label n_words",
    "bad_documents": "document_id row model text label reason",
    "predictions": "model document_id label predicted confidence margin correct n_pieces truncated "
                   "retried",
    "words": "model document_id position form start_char end_char uniform classifier projected "
             "contribution",
    "word_statistics": "model score form n_documents n_errors mass_errors mass_correct mass_ratio "
                       "presence_ratio intensity_ratio lift z p q consistency",
    "over_attended": "rank model score form n_documents n_errors mass_errors mass_correct "
                     "mass_ratio presence_ratio intensity_ratio lift z p q consistency",
    "neglected": "rank model score form n_documents n_errors mass_errors mass_correct mass_ratio "
                 "presence_ratio intensity_ratio lift z p q consistency",
    "model_summary": "model n_documents n_errors accuracy n_copies n_retried n_failed",
    "disagreements": "document_id text label bert_predicted bert_confidence bert_top_words "
                     "roberta_predicted roberta_confidence roberta_top_words",
}
FILES = [(kind, name, sql) for kind in ("views", "queries", "checks")
         for name, sql in database.sql_files(kind).items()]


@pytest.mark.parametrize(("kind", "name", "sql"), FILES, ids=[f"{k}/{n}" for k, n, _ in FILES])
def test_each_file_says_what_it_is(kind, name, sql):
    assert sql.startswith("-- What:")
    assert "-- One row:" in sql
    assert len(database.purpose(sql)) > 10
    if kind == "views":
        kind_of = "TABLE" if name in ("strata", "tested_documents") else "VIEW"
        assert f"CREATE OR REPLACE {kind_of} {name} AS" in sql
        assert "-- Source:" in sql


@pytest.mark.parametrize("relation", STABLE)
def test_stable_columns(small_run, relation):
    columns = small_run.sql(f"FROM {relation} LIMIT 1").columns
    assert set(STABLE[relation].split()) <= set(columns)


@pytest.mark.parametrize("name", database.sql_files("queries"))
def test_every_query_runs(small_run, name):
    needed = [key for key, default in database.parameters(database.sql_files("queries")[name])
              .items() if default is None]
    assert small_run.sql(name, **dict.fromkeys(needed, "the")).columns


def test_every_relation_and_query_is_listed():
    listed = database.catalogue().read_all().to_pylist()
    assert {row["name"] for row in listed} == {name for _, name, _ in FILES}


def test_disagreements_are_documents_on_which_one_model_is_right(small_run):
    got = small_run.sql("disagreements")
    wide = small_run.sql("predictions").pivot("model", index="document_id", values="correct")
    expected = wide.filter(wide["bert"] != wide["roberta"])
    assert sorted(got["document_id"]) == sorted(expected["document_id"])
    words = small_run.sql("words")
    for row in got.head(10).iter_rows(named=True):
        for model in ("bert", "roberta"):
            own = words.filter(model=model, document_id=row["document_id"])
            ranked = own.sort("contribution", descending=True)["form"].unique(maintain_order=True)
            assert row[f"{model}_top_words"][0] == ranked[0]
            assert len(set(row[f"{model}_top_words"])) == len(row[f"{model}_top_words"]) <= 5


def test_over_attended_and_neglected_are_told_apart_by_lift(small_run):
    statistics = small_run.sql("word_statistics")
    passed = statistics.filter(
        (statistics["q"] <= 0.05) & (statistics["consistency"] >= 0.95)
        & (statistics["mass_ratio"].fill_null(float("inf")) >= 1.2)
    )
    for relation, sign in (("over_attended", 1), ("neglected", -1)):
        got = small_run.sql(relation).select("model", "score", "form").rows()
        expected = passed.filter((passed["lift"] - 1) * sign > 0)
        assert sorted(got) == sorted(expected.select("model", "score", "form").rows())


@pytest.fixture(scope="module")
def answers(small_run):
    """(model, row) -> what the shards hold of a document, its lists as Python lists."""
    found = {}
    for name in small_run.plan.shard_names():
        documents = {row["row"]: row for row in read(small_run.folder / "documents" / name)}
        for model, made in itertools.product(small_run.plan.models, ("attention", "scores")):
            for row in read(small_run.folder / model / made / name):
                entry = found.setdefault((model, row["row"]), dict(documents[row["row"]]))
                # attention has a contribution as well, by pieces.
                entry |= row if made == "scores" else {
                    key: row[key] for key in ("predicted", "confidence", "n_pieces", "truncated")}
    return found


def read(path):
    return pq.read_table(path).to_pylist()


def wrong(answers, model):
    """A model's errors."""
    return [entry for (of, _), entry in answers.items()
            if of == model and entry["predicted"] != entry["label"]]


def share(entry, score, form):
    """What a form takes of a score's positive parts."""
    positive = [max(x, 0) for x in entry[score]]
    own = sum(positive[place] for place in covered(entry, form))
    return own / sum(positive) if sum(positive) else 0


def covered(entry, form):
    """Places of a document that a word, or two words side by side, stand in."""
    words, n = form.split(), len(form.split())
    return {place + i for place in range(len(entry["form"])) for i in range(n)
            if entry["form"][place : place + n] == words}


def top_words(entry, n, distinct):
    ranked = [word for _, word in
              sorted(zip(entry["contribution"], entry["form"], strict=True), reverse=True)]
    return (list(dict.fromkeys(ranked)) if distinct else ranked)[:n]


def test_errors_are_the_most_confident_ones_with_their_top_words(small_run, answers):
    got = small_run.sql("errors", limit=7)
    for model in ("bert", "roberta"):
        worst = sorted(wrong(answers, model),
                       key=lambda entry: (-entry["confidence"], entry["document_id"]))[:7]
        rows = got.filter(model=model).rows(named=True)
        assert len(rows) == 7
        for row, entry in zip(rows, worst, strict=True):
            assert [row[key] for key in ("document_id", "label", "predicted", "text")] == [
                entry[key] for key in ("document_id", "label", "predicted", "text")]
            assert row["confidence"] == pytest.approx(entry["confidence"], abs=6e-4)
            assert row["top_words"] == top_words(entry, 5, distinct=False)
    assert small_run.sql("errors", model="bert", limit=7).equals(got.filter(model="bert"))


@pytest.mark.parametrize("form", ["the", "and", ".", "of the"])
def test_examples_are_the_errors_in_which_the_word_has_the_largest_share(small_run, answers, form):
    got = small_run.sql("examples", form=form, limit=9)
    assert len(got)
    for model in ("bert", "roberta"):
        holding = [entry for entry in wrong(answers, model) if covered(entry, form)]
        expected = sorted(holding, key=lambda entry: (-share(entry, "contribution", form),
                                                      entry["document_id"]))[:9]
        rows = got.filter(model=model).rows(named=True)
        assert [row["document_id"] for row in rows] == [e["document_id"] for e in expected]
        for row, entry in zip(rows, expected, strict=True):
            for score in ("contribution", "uniform"):
                assert row[f"{score}_share"] == pytest.approx(share(entry, score, form), abs=6e-4)
            assert row["text"] == entry["text"]


def test_disagreements_have_each_models_answer_and_distinct_top_words(small_run, answers):
    got = {row["document_id"]: row for row in small_run.sql("disagreements").rows(named=True)}
    rows = {row for _, row in answers}
    differing = [row for row in rows
                 if len({answers[m, row]["predicted"] for m in ("bert", "roberta")}) == 2]
    assert sorted(got) == sorted(answers["bert", row]["document_id"] for row in differing)
    for row in differing:
        for model in ("bert", "roberta"):
            entry = answers[model, row]
            shown = got[entry["document_id"]]
            assert shown["text"] == entry["text"]
            assert shown[f"{model}_predicted"] == entry["predicted"]
            assert shown[f"{model}_confidence"] == entry["confidence"]
            assert shown[f"{model}_top_words"] == top_words(entry, 5, distinct=True)


def test_model_summary_is_that_of_the_shards(small_run, answers):
    for row in small_run.sql("model_summary").rows(named=True):
        own = [entry for (model, _), entry in answers.items() if model == row["model"]]
        errors = wrong(answers, row["model"])
        assert (row["n_documents"], row["n_errors"]) == (len(own), len(errors))
        assert row["n_truncated"] == sum(entry["truncated"] for entry in own)
        for name, value in {
            "accuracy": 1 - len(errors) / len(own),
            "mean_confidence": np.mean([entry["confidence"] for entry in own]),
            "mean_confidence_errors": np.mean([entry["confidence"] for entry in errors]),
            "mean_pieces": np.mean([entry["n_pieces"] for entry in own]),
        }.items():
            assert row[name] == pytest.approx(value, rel=1e-12)


def test_words_are_tested_on_the_masses_of_all_documents(small_run, answers, tmp_path, monkeypatch):
    """Many blocks; effect sizes and z against plain sums over documents."""
    monkeypatch.setattr(blocks, "PAIRS_PER_BLOCK", 300)
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    options = Options(min_documents=30, permutations=10, bootstrap=10)
    build.build(folder, small_run.plan, options)
    made = clsight.open(folder)
    holding = Counter(form for (model, _), entry in answers.items() if model == "bert"
                      for form in set(entry["form"]))
    tested = made.sql("word_statistics").filter(model="bert", score="contribution")
    assert set(tested["form"]) == {form for form, n in holding.items() if n >= 30}
    strata = made.sql("strata").filter(model="bert").sort("row")
    by_reference = [strata.filter(reference=name)["stratum"].to_numpy()
                    for name in ("predicted", "label")]
    own = [answers["bert", row] for row in strata.filter(reference="label")["row"]]
    error = np.array([entry["predicted"] != entry["label"] for entry in own])
    for row in tested.rows(named=True):
        x = np.array([share(entry, "contribution", row["form"]) for entry in own])
        assert row["n_documents"] == holding[row["form"]]
        assert row["mass_errors"] == pytest.approx(x[error].mean(), rel=1e-6)
        assert row["mass_correct"] == pytest.approx(x[~error].mean(), rel=1e-6)
        z = [t / np.sqrt(v) for t, v in
             (statistic(x, error, stratum) for stratum in by_reference)]
        assert [row["z_predicted"], row["z_label"]] == pytest.approx(z, abs=1e-5)
        assert row["z"] == pytest.approx(weaker(np.array(z)), abs=1e-5)


def strata_of(sizes, seed=0):
    """strata.sql over made predictions: a class of each size, 30 % of each class errors."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    n = len(label)
    predicted = np.where(rng.random(n) < 0.3, rng.integers(0, len(sizes), n), label)
    connection = duckdb.connect()
    connection.register("documents", pa.table({
        "row": np.arange(n), "n_words": rng.integers(1, 60, n), "slice": pa.nulls(n, pa.string())}))
    connection.execute("CREATE TABLE tested_documents AS SELECT row FROM documents")
    connection.register("predictions", pa.table({
        "model": ["m"] * n, "row": np.arange(n), "label": label, "predicted": predicted,
        "confidence": rng.random(n).round(2), "correct": label == predicted}))
    connection.execute(database.sql_files("views")["strata"])
    return connection.sql("FROM strata JOIN documents USING (row) JOIN "
                          "(SELECT row, confidence FROM predictions) USING (row)").pl()


@pytest.mark.parametrize(("size", "bins", "lengths"), [
    (1, 1, 1), (19, 1, 1), (45, 2, 1), (150, 7, 1), (600, 10, 3), (2000, 10, 3), (40_000, 21, 8),
])
def test_strata_are_bins_of_confidence_and_length_with_documents_enough(size, bins, lengths):
    own = strata_of([size, 5000]).filter(reference="label")
    assert set(own.filter(**{"class": 0})["confidence_bins"]) == {bins}
    for values, group in own.group_by("class"):
        by_bin = group.group_by("confidence_bin")
        counts = by_bin.len()["len"]
        assert counts.max() - counts.min() <= 1
        edges = sorted((part["confidence"].min(), part["confidence"].max()) for _, part in by_bin)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(edges))
        if values[0] == 0:
            assert max(group["length_bins"]) == lengths
        for _, part in by_bin:
            spans = sorted((inside["n_words"].min(), inside["n_words"].max())
                           for _, inside in part.group_by("length_bin"))
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
            assert len(part) < 40 or len(spans) > 1
    assert own.group_by("stratum").agg(own["class"].name).height == own["stratum"].max() + 1
    assert own.select("class", "confidence_bin", "length_bin", "stratum").unique().height == (
        own["stratum"].n_unique())


def test_stratification_counts_what_can_be_compared(small_run):
    strata = small_run.sql("strata")
    for row in small_run.sql("stratification").rows(named=True):
        own = strata.filter(**{key: row[key] for key in ("model", "reference", "class")})
        by_stratum = [part["error"] for _, part in own.group_by("stratum")]
        comparable = [error for error in by_stratum if 0 < error.sum() < len(error)]
        assert row["n_documents"] == len(own)
        assert row["n_errors"] == own["error"].sum()
        assert row["n_strata"] == len(by_stratum)
        assert row["smallest_stratum"] == min(map(len, by_stratum))
        assert row["n_comparable"] == sum(map(len, comparable))
        assert row["n_comparable_errors"] == sum(error.sum() for error in comparable)


def test_mass_adds_up_occurrences_and_is_0_where_no_score_is_positive(tmp_path):
    shards.write(pa.table({"row": [0, 1], "form": [["a", "b", "a", "c"], ["a"]]}),
                 tmp_path / "documents" / "00000.parquet")
    scores = {"uniform": [[0.1, 0.2, 0.3, 0.0], [0.5]],
              "contribution": [[1.0, -2.0, 2.0, 1.0], [-1.0]]}
    shards.write(pa.table({"model": ["m", "m"], "row": [0, 1]} | scores),
                 tmp_path / "m" / "scores" / "00000.parquet")
    connection = duckdb.connect(config={"file_search_path": str(tmp_path)})
    connection.execute(database.sql_files("views")["word_mass"])
    got = connection.sql('FROM word_mass ORDER BY "row", form').to_arrow_table().to_pylist()
    assert [list(row.values())[1:] for row in got] == [
        [0, "a", 4, 2, pytest.approx(0.4 / 0.6), 0.75],
        [0, "b", 4, 1, pytest.approx(0.2 / 0.6), 0],
        [0, "c", 4, 1, 0, 0.25],
        [1, "a", 1, 1, 1, 0],
    ]
