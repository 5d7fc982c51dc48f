"""How faithful the scores are to the three real classifiers: `clsight validate` on unseen reviews.

Every score, random words, leave-one-out, gradient x input and integrated gradients with 50 steps:
what masking, and removing, the words that each ranks highest does to 1,000 reviews a model. Costs
are measured one after the other, so nothing else should run. Some 20 minutes on 2 CPU cores.

    python benchmarks/faithfulness.py [--documents 1000] [--seed 1] [--models bert …]
        [-o benchmarks/results/faithfulness.json]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from result_file import SHARED, finish, hardware

import clsight
from clsight.faithfulness import verdict
from clsight.validate import validate

RESULT = Path(__file__).parent / "results" / "faithfulness.json"
MODELS = {"bert": "bert-rt", "roberta": "roberta-rt", "minilm": "minilm-rt"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = clsight.run(
            str(SHARED / "data" / "rotten_tomatoes" / "unseen.parquet"), text="text", label="label",
            models={name: str(SHARED / "models" / MODELS[name]) for name in arguments.models},
            output=Path(folder) / "run",
        )
        for name in arguments.models:
            validate(run.folder, sample=arguments.documents, seed=arguments.seed, models=(name,))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        rows = run.sql("faithfulness").to_dicts()
    finish({"benchmark": "faithfulness", "data": "rotten_tomatoes", "dtype": run.plan.dtype,
            "seconds": time.perf_counter() - started, "verdict": verdict(rows), "rows": rows,
            **hardware()}, arguments.output)


if __name__ == "__main__":
    main()
