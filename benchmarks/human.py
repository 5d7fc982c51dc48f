"""Do scores point at the words that people would change? Reviews that people turned round say so.

In `imdb_cad` (Kaushik, Hovy and Lipton 2020) people edited each review just enough to flip its
label. The words of a text that are not in its counterpart, by difflib on case-folded forms, are
what the label hangs on for people. Asked about are pairs of at most 90 words a text, which a model
reads as a whole, of which at most a fifth changed; and of their texts those that the model gets
right: what speaks for a wrong answer is not what people would change.

    average precision  of the edited words, ranked by score; mean over texts
    rank               mean place of the edited words among all, from 0 (first) to 1; half is chance

with 95 % bootstrap intervals over pairs. The classifiers learned from single sentences of reviews
by critics. Some 20 minutes on 2 CPU cores, most of them for leaving out each word of minilm's.

    python benchmarks/human.py [--models bert …] [-o benchmarks/results/human.json]
"""

import argparse
import sys
import tempfile
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import polars as pl
from result_file import SHARED, finish, hardware
from scipy.stats import rankdata
from shortcuts import of_baselines, scored

import clsight

RESULT = Path(__file__).parent / "results" / "human.json"
MODELS = ("bert", "roberta", "minilm")
WORDS, MOST, SEED, RESAMPLES = 90, 0.2, 0, 2000


def pairs():
    """The texts of all pairs that are short enough, the two of a pair one behind the other."""
    table = pl.read_parquet(SHARED / "data" / "imdb_cad" / "data.parquet")
    short = pl.col("text").str.split(" ").list.len().max().over("pair_id") <= WORDS
    return table.filter(short).sort("pair_id", "version")


def edited(forms):
    """Which words each text of a pair has that its counterpart lacks.

    >>> edited([["a", "fine", "film"], ["a", "film"]])
    [array([False,  True, False]), array([False, False])]
    """
    marked = [np.zeros(len(own), np.bool_) for own in forms]
    matcher = SequenceMatcher(None, *forms, autojunk=False)
    for same, first, last, other_first, other_last in matcher.get_opcodes():
        if same != "equal":
            marked[0][first:last] = True
            marked[1][other_first:other_last] = True
    return marked


def measure(model):
    """What every score and baseline has to say of a model's texts."""
    table = pairs()
    with tempfile.TemporaryDirectory() as folder:
        table.select("text", "label").write_parquet(f"{folder}/texts.parquet")
        run = clsight.run(f"{folder}/texts.parquet", text="text", label="label", scores="all",
                          models={model: str(SHARED / "models" / f"{model}-rt")},
                          output=f"{folder}/run")
        answers = run.sql("FROM predictions ORDER BY document_id")
        scores, form, offsets = scored(run, model, [*range(len(table))])
    marked = marks([own.tolist() for own in np.split(form, offsets[1:-1])])
    kept = asked(answers, marked)
    scores = {name: [np.split(values, offsets[1:-1])[i] for i in kept]
              for name, values in scores.items()}
    counts = [len(marked[i]) for i in kept]
    others = of_baselines(run.plan.models[model], table["text"][kept].to_list(),
                          answers["predicted"].to_numpy()[kept])
    scores |= {name: np.split(values, np.cumsum(counts)[:-1]) for name, values in others.items()}
    truth, pair = [marked[i] for i in kept], kept // 2
    return {
        "dtype": run.plan.dtype, "texts": len(kept), "pairs": len(set(pair)),
        "accuracy": float((answers["predicted"] == answers["label"]).mean()),
        "words": float(np.mean(counts)), "edited": float(np.mean([own.mean() for own in truth])),
        "scores": {name: of_score(own, truth, pair) for name, own in scores.items()},
    }


def marks(forms):
    """`edited` of all pairs in turn."""
    return [own for i in range(0, len(forms), 2) for own in edited(forms[i : i + 2])]


def asked(answers, marked):
    """Texts that are asked about."""
    whole, right = (answers.select(one).to_series().to_numpy() for one in (
        ~pl.col("truncated"), pl.col("predicted") == pl.col("label")))
    few = np.array([0 < own.mean() <= MOST for own in marked])
    of_pairs = (whole & few).reshape(-1, 2).all(1)
    return np.flatnonzero(np.repeat(of_pairs, 2) & right)


def of_score(values, truth, pair):
    """Average precision and rank of one score, each as mean and interval."""
    found = np.array([(average_precision(own, true), rank(own, true))
                      for own, true in zip(values, truth, strict=True)])
    names = ("average_precision", "rank")
    return {name: interval(found[:, i], pair) for i, name in enumerate(names)}


def average_precision(score, truth):
    """Mean over true words of the precision among words down to theirs; the later of ties last.

    >>> average_precision(np.array([0.9, 0.5, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    true = truth[np.argsort(-score, kind="stable")]
    precision = np.cumsum(true) / np.arange(1, len(true) + 1)
    return float(precision[true].mean())


def rank(score, truth):
    """Mean place of the true words from 0 to 1; of equal ones the middle.

    >>> rank(np.array([0.9, 0.5, 0.1]), np.array([True, True, False]))
    0.25
    """
    place = rankdata(-score) - 1
    return float(place[truth].mean() / (len(score) - 1))


def interval(values, pair):
    """Mean over texts and its 95 % interval by resampling pairs."""
    random, which = np.random.default_rng(SEED), np.unique(pair, return_inverse=True)[1]
    sums, counts = np.bincount(which, values), np.bincount(which)
    drawn = random.integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = {}
    for model in arguments.models:
        started = time.perf_counter()
        rows[model] = measure(model)
        rows[model]["seconds"] = time.perf_counter() - started
        print(model, rows[model], file=sys.stderr)
    finish({"benchmark": "human", **hardware(), "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
