"""Texts, names, plans and databases from strangers reach nothing beyond the run."""

import json
import shutil
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest

import clsight
from clsight import database, plan
from clsight.errors import ClsightError, UsageError, printable
from clsight.output import shown

SECRET = "the password is 17"


@pytest.fixture
def here(small_run, tmp_path, monkeypatch):
    """A run, and a secret beside it, in the current folder."""
    shutil.copytree(small_run.folder, tmp_path / "run")
    (tmp_path / "documents").mkdir()
    (tmp_path / "bert").mkdir()
    for name in ("secret.csv", "documents/secret.csv", "bert/secret.csv"):
        (tmp_path / name).write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("sql", [
    "FROM read_text('secret.csv')", "FROM read_text('{here}/secret.csv')",
    "FROM read_text('documents/secret.csv')", "FROM read_text('documents/*.csv')",
    "FROM read_text('bert/secret.csv')", "FROM read_text('*/*.csv')",
    "FROM read_text('run/../secret.csv')", "FROM read_text('{here}/run/../secret.csv')",
    "FROM 'secret.csv'", "FROM read_csv('{here}/secret.csv')", "FROM glob('{here}/*')",
    "FROM glob('*')", "FROM read_blob('/proc/self/environ')", "FROM sniff_csv('secret.csv')",
    "FROM parquet_metadata('{here}/secret.csv')", "FROM read_json('http://127.0.0.1:1/x')",
    "SELECT getenv('HOME')", "FROM private", "FROM duckdb_secrets()",
    "FROM query('COPY (SELECT 1) TO ''{here}/run/new.csv''')",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{here}/run/new.csv'",
    "COPY (SELECT 1) TO '{here}/run/new.csv'", "ATTACH '{here}/run/new.duckdb' AS x",
    "SET enable_external_access = true", "PRAGMA enable_profiling", "INSTALL httpfs", "LOAD httpfs",
    "CREATE TEMP TABLE x AS SELECT 1", "DROP VIEW words", "EXPORT DATABASE '{here}/run/new'",
    "WITH x AS (INSERT INTO tested_words SELECT * FROM tested_words RETURNING *) FROM x",
    "CALL enable_logging()", "VACUUM", "CHECKPOINT", "SELECT 1; SELECT 2", "EXECUTE x",
])
def test_questions_read_the_run_and_nothing_else(here, sql):
    private = pa.table({"secret": [SECRET]})
    files = sorted(path.name for path in (here / "run").iterdir())
    with database.connect(here / "run") as connection:
        with pytest.raises(ClsightError) as refused:
            print(database.query(connection, sql.format(here=here), {}).read_all())
        assert SECRET not in str(refused.value)
        assert database.query(connection, "words", {}).read_all().num_rows
    assert sorted(path.name for path in (here / "run").iterdir()) == files
    assert private.num_rows


def test_all_connections_to_a_run_are_locked(here):
    run = clsight.open("run")
    with database.connect(here / "run") as one, database.connect(here / "run") as other:
        for connection in (one, other):
            assert database.failed_checks(connection) == {}
            with pytest.raises(ClsightError, match="disabled by configuration"):
                database.query(connection, f"FROM read_text('{here}/secret.csv')", {}).read_all()
        assert run.sql("documents").height == 600


def test_parameters_are_values_not_sql(here):
    run = clsight.open("run")
    for form in ("x' OR 1=1 --", "'; DROP TABLE x; --", "a\0b", "$form", "\N{PILE OF POO}", ""):
        assert run.sql("examples", form=form).is_empty()


def test_wrong_parameters_are_a_sentence(here):
    for given in ({"limit": "many"}, {"model": "\udcff"}, {"other": "1"}):
        with pytest.raises(ClsightError):
            clsight.open("run").sql("errors", **given)


def test_errors_while_an_answer_is_read_are_sentences(here):
    with pytest.raises(ClsightError, match="Could not convert"):
        clsight.open("run").sql("SELECT form::INTEGER FROM words")


def test_a_database_of_strangers_cannot_read_other_files(here):
    with duckdb.connect(here / "run" / "clsight.duckdb") as connection:
        connection.execute(f"CREATE OR REPLACE VIEW findings AS FROM read_text('{here}/*.csv')")
        connection.execute("CREATE OR REPLACE VIEW words AS FROM read_text('secret.csv')")
    for relation in ("words", "SELECT * FROM findings"):
        with pytest.raises(ClsightError, match="disabled by configuration"):
            clsight.open("run").sql(relation)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a'; DROP", "documents", "a/b", ".a"])
def test_a_plan_of_strangers_names_no_other_folder(here, name):
    for file in plan.FILES:
        stored = json.loads((here / "run" / file).read_text())
        del stored["sha256"]
        stored["models"][name] = stored["models"].pop("bert")
        (here / "run" / file).write_text(json.dumps(
            {"sha256": plan._sha256(stored), **stored}))
    with pytest.raises(UsageError, match="cannot be a model's name"):
        clsight.open("run")


def test_nothing_moves_the_terminal_cursor():
    hostile = "a\x1b[2Jb\x07\r\u202ec\udcff\0"
    assert printable(hostile) == "a�[2Jb���c��"
    assert shown(f"{hostile}\n") == printable(hostile) + "�"
    answer = subprocess.run(
        [sys.executable, "-m", "clsight.cli", "query", "\x1b[31mrun", "words"],
        capture_output=True, check=False)
    assert answer.returncode == 2
    assert b"\x1b" not in answer.stderr
