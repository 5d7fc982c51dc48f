"""How fast do relations leave a run? A million rows of `words` into every kind of target.

The run is one of `large_run.py`: 2 models, 20 words a document on average, so 25,000 documents. The
server is one of its own on this machine, on a socket, with its usual settings (fsync on). Each
target is written twice, each time by a process of its own: the second export replaces the first.
Then the rows are read back and compared with those of the run; in shared tables, rows of another
run must be there still.

`seconds` are those of the whole process, `peak_mib` is its most resident memory, and
`peak_mib_tenth` that of the same export from a run of a tenth of the rows.

    python benchmarks/export.py [--rows 1e6] [-o benchmarks/results/export.json]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import adbc_driver_postgresql
import adbc_driver_postgresql.dbapi
import deltalake
import duckdb
import polars as pl
from large_run import build, generate
from polars.testing import assert_frame_equal
from result_file import finish, hardware

from clsight import database

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgresql_server import server

KEY = ["model", "document_id", "position"]
FILES = ("parquet", "csv", "jsonl", "arrow", "duckdb")


CHILD = """
import sys
from pathlib import Path
from clsight.export import export
run, target, run_id = sys.argv[1:]
export(Path(run), "words", target, run_id=run_id or None)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(peak // 1024, file=sys.stderr)
"""
"""Not this file, whose libraries are in memory too."""


def export(run, target, run_id=""):
    """Seconds and peak memory in MiB of one export, from the start of its process to its end."""
    started = time.perf_counter()
    # DuckDB takes -c for somebody at the keyboard, and shows a bar on stdout.
    answer = subprocess.run([sys.executable, "-c", CHILD, str(run), target, run_id], check=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - started, int(answer.stderr)


def source(run):
    """The rows, as DuckDB hands them to Polars."""
    with database.connect(run) as connection:
        return connection.sql("FROM words").pl().sort(KEY)


def read(kind, target):
    """The rows of a target, by a reader that is not the writer where there is one."""
    if kind == "postgresql":
        with (adbc_driver_postgresql.dbapi.connect(target) as connection,
              connection.cursor() as cursor):
            cursor.execute("SELECT * FROM words WHERE run_id = 'this'")
            return pl.from_arrow(cursor.fetch_arrow_table()).drop("run_id")
    if kind == "delta":
        rows = pl.read_delta(target.removeprefix("delta:"))
        return rows.filter(run_id="this").drop("run_id")
    if kind == "duckdb":
        with duckdb.connect(target, read_only=True) as connection:
            return connection.table("words").pl()
    readers = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson,
               "arrow": pl.read_ipc}
    return readers[kind](target)


def measure(kind, target, run, small, expected):
    """Two exports of a run, and one of a tenth of it, which stays beside in shared tables."""
    shared = kind in ("delta", "postgresql")
    _, tenth = export(small, target, "other" if shared else "")
    rounds = [export(run, target, "this" if shared else "") for _ in range(2)]
    got = read(kind, target).cast(dict(expected.schema)).sort(KEY)
    assert_frame_equal(got, expected, check_exact=True)
    seconds = [round(seconds, 2) for seconds, _ in rounds]
    result = {"seconds": seconds, "rows_per_second": round(len(expected) / max(seconds)),
              "peak_mib": max(peak for _, peak in rounds), "peak_mib_tenth": tenth, "equal": True}
    print(kind, result, file=sys.stderr)
    return result


def other_rows(kind, target):
    """Rows of the other run in a shared table."""
    if kind == "delta":
        return pl.read_delta(target.removeprefix("delta:")).filter(run_id="other").height
    with adbc_driver_postgresql.dbapi.connect(target) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM words WHERE run_id = 'other'")
        return cursor.fetchone()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, server(durable=True) as running:
        folder = Path(temporary)
        run, small = folder / "run", folder / "small"
        for place, rows in ((run, arguments.rows), (small, arguments.rows / 10)):
            build(place, generate(place, rows), False)
        expected, beside = source(run), len(source(small))
        targets = {kind: str(folder / f"words.{kind}") for kind in FILES}
        targets |= {"delta": f"delta:{folder / 'delta'}", "postgresql": running.address}
        measured = {kind: measure(kind, target, run, small, expected)
                    for kind, target in targets.items()}
        for kind in ("delta", "postgresql"):
            assert other_rows(kind, targets[kind]) == beside
        version = running.sql("SHOW server_version")[0]
    libraries = {"postgresql": version, "deltalake": deltalake.__version__,
                 "adbc_driver_postgresql": adbc_driver_postgresql.__version__,
                 "duckdb": duckdb.__version__}
    finish({"benchmark": "export", "hardware": hardware(), "relation": "words",
            "rows": len(expected), "targets": measured, "libraries": libraries}, arguments.output)


if __name__ == "__main__":
    main()
