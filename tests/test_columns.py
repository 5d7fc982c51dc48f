"""Columns that dashboards rely on say what they hold."""

import duckdb
import pytest

from clsight import database, pipeline, tables
from conftest import demo_models
from test_sql import STABLE


@pytest.fixture(scope="module")
def described(small_run):
    """Relation -> column -> what it holds."""
    found = {}
    for row in small_run.sql("columns").rows(named=True):
        found.setdefault(row["relation"], {})[row["column"]] = row["what"]
    return found


@pytest.mark.parametrize("relation", [*STABLE, "under_attended"])
def test_every_column_of_a_stable_relation_is_described(small_run, described, relation):
    columns = small_run.sql(f"FROM {relation} LIMIT 0").columns
    assert list(described[relation]) == columns
    assert [name for name, what in described[relation].items() if not what] == []
    assert len(set(described[relation].values())) == len(columns)


def test_all_relations_are_listed_with_their_columns_and_types(small_run):
    with database.connect(small_run.folder) as connection:
        expected = {
            (relation, *column[:2]) for relation in database.sql_files("views")
            for column in connection.sql(f"DESCRIBE {relation}").fetchall()}
    listed = small_run.sql("columns").select("relation", "column", "type").rows()
    assert set(listed) == expected
    assert len(listed) == len(expected)


def test_a_column_means_the_same_wherever_it_is_taken_over(described):
    for relation in ("over_attended", "neglected", "under_attended"):
        assert {name: what for name, what in described[relation].items() if name != "rank"} == (
            described["word_statistics"])
    for relation in ("predictions", "words", "disagreements"):
        assert described[relation]["document_id"] == described["documents"]["document_id"]
    assert described["disagreements"]["bert_predicted"].endswith(
        described["predictions"]["predicted"])


def test_the_database_file_carries_the_comments(small_run, described):
    """For any tool that opens it, without clsight."""
    with duckdb.connect(small_run.folder / "clsight.duckdb", read_only=True) as connection:
        stored = dict(connection.sql(
            "SELECT column_name, comment FROM duckdb_columns() "
            "WHERE table_name = 'word_statistics' AND comment IS NOT NULL").fetchall())
    assert stored.items() <= described["word_statistics"].items()
    assert described["word_statistics"].keys() - stored.keys() == {"model"}  # see predictions


def test_scores_of_any_layer_and_columns_of_any_model_are_described(reviews, tmp_path):
    model = demo_models()["bert"]
    run = pipeline.run(str(reviews), text="text", label="label", output=tmp_path / "run",
                       models={"a.b": model, "c-d_predicted": model}, dtype="float32",
                       scores=",".join([*tables.SCORES, "uniform_0", "contribution_0"]),
                       options=pipeline.Options(bootstrap=10, permutations=100))
    columns = run.sql("columns")
    for relation in ("words", "disagreements"):
        own = columns.filter(relation=relation)
        assert own["column"].to_list() == run.sql(f"FROM {relation} LIMIT 0").columns
        assert own["what"].null_count() == 0
        assert own["what"].n_unique() == len(own)
    assert columns.filter(relation="words", column="uniform_0")["what"].item().endswith("layer 0")
    assert columns.height == columns.unique(["relation", "column"]).height
