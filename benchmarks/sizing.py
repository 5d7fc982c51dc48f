"""What a document takes, in seconds and bytes, from which the README says what many take.

Whole runs of the real reviews, each model by itself, with the attention of the last layer and with
that of all, in turns; BERT-base has random weights, on which neither depends much. Seconds are
those of the clock, by the thread whose work the device is; opening the model and trying batches,
which a night has once, are left out. Bytes are those of the files.

    python benchmarks/sizing.py [--rounds 3] [-o RESULT.json]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from extraction import opened
from result_file import SHARED, finish, hardware

from clsight import pipeline
from clsight.clock import STAGES, Clock

REVIEWS = SHARED / "data" / "rotten_tomatoes" / "unseen.parquet"
MODELS = ("minilm-rt", "bert-base")
LAYERS = ("last", "all")
ONCE = ("documents", "load", "calibrate", "statistics")


def checkpoint(model, folder):
    """The folder of a model; made where its weights are random."""
    if (real := SHARED / "models" / model).exists():
        return real
    case, made = opened(model, "reviews", 512, None), folder / model
    case.model("sdpa").save_pretrained(made)
    case.tokenizer.save_pretrained(made)
    return made


def measured(path, layers):
    """A run: seconds of the device a document, and bytes by kind of file."""
    with tempfile.TemporaryDirectory() as folder:
        clock, begun = Clock(), time.perf_counter()
        made = pipeline.run(str(REVIEWS), text="text", label="label", layers=layers, clock=clock,
                            models={"model": str(path)},
                            output=Path(folder, "run"))
        wall = time.perf_counter() - begun
        sizes = Counter()
        for path in made.folder.rglob("*.parquet"):
            sizes[path.parent.name] += path.stat().st_size
    on_device = sum(seconds for stage, seconds in clock.seconds.items()
                    if STAGES[stage][0] == "device" and stage not in ONCE)
    del sizes["model"]  # head weights
    return {"documents": made.plan.n_rows, "dtype": made.plan.dtype, "wall_s": wall,
            "documents_per_second": made.plan.n_rows / on_device,
            "bytes_per_document": {kind: size / made.plan.n_rows for kind, size in sizes.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rounds = {(model, layers): [] for model in MODELS for layers in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        paths = {model: checkpoint(model, Path(folder)) for model in MODELS}
        for i in range(arguments.rounds):
            for (model, layers), own in rounds.items():
                own.append(measured(paths[model], layers))
                print(f"round {i}, {model}, {layers}: {own[-1]['documents_per_second']:.0f} "
                      "documents a second", file=sys.stderr)
    cases = {model: {} for model in MODELS}
    for (model, layers), own in rounds.items():
        rates = sorted(one["documents_per_second"] for one in own)
        cases[model][layers] = own[0] | {
            "documents_per_second": [statistics.median(rates), rates[0], rates[-1]]}
    finish({"benchmark": "sizing", "rounds": arguments.rounds, "cases": cases} | hardware(),
           arguments.output)


if __name__ == "__main__":
    main()
