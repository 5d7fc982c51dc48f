"""Does the SQL stay fast? Each query, relation and check on 1, 10 and 100 million word rows.

A word row is one (model, document, word); the runs are those of `large_run.py`: 2 models, 20 words
a document on average, so 100 million word rows are 2.5 million documents in 611 shards.

Each question is asked as its users ask it, in a process and a connection of its own, the files
being in the page cache: seconds from the open database to the last row (median, least and greatest
of the rounds), the process's peak of resident memory, and the rows of the answer. DuckDB gets 4 GB
and may spill. Relations with a row per word or document are asked for their first rows, for one
document and for an aggregate. `growth` is the ratio of medians of one size and the size before,
beside that of the word rows. `floor` reads and counts the columns that the hardest questions read,
and asks nothing of them; `nothing` reads nothing, so that its memory is that of the libraries.

`build` is the whole of `build.build`, and its parts. Above 10 million word rows p and what comes of
the bootstrap are seeded random numbers, and all else is as in every run.

What was measured is kept in the folder, so that the same command goes on where it was stopped;
--again NAME … measures these questions anew. Nothing else should run.

    python benchmarks/queries.py [--rows 1e6 1e7 1e8] [--rounds 3] [--folder FOLDER]
        [--again NAME …] [-o benchmarks/results/queries.json]
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import duckdb

MEMORY, THREADS = "4GB", 2
LONG = 10
"""Seconds after which a question gets no further round."""
TESTED_UP_TO = 10_000_000
SUMS, ROWS = 2, 20
"""Targets in seconds for 100 million word rows: from sums, and where rows must be read."""
FLOOR = """
SELECT count(*), sum(len(form)), sum(len(contribution)), sum(len(uniform))
FROM read_parquet('*/scores/*.parquet') JOIN read_parquet('documents/*.parquet') USING ("row")
"""


def questions(plan, form):
    """Name -> (kind, target in seconds or None, SQL or name, parameters).

    `form` is a frequent and a rare word. Targets are for queries and relations that are asked
    whole, or for their first rows.
    """
    from clsight import database

    one = plan.n_rows * 2 // 3
    asked = {"nothing": ("floor", None, "SELECT 1", {}), "floor": ("floor", None, FLOOR, {})}
    for name, sql in database.sql_files("queries").items():
        target = ROWS if name in ("errors", "examples") else SUMS
        if "form" in database.parameters(sql):
            for kind, word in zip(("frequent", "rare"), form, strict=True):
                asked[f"{name} ({kind} word)"] = ("query", target, name, {"form": word})
        else:
            asked[name] = ("query", target, name, {})
    for name in ("bad_documents", "compare_scores", "head_profile", "head_weights",
                 "heterogeneity", "model_differences", "model_summary", "neglected",
                 "only_over_attended", "over_attended", "shared_over_attended", "slice_agreement",
                 "slice_statistics", "stratification", "under_attended", "word_statistics"):
        target = ROWS if name == "bad_documents" else SUMS
        asked[name] = ("relation", target, name, {})
    for name, key in (("documents", "document_id"), ("predictions", "document_id"),
                      ("words", "document_id"), ("disagreements", "document_id"),
                      ("word_mass", '"row"'), ("strata", '"row"')):
        asked[f"{name}, first 20"] = ("relation", ROWS, f"FROM {name} LIMIT 20", {})
        asked[f"{name}, one document"] = ("relation", ROWS, f"FROM {name} WHERE {key} = {one}", {})
    for name, sql in {
        "documents, aggregate": "SELECT label, count(*), avg(n_words) FROM documents GROUP BY ALL",
        "predictions, aggregate": "SELECT model, avg(margin) FROM predictions GROUP BY model",
        "disagreements, count": "SELECT count(*) FROM disagreements",
        "words, one form": f"SELECT model, avg(contribution) FROM words WHERE form = '{form[1]}' "
                           "GROUP BY model",
        "word_mass, one form": f"SELECT model, sum(contribution) FROM word_mass "
                               f"WHERE form = '{form[1]}' GROUP BY model",
        "word_sums, one form": f"SELECT sum(contribution_s1) FROM word_sums "
                               f"WHERE form = '{form[0]}'",
        "strata, aggregate": "SELECT model, reference, max(stratum), count(*) FROM strata "
                             "GROUP BY model, reference",
    }.items():
        asked[name] = ("relation", ROWS, sql, {})
    checks = database.sql_files("checks")
    return asked | {name: ("check", ROWS, sql, {}) for name, sql in checks.items()}


def ask(run, name_or_sql, parameters):
    """Child process: answer one question; the seconds and rows of its answer."""
    from clsight import database

    path = Path(run, "clsight.duckdb")
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect(path, read_only=True) as opened:
        connection = database.at(opened, Path(run))  # `database.connect` locks these settings
        connection.execute(f"SET memory_limit = '{MEMORY}'; SET threads = {THREADS}")
        connection.execute(f"SET temp_directory = '{spilled}'")
        started = time.perf_counter()
        rows = sum(len(batch) for batch in database.query(connection, name_or_sql, parameters))
        return {"seconds": time.perf_counter() - started, "rows": rows}


def build(run, tested):
    """Child process: make the database of a run; the seconds of the whole and of its parts."""
    from large_run import build

    from clsight import build as stage
    from clsight import plan

    seconds = {}
    parts = {"relations": "_relations", "strata": "_write_documents", "sums": "_sum",
             "moments": "_moments", "test": "_test"}

    def timed(name, function):
        def call(*args):
            started = time.perf_counter()
            answer = function(*args)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - started
            return answer
        return call

    with ExitStack() as stack:
        for name, function in parts.items():
            stack.enter_context(
                mock.patch.object(stage, function, timed(name, getattr(stage, function))))
        timed("all", build)(Path(run), plan.load(Path(run)), tested)
    # Moments are added up at the beginning of the test.
    seconds["test"] -= seconds.get("moments", 0)
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    return {"seconds": rounded.pop("all"), "parts": rounded, "tested": tested}


def in_child(function, *arguments):
    """Call a function of this file in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps([function.__name__, *arguments])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def peak_mib():
    """This process's peak of resident memory; getrusage's begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def measured(kind, target, rounds):
    """The medians over a question's rounds, each of them an answer of `in_child`."""
    seconds = [r["seconds"] for r in rounds]
    return {
        "kind": kind, "target_s": target, "seconds": round(statistics.median(seconds), 4),
        "range": [round(min(seconds), 4), round(max(seconds), 4)], "rounds": len(rounds),
        "rows": rounds[0]["rows"], "peak_mib": max(r["peak_mib"] for r in rounds),
    }


def measure(folder, n_words, n_rounds, again):
    """All that is known of one size: what was kept in the folder, and what was missing there."""
    from large_run import generate, vocabulary

    run, file = folder / str(n_words), folder / f"{n_words}.json"
    plan = generate(run, n_words)
    known = json.loads(file.read_text()) if file.exists() else {}
    form = vocabulary().form
    asked = questions(plan, (form[0].as_py(), form[5000].as_py()))

    def keep(name, answer):
        known[name] = answer
        file.write_text(json.dumps(known))
        print(f"{n_words:>11,} {name:<32} {answer['seconds']:9.3f} s {answer['peak_mib']:6} MiB",
              file=sys.stderr)

    if "build" not in known or "build" in again:
        keep("build", in_child(build, str(run), n_words <= TESTED_UP_TO))
    missing = [name for name in asked if name not in known or name in again]
    for name in missing:
        kind, target, question, parameters = asked[name]
        rounds = []
        while len(rounds) < n_rounds and sum(r["seconds"] for r in rounds) < LONG:
            rounds.append(in_child(ask, str(run), question, parameters))
        keep(name, measured(kind, target, rounds))
    return {name: known[name] for name in ("build", *asked)}


def untested(answer):
    """Seconds but for the test of words, most of which the largest builds leave out."""
    return answer["seconds"] - answer.get("parts", {}).get("test", 0)


def growth(sizes):
    """Question -> ratio of seconds between each size and the one before it (see `untested`)."""
    ordered = sorted(sizes)
    return {
        f"{after:,} / {before:,} ({after / before:g} times the rows)": {
            name: round(untested(answer) / untested(sizes[before][name]), 2)
            for name, answer in sizes[after].items()
        }
        for before, after in itertools.pairwise(ordered)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        function, *given = json.loads(arguments.child)
        answer = {"ask": ask, "build": build}[function](*given)
        print(json.dumps(answer | {"peak_mib": peak_mib()}))
        return
    # Not in the children, whose memory is measured: it imports torch.
    from result_file import finish, hardware

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sizes = {int(n): measure(folder, int(n), arguments.rounds, arguments.again)
                 for n in arguments.rows}
    finish({
        "benchmark": "queries", "hardware": hardware() | {"threads": THREADS},
        "memory_limit": MEMORY, "tested_up_to": TESTED_UP_TO,
        "word_rows": {str(n): answers for n, answers in sizes.items()}, "growth": growth(sizes),
    }, arguments.output)


if __name__ == "__main__":
    main()
