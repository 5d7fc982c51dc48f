"""What a whole `clsight run` costs beside its forward loop, from texts to SQL.

The loop: the same documents, tokenised beforehand, through the model in the same batches, results
left where they are. The run: `clsight.run` into a fresh folder, without what starts it (libraries,
looking at the checkpoints, opening the model). The two take turns; BERT-base has random weights.

    python benchmarks/whole.py --model bert-base [--documents 1024] [-o RESULT.json]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import transformers
from extraction import opened, ready
from result_file import SHARED, finish, hardware

from clsight import memory, pipeline
from clsight.clock import STAGES, Clock
from clsight.extractor import best_dtype

DATA = SHARED / "data" / "rotten_tomatoes" / "unseen.parquet"


def whole(data, model, folder):
    """Seconds of a run without its start, and where they went."""
    clock = Clock()
    pipeline.run(str(data), text="text", label="label", models={"model": str(model)},
                 output=folder, clock=clock)
    on_device = sum(took for stage, took in clock.seconds.items() if STAGES[stage][0] == "device")
    return on_device - clock.seconds["load"], clock.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base", choices=["bert-base", "bert-rt",
                                                                "minilm-rt"])
    parser.add_argument("--documents", type=int, default=4262)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="result file; models are added to it")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    memory.bound()
    import torch

    dtype = getattr(torch, best_dtype("cpu"))
    case = opened(arguments.model, "reviews", 512, arguments.documents)
    extractor, documents = ready(case, dtype)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        model = SHARED / "models" / arguments.model
        if not model.exists():
            model = Path(folder, "model")
            case.model("sdpa").save_pretrained(model)
            case.tokenizer.save_pretrained(model)
        data = Path(folder, "data.parquet")
        table = pq.read_table(DATA)
        step = max(1, table.num_rows // arguments.documents)
        pq.write_table(table.take(list(range(0, step * arguments.documents, step))), data)
        whole(data, model, Path(folder, "first"))
        extractor.attend(documents, lambda _: None)
        for i in range(arguments.rounds):
            started = time.perf_counter()
            extractor.attend(documents, lambda _: None)
            loop = time.perf_counter() - started
            run, stages = whole(data, model, Path(folder, f"run-{i}"))
            rounds.append({"loop_s": loop, "run_s": run, "share": loop / run, "stages": stages})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    shares = [one["share"] for one in rounds]
    models = {}
    if arguments.output and arguments.output.exists():
        models = json.loads(arguments.output.read_text())["models"]
    models[arguments.model] = {
        "documents": len(case.ids), "dtype": str(dtype), "rounds": rounds,
        "share": [statistics.median(shares), min(shares), max(shares)],
    } | hardware()
    finish({"benchmark": "whole", "models": models}, arguments.output)


if __name__ == "__main__":
    main()
