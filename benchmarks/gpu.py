"""One card against its own limits, in one command of some minutes.

    numbers   rows, contributions and logits against transformers' eager model in float32, autograd
              for the contributions: the script ends there if float32 deviates
    limits    bfloat16 matrix products and memory copies, as measured here and now
    forward   BERT-base at 128 pieces, and at the lengths of reviews, by pieces per batch, beside
              transformers' fused attention over length-sorted batches that returns logits alone
    run       texts to Parquet, with tokenising: what a further document costs, and how much of that
              time the card computes

Needs torch, transformers, pyarrow, numpy and numba; weights are random, texts are made up. Prints
one JSON. On a machine without a card, --small shows that the script works.

    python benchmarks/gpu.py [-o RESULT.json] [--small]
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from result_file import finish, hardware

from clsight import demo
from clsight.attention import Wanted, prepare
from clsight.batches import Pieces
from clsight.clock import Clock, matrix_peak
from clsight.executors.jobs import Job, Place
from clsight.executors.local import threads
from clsight.extract import Worker
from clsight.extractor import Documents, Extractor, count_operations, devices
from clsight.models import IMPLEMENTATION, Classifier, inspect
from clsight.plan import DatasetPlan, Plan
from clsight.results import collect

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 5
BUDGETS = (16384, 65536, 131072, 262144)
PLAIN_BATCHES = (128, 512, 2048)
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1}
"""Largest deviation that is taken: float32 sums in another order, bfloat16 with random weights."""


def classifier_of(attention, dtype, shape):
    """BERT of a shape with random weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(num_labels=2, attn_implementation=attention, **shape)
    model = transformers.BertForSequenceClassification(config)
    model.set_attn_implementation(attention)
    return model.to(DEVICE, dtype).eval().requires_grad_(False)


def made_up(lengths, vocabulary=8000):
    """Pieces of documents of these lengths."""
    ids = np.random.default_rng(0).integers(5, vocabulary, lengths.sum()).astype(np.int32)
    nothing = np.zeros(len(ids), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pieces = Pieces(ids, nothing, nothing, offsets, nothing, np.zeros(len(lengths), bool))
    return Documents(None, pieces, None)


def review_lengths(n):
    """Lengths as the Rotten Tomatoes reviews have them: mean 28, from 5 to 75."""
    drawn = np.random.default_rng(1).gamma(5.0, 5.7, n)
    return np.clip(np.round(drawn), 5, 75).astype(np.int64)


def ready(dtype, shape, budget, clock=None):
    """An extractor as `clsight run` has it, of rows and contributions of the last layer."""
    classifier = prepare(Classifier.of(classifier_of(IMPLEMENTATION, dtype, shape), None, 512))
    stream = torch.cuda.Stream() if DEVICE == "cuda" else None
    return Extractor("bert", None, classifier, Wanted((classifier.n_layers - 1,)), "predicted",
                     False, dtype != torch.float32, clock or Clock(), budget, stream)


def numbers(shape):
    """Largest deviations of logits, rows and contributions from the eager model in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    documents = made_up(np.random.default_rng(2).integers(5, 120, 48))
    model, found = classifier_of("eager", torch.float32, shape), {}
    expected = [eager(model, ids) for ids in np.split(documents.pieces.ids,
                                                      documents.pieces.offsets[1:-1])]
    for dtype in ("float32", "bfloat16"):
        extractor = dataclasses.replace(ready(getattr(torch, dtype), shape, 1024), half=False)
        lists = collect(extractor.attend(documents, lambda _: None),
                        ("logits", "attention", "contribution"))
        found[dtype] = {
            name: max(float(np.abs(np.array(values.as_py()) - one[name].ravel()).max())
                      for values, one in zip(lists[name], expected, strict=True))
            for name in lists
        }
    return found


def eager(model, ids):
    """Logits, [CLS] row and contribution of one document, by autograd."""
    ids = torch.from_numpy(ids.astype(np.int64))[None].to(DEVICE)
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    outputs = model(inputs_embeds=embedded, output_attentions=True)
    weights, ranked = outputs.attentions[-1], outputs.logits.sort(descending=True).values
    (grad,) = torch.autograd.grad((ranked[:, 0] - ranked[:, 1]).sum(), weights)
    row, contribution = weights[0, :, 0].detach(), (weights * grad)[0, :, 0].sum(0).detach()
    return {"logits": outputs.logits.detach().cpu().numpy(), "attention": row.cpu().numpy(),
            "contribution": contribution.cpu().numpy()}


def limits():
    """Operations of bfloat16 products and bytes of copies a second."""
    source = torch.empty(1 << (29 if DEVICE == "cuda" else 24), device=DEVICE)
    target = torch.empty_like(source)
    copies = [timed(lambda: target.copy_(source)) for _ in range(5)]
    widths = (1024, 2048, 4096) if DEVICE == "cuda" else (768,)
    return {"matrix_bfloat16": max(matrix_peak("bfloat16", DEVICE, width) for width in widths),
            "copy_read_and_write": 2 * source.nbytes / min(copies)}


def timed(call):
    """Seconds of a call, until the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def plain(documents, shape, batch):
    """transformers' fused attention over length-sorted, padded batches; logits alone."""
    model, offsets = classifier_of("sdpa", torch.bfloat16, shape), documents.pieces.offsets
    order, batches = np.argsort(-documents.pieces.lengths, kind="stable"), []
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        lengths = documents.pieces.lengths[some]
        place = np.arange(lengths[0])
        mask = place < lengths[:, None]
        ids = np.where(mask, documents.pieces.ids[
            np.minimum(offsets[some, None] + place, offsets[-1] - 1)], 0)
        # Without padding no mask, which lets the fastest kernel be taken.
        given = (ids, None if mask.all() else mask)
        batches.append([None if x is None else torch.from_numpy(x.astype(np.int64)).to(DEVICE)
                        for x in given])

    def run():
        with torch.inference_mode():
            for ids, mask in batches:
                model(input_ids=ids, attention_mask=mask)

    return run


def forward(lengths, shape, limit):
    """Documents a second of clsight by budget and of plain inference by batch, interleaved."""
    documents = made_up(lengths)
    systems = {}
    for budget in (n for n in BUDGETS if n <= lengths.sum()):
        extractor = ready(torch.bfloat16, shape, budget)
        systems[f"clsight {budget}"] = lambda e=extractor: e.attend(documents, lambda _: None)
    for batch in (n for n in PLAIN_BATCHES if n <= len(lengths)):
        systems[f"plain {batch}"] = plain(documents, shape, batch)
    for run in systems.values():
        timed(run)
    rates = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, run in systems.items():
            rates[name].append(len(lengths) / timed(run))
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    best, best_plain = (max((n for n in median if n.startswith(kind)), key=median.get)
                        for kind in ("clsight", "plain"))
    useful = operations(made_up(lengths[:256]), shape) / 256
    ratios = np.divide(rates[best], rates[best_plain])
    return {
        "documents": len(lengths), "pieces": int(lengths.sum()), "documents_per_second": rates,
        "best": [best, best_plain], "ratio": [statistics.median(ratios), *sorted(ratios)[::4]],
        "operations_per_document": useful, "share_of_peak": useful * median[best] / limit,
    }


def operations(documents, shape):
    """Operations of clsight's matrix products and attention."""
    clock = Clock(detailed=True)
    extractor = ready(torch.bfloat16, shape, 8192, clock)
    count_operations(extractor.classifier, clock)
    extractor.attend(documents, lambda _: None)
    return clock.operations


def whole_run(shape, sizes, words):
    """Seconds of extraction for two numbers of documents, and of the forward loop for as many."""
    seconds, clocks = [], []
    with tempfile.TemporaryDirectory() as folder:
        model, run = Path(folder, "model"), Path(folder, "run")
        classifier_of("sdpa", torch.bfloat16, shape).save_pretrained(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(demo.models()["bert"])
        tokenizer.model_max_length = 512
        tokenizer.save_pretrained(model)
        texts = texts_of(tokenizer, max(sizes), words)
        for size in sizes:
            clocks.append(Clock())
            plan, jobs = documents_of(run / str(size), texts[:size], model)
            seconds.append(timed(lambda p=plan, j=jobs, s=size: extracted(
                run / str(s), p, j, clocks[-1])))
        lengths = np.array([len(ids) for ids in tokenizer(texts[:4096])["input_ids"]])
    more = sizes[1] - sizes[0]
    extractor = ready(torch.bfloat16, shape, BUDGETS[1] if DEVICE == "cuda" else 4096)
    documents = made_up(np.resize(lengths, min(more, 32768)))
    extractor.attend(documents, lambda _: None)
    bare = min(timed(lambda: extractor.attend(documents, lambda _: None)) for _ in range(3))
    bare *= more / len(documents.pieces.lengths)
    return {"documents": sizes, "seconds": seconds, "mean_pieces": float(lengths.mean()),
            "documents_per_second": more / (seconds[1] - seconds[0]),
            "card_busy": bare / (seconds[1] - seconds[0]), "stages": [c.seconds for c in clocks]}


def extracted(run, plan, jobs, clock):
    """Extract shards as a run does, but for the scoring."""
    place = Place(devices("auto")[0])
    worker = Worker(run, plan, Counter(job.model for job in jobs), None, place, lambda *_: None,
                    clock)
    with threads(worker.in_flight) as callers, worker:
        list(callers.map(worker.extract, jobs))


def texts_of(tokenizer, n, words):
    """Made-up texts of whole words."""
    known = np.array([word for word in tokenizer.get_vocab() if word.isalpha()])
    drawn = np.random.default_rng(3).integers(0, len(known), (n, words))
    return [" ".join(known[row]) for row in drawn]


def documents_of(run, texts, model):
    """A run folder with document shards, its plan, and its jobs."""
    plan = Plan(
        dataset=DatasetPlan(
            path="made up", sha256="", text="text", text_pair=None, label="label", id=None,
            split=None, id_type="int64", label_type="int64", on_bad_row="error",
        ),
        models={"bert": inspect("bert", str(model), "last", [0, 1])}, dtype="bfloat16",
        scores=("uniform", "contribution"), piece_scores=("contribution",), target="predicted",
        shard_size=4096, n_rows=len(texts),
    )
    (run / "documents").mkdir(parents=True)
    for i, name in enumerate(plan.shard_names()):
        some = texts[i * 4096 : (i + 1) * 4096]
        pq.write_table(pa.table({
            "row": np.arange(i * 4096, i * 4096 + len(some)), "text": some,
            "text_pair": pa.nulls(len(some), pa.string()), "label": np.zeros(len(some), np.int64),
            "reason": pa.nulls(len(some), pa.string()),
        }), run / "documents" / name)
    return plan, [Job("bert", name) for name in plan.shard_names()]


def card():
    """What the card is."""
    if DEVICE == "cpu":
        return {"card": None} | hardware()
    return {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
            "capability": torch.cuda.get_device_capability(), "cores": os.cpu_count()} | hardware()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--small", action="store_true", help="a small model and few documents")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    shape, scale = {}, 1
    if arguments.small:
        shape, scale = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                        "intermediate_size": 128}, 64
    result = {"benchmark": "gpu"} | card()
    # Few layers with large weights, so that attention is far from even.
    result["deviation"] = numbers({"num_hidden_layers": 4, "initializer_range": 0.08} | shape)
    print(json.dumps(result["deviation"]), file=sys.stderr)
    for dtype, tolerance in TOLERANCE.items():
        if max(result["deviation"][dtype].values()) > tolerance:
            raise SystemExit(f"{dtype} deviates by more than {tolerance}; nothing was timed")
    result["limits"] = limits()
    peak = result["limits"]["matrix_bfloat16"]
    result["length 128"] = forward(np.full(16384 // scale, 128), shape, peak)
    print(json.dumps(result["length 128"]), file=sys.stderr)
    result["reviews"] = forward(review_lengths(65536 // scale), shape, peak)
    print(json.dumps(result["reviews"]), file=sys.stderr)
    result["run"] = whole_run(shape, [32768 // scale, 163840 // scale], 126)
    finish(result, arguments.output)


if __name__ == "__main__":
    main()
