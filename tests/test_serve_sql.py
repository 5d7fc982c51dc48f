"""Free SQL over HTTP: answered in a process with limits, which reads the run and nothing else."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from serving import bytes_of, detail, serving

SECRET = "the password is 17"


@pytest.fixture(scope="module")
def client(small_run):
    before = bytes_of(small_run.folder)
    with serving(small_run.folder, "--allow-sql") as client:
        yield client
    assert bytes_of(small_run.folder) == before


def ask(client, sql, form="json"):
    return client.post("/api/sql", json={"sql": sql, "format": form})


def test_answers_are_those_of_the_database(client, small_run):
    sql = "SELECT * FROM predictions ORDER BY model, document_id"
    expected = small_run.sql(sql)
    answers = {form: ask(client, sql, form) for form in ("json", "csv", "arrow", "parquet")}
    assert {answer.headers["x-rows"] for answer in answers.values()} == {"1200"}
    assert {answer.headers["x-more"] for answer in answers.values()} == {"false"}
    assert answers["json"].json() == expected.to_dicts()
    assert pl.read_csv(io.BytesIO(answers["csv"].content)).equals(expected)
    assert pl.read_ipc_stream(io.BytesIO(answers["arrow"].content)).equals(expected)
    assert pl.read_parquet(io.BytesIO(answers["parquet"].content)).equals(expected)


def test_rows_are_limited_and_it_says_so(client):
    answer = ask(client, "SELECT range FROM range(10001)")
    assert (len(answer.json()), answer.headers["x-more"]) == (10_000, "true")
    assert answer.json()[-1] == {"range": 9_999}


REFUSED = [
    "FROM read_csv('/etc/passwd')", "FROM read_text('/etc/passwd')", "FROM '/etc/passwd'",
    "FROM glob('/*')", "FROM read_blob('/proc/self/environ')", "FROM read_text('{secret}')",
    "FROM read_duckdb('{secret}')", "FROM read_json('http://127.0.0.1:1/x')",
    "SELECT getenv('HOME')", "FROM query('COPY (SELECT 1) TO ''{run}/new.csv''')",
    "COPY (SELECT 1) TO '{run}/new.csv'", "COPY words TO '{run}/bert/scores/00009.parquet'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/new.csv'", "EXPORT DATABASE '{run}/new'",
    "ATTACH '{run}/new.duckdb' AS x", "ATTACH ':memory:' AS x", "INSTALL httpfs", "LOAD httpfs",
    "PRAGMA version", "PRAGMA enable_profiling", "SET memory_limit = '100GB'",
    "RESET memory_limit", "CALL enable_logging()", "FROM enable_logging()", "USE memory",
    "CREATE TEMP TABLE x AS SELECT 1", "DROP VIEW words", "DELETE FROM tested_words",
    "WITH x AS (INSERT INTO tested_words FROM tested_words RETURNING *) FROM x",
    "SELECT 1; SELECT 2", "SELECT 1; COPY (SELECT 1) TO '{run}/new.csv'", "VACUUM", "CHECKPOINT",
    "PREPARE x AS SELECT 1", "EXECUTE x", "BEGIN", "SELECT", "nonsense", "SELECT * FROM nowhere",
    "SELECT $x", "SELECT 'a'::INTEGER", "\0", "FROM python_map_function((SELECT 1))",
    "SELECT unnest(test_all_types) FROM test_all_types()",
]


def test_whatever_is_no_reading_of_the_run_is_refused(client, small_run, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    before = bytes_of(small_run.folder)
    with ThreadPoolExecutor(3) as threads:
        answers = threads.map(lambda sql: ask(client, sql.format(
            run=small_run.folder, secret=tmp_path / "secret")), REFUSED)
        for sql, answer in zip(REFUSED, answers, strict=True):
            assert answer.status_code == 400, sql
            assert SECRET not in detail(answer)
            assert "root:" not in detail(answer)
            assert "Traceback" not in detail(answer)
    assert bytes_of(small_run.folder) == before


ENDLESS = [
    "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT 1 FROM t) SELECT count(*) FROM t",
    "SELECT sum(a.range * b.range) FROM range(10000000) AS a, range(10000000) AS b",
]


def test_endless_questions_are_ended_while_others_are_answered(client, small_run):
    started = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, client, sql) for sql in ENDLESS]
        time.sleep(3)
        assert client.get("/api/relations/model_summary").status_code == 200
        for child in children(client.process.pid):
            assert_has_nothing_of_the_server(child, small_run.folder)
        answers = [one.result() for one in asked]
    for answer in answers:
        assert answer.status_code == 422
        assert "longer than 10 seconds" in detail(answer) or "processor time" in detail(answer)
    assert time.monotonic() - started < 20
    assert children(client.process.pid) == []


def children(process):
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [Path("/proc", child) for path in found for child in path.read_text().split()]


def assert_has_nothing_of_the_server(process, run):
    assert (process / "environ").read_bytes() == b""
    files = {str(path.readlink()) for path in (process / "fd").iterdir()}
    assert not any("socket" in name for name in files)
    opened = [name for name in files if name.startswith("/") and name != "/dev/null"]
    assert all(name.startswith(str(run)) for name in opened)
    limits = (process / "limits").read_text().splitlines()
    said = {line[:25].strip(): line[25:].split()[0] for line in limits}
    assert said["Max file size"] == said["Max core file size"] == "0"
    assert said["Max cpu time"] == "20"
    assert said["Max address space"] == str(3 << 30)


@pytest.mark.parametrize("sql", [
    "SELECT array_agg(x) FROM (SELECT repeat('y', 1000) || range AS x FROM range(2000000))",
    "SELECT repeat('x', 200000000)", "SELECT list(range) FROM range(300000000)",
    "SELECT repeat('x', 10000) || range FROM range(10000)",
])
def test_large_questions_are_ended(client, sql):
    answer = ask(client, sql)
    assert answer.status_code == 422
    assert "memory" in detail(answer) or "64 MiB" in detail(answer)


def test_pages_of_others_cannot_ask(client):
    """A browser sends other types of a body to any address, without asking first."""
    body = b'{"sql": "SELECT 1"}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/api/sql", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 422
    answer = client.post("/api/sql", content=b'{"sql":', headers={
        "Content-Type": "application/json"})
    assert (answer.status_code, detail(answer)) == (422, "the body is no JSON")
    for wrong in ({}, {"sql": ""}, {"sql": "x" * 100_001}, {"sql": "SELECT 1", "run": "/etc"},
                  {"sql": "SELECT 1", "format": "xml"}, {"sql": ["SELECT 1"]}):
        assert client.post("/api/sql", json=wrong).status_code == 422


def test_the_process_can_write_nothing_even_without_the_lock_of_the_database(tmp_path):
    """COPY … TO is refused by the kernel where DuckDB would let it through."""
    code = ("import duckdb, sys; from clsight.serve import child; child.limit();"
            "duckdb.sql(f\"COPY (SELECT 42) TO '{sys.argv[1]}/new.csv'\")")
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                            text=True, check=False)
    assert "File too large" in answer.stderr
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
