"""The whole statistics stage for a million documents: seconds of its parts, and peak memory.

The generated run of `large_run.py`: two models, four scores, 20 words a document. The stage runs in
a process of its own, from scored shards to the database: relations and strata, sums by shard,
permutations and bootstrap of every word of every model and score, models compared.

    python benchmarks/stage.py [--documents 1e6] [--folder FOLDER] [-o RESULT.json]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import duckdb
from large_run import MEAN_WORDS, MODELS, generate
from queries import build, in_child

COUNTED = """
SELECT count(DISTINCT form)::INTEGER AS words, (SELECT count(*) FROM tested_documents) AS documents,
    (sum(n_documents) / (SELECT count(DISTINCT (model, score)) FROM tested_words))::BIGINT AS pairs
FROM tested_words
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=float, default=1e6)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (arguments.folder or Path(temporary)) / "run"
        generate(run, int(arguments.documents) * MEAN_WORDS * len(MODELS))
        print("generated", file=sys.stderr)
        measured = in_child(build, str(run), True)
        with duckdb.connect(run / "clsight.duckdb", read_only=True) as connection:
            counted = connection.sql(COUNTED).to_arrow_table().to_pylist()[0]
        sizes = {"database": (run / "clsight.duckdb").stat().st_size,
                 "sums": sum(path.stat().st_size for path in run.glob("*/sums/*.parquet"))}
    # Not before: it imports torch, whose memory is none of the stage's.
    from result_file import finish, hardware

    sizes = {kind: size / counted["documents"] for kind, size in sizes.items()}
    finish({"benchmark": "stage", "hardware": hardware(), "models": len(MODELS), **counted,
            **measured, "bytes_per_document": sizes}, arguments.output)


if __name__ == "__main__":
    main()
