"""The SQL is part of the product: headers, stable columns, every query runs."""

import pytest

from clsight import database

STABLE = {
    "documents": "document_id row text label n_words",
    "predictions": "model document_id label predicted confidence margin correct n_pieces truncated",
    "words": "model document_id position form start_char end_char uniform classifier projected "
             "contribution",
    "word_statistics": "model score form n_documents n_errors mass_errors mass_correct mass_ratio "
                       "presence_ratio intensity_ratio lift z p q consistency",
    "over_attended": "rank model score form n_documents n_errors mass_errors mass_correct "
                     "mass_ratio presence_ratio intensity_ratio lift z p q consistency",
    "neglected": "rank model score form n_documents n_errors mass_errors mass_correct mass_ratio "
                 "presence_ratio intensity_ratio lift z p q consistency",
    "model_summary": "model n_documents n_errors accuracy",
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
        assert f"CREATE OR REPLACE VIEW {name} AS" in sql
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
    assert {row["name"] for row in listed} == {name for kind, name, _ in FILES if kind != "checks"}


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
