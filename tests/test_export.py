"""Every relation in every target, row by row as DuckDB has it; what hostile input and faults do."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import deltalake
import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from clsight import database, export
from clsight.errors import ClsightError, UsageError
from clsight.export import postgresql as target
from postgresql_server import programs, server

RELATIONS = [*database.sql_files("views"), "findings", "errors"]
FILES = ("x.parquet", "x.csv", "x.jsonl", "x.arrow", "x.duckdb")
HOSTILE = ["it's", 'a "quote"', "<script>alert(1)</script>", "'; DROP TABLE t; --", "a,b\tc",
           "{a,b}", "line\nline\r\nline", "\\N", "NULL", "", " ", "NaN", "nul\0nul", "\ufeff",
           "\N{GRINNING FACE}"]
BREAKS = ("SELECT i, if(i = 250000, error('broken in the middle'), 'x') AS text "
          "FROM range(300000) AS t(i)")


@pytest.fixture(scope="module")
def postgresql():
    if programs() is None:
        pytest.skip("no PostgreSQL server is installed (initdb is neither on the PATH nor in "
                    "/usr/lib/postgresql)")
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def frame_of(small_run):
    """The rows of a relation or query, as DuckDB hands them to Polars, and their types in SQL."""
    def read(asked):
        sql = database.sql_files("queries").get(asked, f"FROM {asked}")
        defaults = {k: v for k, v in database.parameters(sql).items() if v is not None}
        with database.connect(small_run.folder) as connection:
            relation = connection.sql(sql, params=defaults)
            return relation.pl(), dict(zip(relation.columns, map(str, relation.types), strict=True))

    return read


def same(got, expected):
    """The same columns and rows, in any order; sums made anew are not the same to the last bit."""
    assert got.columns == expected.columns
    got = got.cast(dict(expected.schema))
    order = [name for name, type_ in expected.schema.items() if not type_.is_nested()]
    assert_frame_equal(got.sort(order), expected.sort(order), rel_tol=1e-9, abs_tol=0)


def read_frame(path, types):
    """A file as a frame, by a reader that is not the writer."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    if path.suffix == ".arrow":
        return pl.read_ipc(path)
    if path.suffix == ".jsonl":
        return duckdb.read_json(str(path), columns=types, format="newline_delimited").pl()
    if path.suffix == ".csv":
        # A list's text is JSON.
        typed = ", ".join(f'"{name}"::{"JSON::" if type_.endswith("[]") else ""}{type_} AS "{name}"'
                          for name, type_ in types.items())
        return csv(path).project(typed).pl()
    with duckdb.connect(path, read_only=True) as connection:
        ((name,),) = connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()
        quoted = name.replace('"', '""')
        return connection.sql(f'FROM "{quoted}"').pl()


def csv(path):
    return duckdb.read_csv(str(path), all_varchar=True, header=True, allow_quoted_nulls=False)


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_reaches_every_file(small_run, frame_of, tmp_path, relation):
    expected, types = frame_of(relation)
    for name in FILES:
        exported = export.export(small_run.folder, relation, str(tmp_path / name))
        assert exported.n_rows == len(expected)
        same(read_frame(tmp_path / name, types), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_other_endings_are_the_same(small_run, tmp_path):
    for one, other in (("x.jsonl", "x.ndjson"), ("x.duckdb", "x.db")):
        for name in (one, other):
            export.export(small_run.folder, "errors", str(tmp_path / name))
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "x.ndjson").read_bytes()
    same(read_frame(tmp_path / "x.db", {}), read_frame(tmp_path / "x.duckdb", {}))


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_reaches_delta(small_run, frame_of, tmp_path, relation):
    exported = export.export(small_run.folder, relation, f"delta:{tmp_path / 'd'}")
    own = small_run.plan.fingerprint[:12]
    assert exported.where == f"the Delta table {tmp_path / 'd'}, run {own}"
    same(pl.read_delta(str(tmp_path / "d")), with_run(frame_of(relation)[0], own))


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_reaches_postgresql(small_run, frame_of, postgresql, tmp_path, relation):
    for _ in range(2):
        export.export(small_run.folder, relation, postgresql.address, table=f"every_{relation}")
    expected, types = frame_of(relation)
    made = tmp_path / "x.jsonl"
    made.write_text("\n".join(postgresql.sql(f"SELECT to_json(t) FROM every_{relation} AS t")))
    types = {"run_id": "VARCHAR"} | types
    got = read_frame(made, types) if len(expected) else pl.DataFrame(
        schema={"run_id": pl.String, **expected.schema})
    same(got, with_run(expected, small_run.plan.fingerprint[:12]))


def with_run(frame, run_id):
    return frame.select(pl.lit(run_id, pl.String).alias("run_id"), pl.all())


def shared(kind, tmp_path, postgresql):
    """A target of a kind, and how its rows are read."""
    if kind == "delta":
        return f"delta:{tmp_path / 'd'}", lambda: pl.read_delta(str(tmp_path / "d")).to_dicts()
    name = f"t_{tmp_path.name}"
    return postgresql.address, lambda: postgresql.rows(f'SELECT * FROM "{name}"')


def write(small_run, asked, place, tmp_path, run_id=None, **more):
    table = None if place.startswith("delta:") else f"t_{tmp_path.name}"
    return export.export(small_run.folder, asked, place, more, table, run_id)


@pytest.mark.parametrize("kind", ["delta", "postgresql"])
def test_runs_stand_side_by_side_and_are_replaced_one_by_one(small_run, tmp_path, postgresql, kind):
    place, read = shared(kind, tmp_path, postgresql)
    ids = ["one", "it's", 'a "b"/c%41=\N{GRINNING FACE}', ".."]
    for run_id in ids:
        for n in (5, 3):
            write(small_run, f"SELECT unnest(range({n})) AS i", place, tmp_path, run_id)
    assert by_run(read()) == {run_id: [0, 1, 2] for run_id in ids}
    write(small_run, "SELECT 1::BIGINT AS i WHERE false", place, tmp_path, "one")
    assert by_run(read()) == {run_id: [0, 1, 2] for run_id in ids[1:]}


def by_run(rows):
    """run_id -> sorted values of i."""
    return {run_id: sorted(row["i"] for row in rows if row["run_id"] == run_id)
            for run_id in {row["run_id"] for row in rows}}


@pytest.mark.parametrize("kind", ["delta", "postgresql"])
def test_a_failed_export_leaves_the_earlier_rows(small_run, tmp_path, postgresql, kind):
    place, read = shared(kind, tmp_path, postgresql)
    whole = BREAKS.replace("250000", "-1").replace("300000", "20000")
    write(small_run, whole, place, tmp_path, "one")
    before = read()
    assert len(before) == 20_000
    with pytest.raises(ClsightError, match="broken in the middle") as failure:
        write(small_run, BREAKS, place, tmp_path, "one")
    assert "Traceback" not in str(failure.value)
    assert read() == before


def test_what_the_server_refuses_in_the_middle_leaves_the_earlier_rows(
        small_run, tmp_path, postgresql):
    place, read = shared("postgresql", tmp_path, postgresql)
    write(small_run, "SELECT unnest(range(20000)) AS i", place, tmp_path)
    before = read()
    postgresql.sql(f'ALTER TABLE "t_{tmp_path.name}" ADD CHECK (i < 250000)')
    with pytest.raises(ClsightError, match="violates check constraint"):
        write(small_run, "SELECT unnest(range(300000)) AS i", place, tmp_path)
    assert read() == before


@pytest.mark.parametrize("name", FILES)
def test_a_failed_export_leaves_the_earlier_file(small_run, tmp_path, name):
    path, named = tmp_path / name, {"table": "t"} if name == "x.duckdb" else {}
    with pytest.raises(ClsightError, match="broken in the middle"):
        export.export(small_run.folder, BREAKS, str(path), **named)
    assert list(tmp_path.iterdir()) == []
    export.export(small_run.folder, "SELECT 1 AS i, 'x' AS text", str(path), **named)
    with pytest.raises(ClsightError, match="broken in the middle"):
        export.export(small_run.folder, BREAKS, str(path), **named)
    assert read_frame(path, {"i": "INTEGER", "text": "VARCHAR"}).rows() == [(1, "x")]
    assert list(tmp_path.iterdir()) == [path]


def test_exports_of_one_run_at_the_same_time_do_not_double(small_run, tmp_path, postgresql):
    place, read = shared("postgresql", tmp_path, postgresql)
    with ThreadPoolExecutor(4) as pool:
        asked = ["SELECT unnest(range(5000)) AS i"] * 8
        list(pool.map(lambda sql: write(small_run, sql, place, tmp_path), asked))
    assert sorted(row["i"] for row in read()) == list(range(5000))


def test_a_table_of_a_duckdb_file_is_replaced_and_others_stay(small_run, frame_of, tmp_path):
    path = tmp_path / "x.duckdb"
    export.export(small_run.folder, "documents", str(path))
    for n in (5, 3):
        export.export(small_run.folder, f"SELECT unnest(range({n})) AS i", str(path), table='a "t"')
    with duckdb.connect(path, read_only=True) as connection:
        assert connection.sql('FROM "a ""t"""').fetchall() == [(0,), (1,), (2,)]
        same(connection.table("documents").pl(), frame_of("documents")[0])


def in_sql(text):
    return " || chr(0) || ".join("'" + part.replace("'", "''") + "'" for part in text.split("\0"))


HOSTILE_SQL = "SELECT unnest([{}]) AS \"it's a \"\"name\"\", ; <b>\"".format(
    ", ".join(map(in_sql, HOSTILE)))
HOSTILE_NAME = "it's a \"name\", ; <b>"


@pytest.mark.parametrize("name", FILES)
def test_hostile_texts_and_names_reach_files_as_they_are(small_run, tmp_path, name):
    path = tmp_path / name
    named = {"table": "'; \"x\" <b>"} if name == "x.duckdb" else {}
    export.export(small_run.folder, HOSTILE_SQL, str(path), **named)
    got = csv(path).pl() if name == "x.csv" else read_frame(path, {HOSTILE_NAME: "VARCHAR"})
    assert got.columns == [HOSTILE_NAME]
    assert got[HOSTILE_NAME].to_list() == HOSTILE


@pytest.mark.parametrize("kind", ["delta", "postgresql"])
def test_hostile_texts_and_names_reach_shared_tables(small_run, tmp_path, postgresql, kind):
    place, read = shared(kind, tmp_path, postgresql)
    exported = write(small_run, HOSTILE_SQL, place, tmp_path, "'; DROP TABLE \"t\"; --")
    shown = [text.replace("\0", "\u2400") if kind == "postgresql" else text for text in HOSTILE]
    assert sorted(row[HOSTILE_NAME] for row in read()) == sorted(shown)
    assert [notice.startswith(f"{HOSTILE_NAME}: 1 texts hold U+0000") for notice in exported.notices
            ] == [True] * (kind == "postgresql")


def test_a_hostile_table_name_is_a_name(small_run, postgresql):
    name = 'x"; DROP TABLE x; --\N{GRINNING FACE}\''
    export.export(small_run.folder, "model_summary", postgresql.address, table=name)
    quoted = name.replace('"', '""')
    assert postgresql.sql(f'SELECT count(*) FROM "{quoted}"') == ["2"]


TYPES = """
SELECT * FROM (VALUES
    (1, 255::UTINYINT, 65535::USMALLINT, 4294967295::UINTEGER, 18446744073709551615::UBIGINT, true,
     'nan'::DOUBLE, 'infinity'::FLOAT, 'uniform'::score_name, ['a', NULL, '{"\\,}'],
     [1.5::DOUBLE, 'nan'], {'a': [1]}, 12.50::DECIMAL(9, 2), [[1], []]),
    (2, 0, 0, 0, 0, false, '-infinity', '-infinity', 'contribution', [], [], {'a': NULL}, 0, []),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
) AS t(i, u8, u16, u32, u64, b, d, f, enum, texts, numbers, struct, exact, lists)
"""


@pytest.mark.parametrize("kind", ["delta", "postgresql", "x.parquet", "x.arrow", "x.duckdb"])
def test_types(small_run, tmp_path, postgresql, kind):
    if kind in ("delta", "postgresql"):
        place, read = shared(kind, tmp_path, postgresql)
        write(small_run, TYPES, place, tmp_path)
    else:
        path = tmp_path / kind
        table = "t" if kind == "x.duckdb" else None
        export.export(small_run.folder, TYPES, str(path), table=table)

        def read():
            return read_frame(path, {}).to_dicts()

    first, second, third = sorted(read(), key=lambda row: row["i"])
    assert [first[name] for name in ("u8", "u16", "u32", "u64", "b", "enum", "texts")] == [
        255, 2**16 - 1, 2**32 - 1, 2**64 - 1, True, "uniform", ["a", None, '{"\\,}']]
    assert math.isnan(float(first["d"]))
    assert [float(first["f"]), float(second["d"])] == [math.inf, -math.inf]
    assert first["numbers"][0] == 1.5
    assert math.isnan(float(first["numbers"][1]))
    assert Decimal(str(first["exact"])) == Decimal("12.5")
    assert [second["texts"], second["numbers"]] == [[], []]
    assert {value for name, value in third.items() if name not in ("i", "run_id")} == {None}
    nested = [first["struct"], first["lists"]]
    if kind in ("delta", "postgresql"):
        nested = [*map(json.loads, nested)]
    assert nested == [{"a": [1]}, [[1], []]]


def test_numbers_that_json_has_not_are_texts(small_run, tmp_path):
    asked = ("SELECT 'nan'::DOUBLE AS a, ['infinity'::DOUBLE, '-infinity', 1] AS b, '' AS c, "
             "NULL AS d")
    path = tmp_path / "x.jsonl"
    export.export(small_run.folder, asked, str(path))

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "a": "NaN", "b": ["Infinity", "-Infinity", 1.0], "c": "", "d": None}
    (row,) = duckdb.sql(f"SELECT a::DOUBLE, b::DOUBLE[] FROM read_json('{path}')").fetchall()
    assert math.isnan(row[0])
    assert row[1] == [math.inf, -math.inf, 1]


@pytest.mark.parametrize("kind", ["delta", "postgresql"])
def test_other_columns_are_refused_with_both(small_run, tmp_path, postgresql, kind):
    place, read = shared(kind, tmp_path, postgresql)
    write(small_run, "SELECT 1::BIGINT AS i, 'x' AS old", place, tmp_path)
    before = read()
    for other, sentences in {
        "SELECT 1::BIGINT AS i, 2.5::DOUBLE AS new": ("old ", "new double"),
        "SELECT 1::INTEGER AS i, 'x' AS old": ("i bigint" if kind == "postgresql" else "i int64",
                                               "i int"),
        "SELECT 'x' AS old, 1::BIGINT AS i": ("another order",),
    }.items():
        with pytest.raises(UsageError, match="there") as refusal:
            write(small_run, other, place, tmp_path)
        assert all(part in str(refusal.value) for part in sentences)
        assert read() == before


def test_columns_are_described(small_run, tmp_path, postgresql):
    described = dict(small_run.sql(
        'SELECT "column", what FROM columns WHERE relation = \'over_attended\'').rows())
    assert all(described.values())
    run = small_run.folder
    export.export(run, "over_attended", postgresql.address)
    got = dict(line.split("|", 1) for line in postgresql.sql(
        "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'over_attended'::regclass AND attnum > 0"))
    assert got.pop("run_id")
    assert got == described
    export.export(run, "over_attended", f"delta:{tmp_path / 'd'}")
    fields = deltalake.DeltaTable(tmp_path / "d").schema().fields
    assert {f.name: f.metadata["comment"] for f in fields if f.name != "run_id"} == described
    export.export(run, "over_attended", str(tmp_path / "x.parquet"))
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert {f.name: f.metadata[b"comment"].decode() for f in schema} == described
    export.export(run, "over_attended", str(tmp_path / "x.duckdb"))
    with duckdb.connect(tmp_path / "x.duckdb", read_only=True) as connection:
        assert dict(connection.sql("SELECT column_name, comment FROM duckdb_columns() "
                                   "WHERE table_name = 'over_attended'").fetchall()) == described


def test_the_schema_of_the_address_is_used(small_run, postgresql):
    postgresql.sql("CREATE SCHEMA reports")
    place = f"{postgresql.address}&options=-csearch_path%3Dreports"
    for _ in range(2):
        export.export(small_run.folder, "model_summary", place)
    assert postgresql.sql("SELECT count(*) FROM reports.model_summary") == ["2"]
    with pytest.raises(UsageError, match="no schema"):
        export.export(small_run.folder, "model_summary", place.replace("reports", "none"))


@pytest.mark.parametrize("address", [
    "postgresql://me:hunter2@localhost:1/db",
    "postgresql://me:hun%74er2@localhost:1/db",
    "postgres://me:hunter2@nowhere.invalid/db?sslmode=disable",
    "postgresql://me@localhost:1/db?password=hunter2",
    "postgresql://me@localhost:1/db?password=hun%74er2&foo=hunter2",
    "postgresql://me:hunter2@hunter2@localhost:1/db",
    "postgresql://me:hunter2/x@localhost:1/db",
    "postgresql://me:hunter2?x@localhost:1/db",
    "postgresql://me:hunter2#x@localhost:1/db",
    "postgresql://me:hunter2%zz@localhost:1/db",
    "postgresql://me:hunter2",
    "postgresql:me:hunter2",
])
def test_a_password_is_never_said(small_run, address, capsys):
    with pytest.raises(ClsightError) as failure:
        export.export(small_run.folder, "model_summary", address)
    said = str(failure.value)
    assert "hun" not in said
    assert "Postgre" in said or "localhost" in said or "nowhere" in said
    assert capsys.readouterr() == ("", "")


def test_a_password_is_not_in_what_was_written(postgresql):
    assert target.shown("postgresql://me:hunter2@[::1]:5432,b:1/db?password=x") == (
        "postgresql://me@[::1]:5432,b:1/db")


@pytest.mark.parametrize(("place", "library"), [
    ("delta:x", "deltalake"), ("postgresql://localhost/db", "adbc_driver_postgresql.dbapi")])
def test_a_missing_extra_is_named(small_run, monkeypatch, place, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'clsight\[export\]'"):
        export.export(small_run.folder, "model_summary", place)


@pytest.mark.parametrize(("asked", "place", "more", "sentence"), [
    ("model_summary", "x.xlsx", {}, ".parquet, .csv, .jsonl"),
    ("model_summary", "x", {}, "postgresql://USER@HOST/DATABASE"),
    ("model_summary", "delta:", {}, "delta:FOLDER"),
    ("model_summary", "x.csv", {"table": "t"}, "--table is for"),
    ("model_summary", "delta:x", {"table": "t"}, "--table is for"),
    ("model_summary", "x.duckdb", {"run_id": "t"}, "--run-id is for"),
    ("model_summary", "delta:x", {"run_id": ""}, "cannot be empty"),
    ("SELECT 1 AS a", "x.duckdb", {}, "--table"),
    ("SELECT 1 AS a", "postgresql://localhost/db", {}, "--table"),
    ("SELECT 1 AS a, 2 AS a", "x.csv", {}, "a: columns of the same name"),
    ("SELECT 1 AS run_id", "delta:x", {}, "run_id: columns of the same name"),
    ("nothing", "x.csv", {}, "there is no query, relation or check"),
    ("examples", "x.csv", {}, "needs -p form="),
    (f"SELECT 1 AS {'x' * 64}", "postgresql://localhost/db", {"table": "t"}, "63 bytes"),
    ("DROP TABLE strata", "x.csv", {}, "one SELECT statement"),
])
def test_bad_calls_are_refused_before_anything_is_written(
        small_run, tmp_path, monkeypatch, asked, place, more, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refusal:
        export.export(small_run.folder, asked, place, **more)
    assert sentence in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["x.parquet", "clsight.duckdb", "delta:documents", "a/b.csv"])
def test_nothing_is_written_into_a_run(small_run, place):
    kind, colon, name = place.rpartition(":")
    with pytest.raises(UsageError, match="lies in the run"):
        export.export(small_run.folder, "documents", f"{kind}{colon}{small_run.folder / name}")


def test_a_file_that_is_no_database_is_refused_and_kept(small_run, tmp_path):
    path = tmp_path / "x.db"
    path.write_text("mine")
    with pytest.raises(ClsightError, match=r"x\.db"):
        export.export(small_run.folder, "documents", str(path))
    assert path.read_text() == "mine"


def test_the_command(small_run, postgresql, tmp_path):
    def call(*arguments):
        return subprocess.run([sys.executable, "-m", "clsight.cli", "export", small_run.folder,
                               *arguments], capture_output=True, text=True, check=False)

    answer = call("examples", "-p", "form=the", "-p", "limit=3", "-o", tmp_path / "x.csv")
    assert (answer.returncode, answer.stdout) == (0, "")
    assert answer.stderr == f"6 rows in {tmp_path / 'x.csv'}\n"
    answer = call("predictions", "-o", postgresql.address, "--run-id", "mine", "--table", "p")
    assert answer.returncode == 0
    assert answer.stderr == "1,200 rows in table p of postgresql://clsight@/postgres, run mine\n"
    assert postgresql.sql("SELECT run_id, count(*) FROM p GROUP BY run_id") == ["mine|1200"]
    answer = call("predictions", "-o", "postgresql://me:hunter2@localhost:1/db")
    assert answer.returncode == 1
    assert answer.stderr.startswith("clsight: table predictions of postgresql://me@localhost:1/db")
    assert "hunter2" not in answer.stderr
