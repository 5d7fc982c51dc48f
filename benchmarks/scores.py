"""How exact each score is, and what it costs, for every family of models.

Exact: small models with random weights, and the real classifiers of ../shared/models where they
are, in float32 and bfloat16 against transformers' eager model in float64 with autograd. Of each
document the largest deviation counts, relative to the score's largest value where that is above 1.

Cost: a random model of 6 layers and width 384 per family, 64 documents as long as real reviews.
Each score alone, against transformers' own model in length-sorted padded batches of 32 that returns
no attention. All alternate in one process; a ratio is of two times of the same round, the result
file has the median, least and greatest. Some ten minutes on 2 CPU cores; nothing else should run.

    python benchmarks/scores.py [--families bert "modernbert mean" minilm-rt …] [--rounds 3]
        [-o benchmarks/results/scores.json]
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from result_file import finish, hardware
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from clsight import attention, general
from clsight.attention import Wanted, prepare
from clsight.batches import gather, pack, tokenise
from clsight.calibrate import DEFAULT
from clsight.families import FAMILIES, REFUSED, UNKNOWN
from clsight.models import IMPLEMENTATION, Classifier, unavailable_to
from clsight.references import references

# The oracles, the small models and the real ones are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import REAL_MODELS, SHARED, real_classifier, real_reviews
from reference import Eager, differentiable
from small_models import CONFIGS, eager_model, opened_model
from test_attention import MASK, attended, documents, expected

RESULT = Path(__file__).parent / "results" / "scores.json"
SCORES = ("norm", "contribution", "rollout", "relevance", "conservative", "deeplift")
DTYPES = (torch.float32, torch.bfloat16)
REVIEWS = 40
ALL_REVIEWS = 4262
AGREEING = "minilm-rt"
N_DOCUMENTS, PLAIN_BATCH = 64, 32

SHAPE = {"vocab_size": 8000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
         "intermediate_size": 1536, "max_position_embeddings": 514, "num_labels": 2}
AS_RELEASED = {
    "electra": {"embedding_size": 128},
    "distilbert": {"hidden_dim": 1536},
    "albert": {"embedding_size": 128},
    "modernbert": {"local_attention": 128, "global_attn_every_n_layers": 3},
    "eurobert": {"num_key_value_heads": 12},
    "deberta": {"pooler_hidden_size": 384, "max_relative_positions": 512},
    "deberta-v2": {"pooler_hidden_size": 384, "max_relative_positions": 512,
                   "position_buckets": 256},
    "xlnet": {"d_inner": 1536},
}
"""model_type -> what SHAPE leaves at a small model's size, as in published checkpoints, and other
names for the feed-forward's width."""
DERIVED = ("layer_types", "head_dim", "d_head")
"""What configurations work out from the shape."""


def deviations(name):
    """A small random model against its reference, over the tests' documents."""
    eager = eager_model(name)
    opened = {dtype: opened_model(name, eager, dtype) for dtype in DTYPES}
    differentiable(eager)
    return compared(name, eager, opened, documents())


def real_deviations(name):
    """The same of a real classifier, over real reviews."""
    opened = {dtype: real_classifier(name, dtype)[0] for dtype in DTYPES}
    ids = review_ids(opened[torch.float32], REVIEWS)
    return compared(name, Eager(SHARED / "models" / name).model, opened, ids)


def compared(name, eager, opened, ids):
    """dtype -> score -> largest deviation of a classifier, all asked for the reference's class."""
    exact = opened[torch.float32]
    reference = [expected(name, eager, exact, one) for one in ids]
    target = np.array([one["logits"].argmax() for one in reference])
    wanted = Wanted(tuple(range(eager.config.num_hidden_layers)), available(eager.config))
    deviation = {"reference": spelled(eager.dtype)}
    for dtype, classifier in opened.items():
        results = attended(classifier, ids, wanted, target=target)
        deviation[spelled(dtype)] = largest(results, reference, wanted.scores)
    return deviation


def spelled(dtype):
    return str(dtype).removeprefix("torch.")


def largest(results, reference, scores):
    """score -> largest deviation over documents; `uniform` is the rows of all layers and heads."""
    deviation = {}
    for score, key in [("uniform", "rows"), *((score, score) for score in scores)]:
        deviation[score] = max(
            float(np.abs((got[key] if key == "rows" else got[key].sum(0)) - one[key]).max()
                  / max(1, np.abs(one[key]).max()))
            for got, one in zip(results, reference, strict=True)
        )
    return deviation


def review_ids(classifier, n):
    """Pieces of real reviews, half of them of each class."""
    pieces = tokenise(classifier.tokenizer, real_reviews(n)["text"].to_pylist(),
                      classifier.max_length)
    return np.split(pieces.ids.astype(np.int64), pieces.offsets[1:-1])


def agreement(name):
    """On how many reviews bfloat16 predicts what float32 does."""
    predicted = []
    for dtype in DTYPES:
        classifier, plan = real_classifier(name, dtype, layers="last")
        ids = review_ids(classifier, ALL_REVIEWS)
        results = attended(classifier, ids, Wanted(plan.layers, ()), DEFAULT["cpu"])
        predicted.append([one["logits"].argmax() for one in results])
    same = np.equal(*predicted)
    return {"model": name, "reviews": len(same), "differ": int((~same).sum()),
            "share": float(same.mean())}


def available(config):
    """The scores that a family has, in order."""
    return tuple(score for score in SCORES if score not in unavailable(config))


def unavailable(config):
    """Score -> why a family does not have it, of those measured here."""
    return {score: reason for score, reason in unavailable_to(config).items() if score in SCORES}


def costs(name, lengths, rounds):
    """System -> median, least and greatest time in those of a plain forward."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(10, SHAPE["vocab_size"], n) for n in lengths]  # 10 on: no special pieces
    torch.manual_seed(0)
    # Each model has a configuration of its own, which remembers the attention function.
    plain = plain_model(realistic(name))
    classifier = opened(realistic(name), plain.state_dict())
    for run in systems(plain, classifier, ids[:4]).values():
        run()  # warm: the first call of each is slow
    timed = systems(plain, classifier, ids).items()
    times = [{system: seconds(run) for system, run in timed} for _ in range(rounds)]
    pairs = {system: ("contribution" if system == "all rows" else "plain")
             for system in times[0] if system != "plain"}
    return {
        "plain": plain.config._attn_implementation,
        "plain_s": statistics.median(one["plain"] for one in times),
        "ratio": {system: spread([one[system] / one[base] for one in times])
                  for system, base in pairs.items()},
    }


def systems(plain, classifier, ids):
    """Name -> a function that runs all documents."""
    runs = {"plain": plain_forward(plain, ids)}
    return runs | {system: packed_forward(classifier, ids, wanted)
                   for system, wanted in wants(plain.config).items()}


def wants(config):
    """System -> what it computes: each score alone with the last layer's rows, then all rows."""
    layers = tuple(range(config.num_hidden_layers))
    alone = {"uniform": (), **{score: (score,) for score in available(config)}}
    wanted = {system: Wanted(layers[-1:], scores) for system, scores in alone.items()}
    return wanted | {"all rows": Wanted(layers, ("contribution",))}


def realistic(name):
    """A family's configuration at the size that is timed."""
    small = CONFIGS[name]
    given = {key: value for key, value in small.to_diff_dict().items() if key not in DERIVED}
    shape = {small.attribute_map.get(key, key): value for key, value in SHAPE.items()}
    shape = {key: value for key, value in shape.items() if key in given or key == "num_labels"}
    for labels in ("id2label", "label2id"):
        given.pop(labels)
    return type(small)(**given | shape | AS_RELEASED.get(small.model_type, {}))


def plain_model(config):
    """transformers' own model with fused attention; eager where the family has no other."""
    try:
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def opened(config, weights):
    """A model of these weights as clsight opens it."""
    fast = FAMILIES.get(config.model_type, UNKNOWN).fast
    model = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=IMPLEMENTATION if fast else "eager"
    )
    model.load_state_dict(weights)
    classifier = Classifier.of(model.eval().requires_grad_(False), None, 512)
    if fast:
        return prepare(classifier)
    pooling = general.reading(classifier, torch.arange(10, 17)[None], config.num_hidden_layers)
    return dataclasses.replace(classifier, pooling=pooling)


def plain_forward(model, ids):
    """A function that runs the model over length-sorted padded batches."""
    batches, ids = [], sorted(ids, key=len, reverse=True)
    for first in range(0, len(ids), PLAIN_BATCH):
        some = ids[first : first + PLAIN_BATCH]
        padded = np.full((len(some), len(some[0])), model.config.pad_token_id or 0)
        mask = np.zeros_like(padded)
        for i, one in enumerate(some):
            padded[i, : len(one)], mask[i, : len(one)] = one, 1
        batches.append({"input_ids": torch.from_numpy(padded),
                        "attention_mask": torch.from_numpy(mask)})

    def run():
        with torch.inference_mode():
            for batch in batches:
                model(**batch)

    return run


def packed_forward(classifier, ids, wanted):
    """A function that runs clsight over batches as large as `extract` makes them."""
    forward = attention.forward if classifier.family.fast else general.forward
    budget = DEFAULT["cpu"] // (1 if wanted.graph_from is None else 4)
    lengths, flat = np.array([len(one) for one in ids]), torch.from_numpy(np.concatenate(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batches = []
    for batch in pack(lengths, budget):
        index, position = gather(offsets, batch.documents)
        ends = np.equal(position, 0) | np.isin(index + 1, offsets)
        given = references(flat[index].numpy(), np.zeros_like(index), ends, batch.groups, MASK)
        batches.append((flat[index], torch.from_numpy(position), batch.groups, given))

    def run():
        for ids, position, groups, given in batches:
            forward(classifier, ids, position, groups, wanted,
                    references=given.to(ids.device) if wanted.references else None)

    return run


def seconds(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def spread(ratios):
    return [statistics.median(ratios), min(ratios), max(ratios)]


def review_lengths():
    """Pieces of reviews in bert-rt's tokenizer; where they are not here, as they are spread."""
    if SHARED.exists():
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "bert-rt")
        texts = real_reviews(N_DOCUMENTS)["text"].to_pylist()
        return "reviews", tokenise(tokenizer, texts, 512).lengths
    drawn = np.random.default_rng(0).lognormal(np.log(24), 0.45, N_DOCUMENTS)
    return "lognormal", drawn.round().clip(4, 80).astype(int)


def of_family(name, lengths, rounds):
    """The row of a family."""
    config = CONFIGS[name]
    family = FAMILIES.get(config.model_type, UNKNOWN)
    return {"path": "fast" if family.fast else "general", "unavailable": unavailable(config),
            "deviation": deviations(name), "cost": costs(name, lengths, rounds)}


def of_checkpoint(name):
    """The row of a real classifier."""
    return {"path": "fast", "reviews": REVIEWS, "deviation": real_deviations(name)}


def main():
    known = [name for name in CONFIGS if CONFIGS[name].model_type not in REFUSED]
    real = [*REAL_MODELS] if SHARED.exists() else []
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=known + real, default=known + real,
                        metavar="NAME", help="only these: " + ", ".join(known + real))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    origin, lengths = review_lengths()
    result = {"benchmark": "scores", "documents": len(lengths), "pieces": int(lengths.sum()),
              "lengths": origin, "rounds": arguments.rounds, "real": {}, "families": {}}
    for name in arguments.families:
        started = time.perf_counter()
        if name in REAL_MODELS:
            result["real"][name] = of_checkpoint(name)
        else:
            result["families"][name] = of_family(name, lengths, arguments.rounds)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if AGREEING in arguments.families:
        started = time.perf_counter()
        result["agreement"] = agreement(AGREEING)
        print(f"agreement: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    finish(result | {"refused": REFUSED, **hardware()}, arguments.output)


if __name__ == "__main__":
    main()
