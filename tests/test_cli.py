"""The command line: exit codes, formats, help; stdout is data and stderr is progress."""

import io
import json
import os
import pty
import shutil
import subprocess
import sys

import click
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clsight.cli import cli
from conftest import DEMO, demo_models


def clsight(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "clsight.cli", *map(str, arguments)],
                          capture_output=True, check=False, **options)


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_has_help_with_an_example(name):
    answer = clsight(name, "-h", text=True)
    assert answer.returncode == 0
    assert f"clsight {name}" in answer.stdout.partition("Example:")[2]
    assert isinstance(cli.commands[name], click.Command)


def test_the_main_job_and_its_second_call(reviews, tmp_path):
    pq.write_table(pq.read_table(reviews).slice(0, 200), tmp_path / "d.parquet")
    models = [part for pair in demo_models().items() for part in ("--model", "=".join(pair))]
    command = ["run", tmp_path / "d.parquet", "--text", "text", "--label", "label", *models,
               "-o", tmp_path / "run", "--min-documents", "20"]
    first, second = (clsight(*command, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    for answer in (first, second):
        assert "accuracy" in answer.stdout
        assert "bert" in answer.stdout
    assert "documents" in first.stderr
    assert "nothing to do" in second.stderr
    status = clsight("status", tmp_path / "run", text=True)
    assert status.returncode == 0
    assert "200 rows" in status.stdout
    assert status.stdout.splitlines()[0].endswith("complete")


def test_all_formats_hold_the_same_rows(small_run):
    expected = small_run.sql("SELECT * FROM predictions ORDER BY model, document_id")
    answers = {
        form: clsight("query", small_run.folder,
                      "SELECT * FROM predictions ORDER BY model, document_id", "--format", form)
        for form in ("json", "csv", "parquet", "arrow", "table")
    }
    assert {answer.returncode for answer in answers.values()} == {0}
    rows = json.loads(answers["json"].stdout)
    assert rows == expected.to_dicts()
    assert pl.read_csv(io.BytesIO(answers["csv"].stdout)).equals(expected)
    assert pl.read_parquet(io.BytesIO(answers["parquet"].stdout)).equals(expected)
    assert pl.read_ipc_stream(io.BytesIO(answers["arrow"].stdout)).equals(expected)
    table = answers["table"].stdout.decode()
    assert "1,100 more rows" in table
    assert all(column in table for column in expected.columns)


def test_lists_survive_csv(small_run):
    answer = clsight("query", small_run.folder, "disagreements", "--format", "csv")
    first = pl.read_csv(io.BytesIO(answer.stdout)).row(0, named=True)
    assert isinstance(json.loads(first["bert_top_words"]), list)


def test_parameters_reach_the_query(small_run):
    answer = clsight("query", small_run.folder, "errors", "-p", "model=bert", "-p", "limit=3",
                     "--format", "json")
    rows = json.loads(answer.stdout)
    assert len(rows) == 3
    assert {row["model"] for row in rows} == {"bert"}


def test_query_alone_lists_what_can_be_asked(small_run):
    answer = clsight("query", small_run.folder, text=True)
    assert "over_attended" in answer.stdout
    assert "examples" in answer.stdout


@pytest.mark.parametrize(("sql", "message"), [
    ("DROP VIEW words", "one SELECT statement"),
    ("COPY (SELECT 1) TO 'x.csv'", "one SELECT statement"),
    ("SELECT 1; SELECT 2", "one SELECT statement"),
    ("nonsense", "no query, relation or check 'nonsense'"),
    ("SELECT * FROM nowhere", "nowhere"),
    ("SELECT", "clsight:"),
    ("examples", "needs -p form="),
])
def test_wrong_questions_get_a_sentence(small_run, sql, message):
    answer = clsight("query", small_run.folder, sql, text=True)
    assert answer.returncode in (1, 2)
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["query", "nowhere", "words"], 2, "does not exist"),
    (["status", "."], 2, "not a clsight run"),
    (["run", "none.csv", "--text", "t", "--label", "l", "--model", f"a={DEMO}/bert", "-o", "r"], 2,
     "no dataset at none.csv"),
    (["run", "x.csv", "--text", "body", "--label", "l", "--model", f"a={DEMO}/bert", "-o", "r"], 2,
     "no column 'body'"),
    (["run", "x.csv", "--text", "t", "--label", "l", "--model", "a=./none", "-o", "r"], 2,
     "no model folder at ./none"),
    (["run", "x.csv", "--text", "t", "--label", "l", "--model", "bert", "-o", "r"], 2,
     "NAME=VALUE"),
    (["run", "x.csv", "--text", "t", "--label", "l", "--model", f"a={DEMO}/bert", "-o", "r"], 1,
     "label 5 is not among a's"),
    (["run", "x.csv"], 2, "Missing option"),
    (["fly"], 2, "No such command"),
])
def test_bad_calls_end_with_their_code_and_a_sentence(arguments, code, message, tmp_path):
    (tmp_path / "x.csv").write_text("t,l\nfine,0\nodd,5\n")
    answer = clsight(*arguments, text=True, cwd=tmp_path)
    assert answer.returncode == code
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_importing_and_asking_load_no_torch(small_run):
    code = (
        "import sys, clsight; assert not {'torch', 'duckdb'} & sys.modules.keys();"
        "sys.argv = ['clsight', 'query', sys.argv[1], 'words', '--format', 'json'];"
        "from clsight.cli import cli; cli(standalone_mode=False);"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(small_run.folder)], check=False,
                            capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_extraction_needs_neither_duckdb_nor_polars_nor_datasets():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['duckdb', 'polars', 'datasets', 'click']));"
        "import clsight.extract"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_that_answers_can_answer_in_json(small_run, tmp_path):
    run = small_run.folder
    answers = {
        "verify": ["verify", run], "query": ["query", run, "summary"],
        "report": ["report", run, "-o", tmp_path / "r.html"],
        "export": ["export", run, "predictions", "-o", tmp_path / "p.parquet"],
        "heatmap": ["heatmap", run, "--model", "bert", "--document", "1", "-o", tmp_path / "h.svg"],
        "status": ["status", run],
    }
    said = {}
    for name, command in answers.items():
        answer = CliRunner().invoke(cli, [*map(str, command), "--json"])
        assert answer.exit_code == 0, answer.stderr
        said[name] = json.loads(answer.stdout)
    assert said["verify"] == {"run": str(run), "problems": []}
    assert said["query"] == small_run.sql("summary").to_dicts()
    assert said["report"] == {"file": str(tmp_path / "r.html"),
                              "bytes": (tmp_path / "r.html").stat().st_size}
    assert said["export"]["rows"] == 1200
    assert said["heatmap"]["bytes"] == (tmp_path / "h.svg").stat().st_size
    assert said["status"]["state"] == "complete"


@pytest.mark.parametrize(("words", "expected"), [
    (["query", "RUN", "over"], ["over_attended"]),
    (["export", "RUN", "model_d"], ["model_differences"]),
    (["heatmap", "RUN", "--model", "ro"], ["roberta"]),
    (["heatmap", "nowhere", "--model", "ro"], []),
    (["verify", "RUN", "--rep"], ["--repair"]),
    (["rep"], ["report"]),
])
def test_a_shell_completes(small_run, words, expected):
    """As the script asks that `clsight completion bash` prints."""
    line = ["clsight", *(str(small_run.folder) if word == "RUN" else word for word in words)]
    environment = {**os.environ, "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1),
                   "_CLSIGHT_COMPLETE": "bash_complete"}
    answer = subprocess.run(
        [sys.executable, "-c", "from clsight.cli import cli; cli(prog_name='clsight')"],
        env=environment, capture_output=True, text=True, check=False)
    assert [line.split(",")[1] for line in answer.stdout.split()] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell):
    script = clsight("completion", shell, text=True).stdout
    assert f"_CLSIGHT_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True)


def test_what_comes_next_is_said_to_people_alone(small_run):
    """A terminal is told; a program that reads stderr is not."""
    command = [sys.executable, "-m", "clsight.cli", "status", str(small_run.folder)]
    assert "next:" not in subprocess.run(command, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    os.close(theirs)
    assert "next: clsight query" in os.read(ours, 10_000).decode()
    os.close(ours)
