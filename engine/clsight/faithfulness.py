"""How faithful scores are: measures of changed documents, their intervals, and what they say.

With p the probability of the class that a score explains, x a document, and "top f" the words to
which the score gives the highest f of the document's words (one at least):

    comprehensiveness  mean over f = 1, 5, 10, 20, 50 % of p(x) - p(x without top f)
    sufficiency        mean over the same of p(x) - p(top f alone)
    aopc               mean over f = 10, 20, .. 100 % of p(x) - p(x without top f)
    flips              mean over f = 1, 5, 10, 20, 50 % of: x without top f is predicted otherwise
    reconstruction     1 - sum |D - S| / sum |D| over documents, with the margin m,
                       D = m(x) - m(x with all words masked), S the words' sum of a signed score

The first two are those of ERASER (DeYoung et al. 2020), the third is Samek et al.'s (2017).
Intervals are 95 % percentile intervals of a bootstrap over documents. `validate` measures; this
module needs no model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clsight import shards, store, tables
from clsight.plan import Plan

FILE = "faithfulness.parquet"
"""In the folder of each model that was validated."""
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Of the words, for comprehensiveness, sufficiency and flips."""
TENTHS = tuple(i / 10 for i in range(1, 11))
"""Of the words, for aopc."""
MEASURES = ("comprehensiveness", "sufficiency", "aopc", "flips")
PERTURBATIONS = ("masked", "removed")
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles."""
_AT_ONCE = 1 << 22
"""Weights of documents in resamples that are made at a time."""
_KEY = b"clsight.made_of"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What was measured of a model on n documents."""

    model: str
    scores: tuple[str, ...]
    baselines: tuple[str, ...]
    effects: Floats
    """[scores and baselines, perturbation, measure, n]"""
    reconstruction: Floats
    """[scores and baselines]; NaN for those that are not signed."""
    seconds: Floats
    """[scores and baselines] that it took to score the n documents."""
    forward: float
    """Seconds of their forward pass."""


def table(measured: Measured, seed: int, steps: int) -> pa.Table:
    """Rows of `tables.faithfulness`: means, intervals, and who is level with the best score."""
    names, n_scores = measured.scores + measured.baselines, len(measured.scores)
    means = measured.effects.mean(-1)
    resampled = resampled_means(measured.effects, seed)
    low, high = np.percentile(resampled, INTERVAL, axis=0)
    level = _level(means[..., 0], resampled[..., 0], n_scores)
    place, perturbation = np.indices(means.shape[:2]).reshape(2, -1)
    columns: dict[str, Any] = {
        "model": pa.repeat(measured.model, len(place)),
        "score": pa.array(names).take(pa.array(place)),
        "kind": pa.array(["baseline", "score"]).take(pa.array((place < n_scores).astype(int))),
        "perturbation": pa.array(PERTURBATIONS).take(pa.array(perturbation)),
        "n_documents": pa.repeat(measured.effects.shape[-1], len(place)),
        **{f"{measure}{which}": values[..., i].ravel() for i, measure in enumerate(MEASURES)
           for which, values in (("", means), ("_low", low), ("_high", high))},
        "level_with_best": level.ravel(),
        "reconstruction": pa.array(measured.reconstruction[place], from_pandas=True),
        "seconds": measured.seconds[place],
        "passes": (measured.seconds / measured.forward)[place],
        "steps": pa.array([steps if names[i] == "integrated_gradients" else None for i in place],
                          pa.int32()),
        "seed": pa.repeat(seed, len(place)),
    }
    return pa.table({name: columns[name] for name in tables.faithfulness().names}).cast(
        tables.faithfulness())


def resampled_means(values: Floats, seed: int) -> Floats:
    """[RESAMPLES, ..] means of values [.., n] over n documents drawn with replacement.

    All values meet the same resamples, so that their differences are paired.
    """
    n, rng = values.shape[-1], np.random.default_rng(seed)
    step, flat = max(1, _AT_ONCE // n), values.reshape(-1, n).T
    means = [
        rng.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - first)) @ flat / n
        for first in range(0, RESAMPLES, step)
    ]
    return np.concatenate(means).reshape(RESAMPLES, *values.shape[:-1])


def _level(means: Floats, resampled: Floats, n_scores: int) -> npt.NDArray[np.bool_]:
    """[.., perturbation] whether the interval of the difference to the best score holds 0."""
    best = means[:n_scores].argmax(0)
    low, high = np.percentile(
        resampled - resampled[:, best, np.arange(means.shape[1])][:, None], INTERVAL, axis=0)
    level: npt.NDArray[np.bool_] = (low <= 0) & (high >= 0)
    return level


def reconstruction(sums: Floats, margin: Floats, masked: Floats) -> float:
    """1 - sum |D - S| / sum |D|; 1 where a score says what its words do to the margin.

    Args:
        sums: [n] S, of a signed score over a document's words.
        margin: [n] of documents.
        masked: [n] of the same with all words masked.
    """
    difference = margin - masked
    total = np.abs(difference).sum()
    return float(1 - np.abs(difference - sums).sum() / total) if total else float("nan")


def made_of(plan: Plan, model: str) -> str:
    """SHA-256 of what determines a model's answers: contents and options, not paths."""
    dataset, own = (dataclasses.asdict(part) for part in (plan.dataset, plan.models[model]))
    for part in (dataset, own):
        del part["path"]
    del own["layers"]
    content = json.dumps([dataset, own, plan.dtype, plan.target], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def write(run: Path, plan: Plan, model: str, measured: pa.Table) -> None:
    """Store what was measured of a model."""
    shards.write(measured.replace_schema_metadata({_KEY: made_of(plan, model)}),
                 run / model / FILE)


def is_current(stored: pa.Table, plan: Plan, model: str) -> bool:
    """Whether a stored table is of this model as it is planned, and of this version's columns."""
    schema, mark = stored.schema, (stored.schema.metadata or {}).get(_KEY, b"").decode()
    return mark == made_of(plan, model) and bool(
        schema.remove_metadata().equals(tables.faithfulness()))


def read(run: Path, plan: Plan) -> pa.Table:
    """What was measured of the models of a run as they are planned; empty where nothing was.

    Raises:
        ClsightError: a file is damaged.
    """
    found = [tables.faithfulness().empty_table()]
    for model in plan.models:
        if (path := store.fetched(run / model / FILE)).is_file():
            stored = shards.read(path)
            if is_current(stored, plan, model):
                found.append(stored.replace_schema_metadata())
    return pa.concat_tables(found)


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each model one sentence: which score to trust, and at what cost.

    Args:
        rows: of the relation `faithfulness`.
    """
    masked = sorted((row for row in rows if row["perturbation"] == "masked"),
                    key=lambda row: str(row["model"]))
    return [f"{model}: {_sentence([*own])}"
            for model, own in groupby(masked, key=lambda row: row["model"])]


def best_scores(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The score to trust of each model, without repeats.

    Args:
        rows: of the relation `faithfulness`.
    """
    scores = [row for row in rows if row["kind"] == "score" and row["perturbation"] == "masked"]
    ordered = sorted(scores, key=lambda row: (str(row["model"]), -row["comprehensiveness"]))
    best = {row["model"]: str(row["score"]) for row in reversed(ordered)}
    return sorted({*best.values()})


def _sentence(rows: list[dict[str, Any]]) -> str:
    """Of one model's rows for masked words."""
    ranked = sorted(rows, key=lambda row: -row["comprehensiveness"])
    scores, baselines = ([row for row in ranked if row["kind"] == kind]
                         for kind in ("score", "baseline"))
    best, n = scores[0], scores[0]["n_documents"]
    if any(row["score"] == "random" and row["level_with_best"] for row in baselines):
        return (f"no score finds words that matter more than random ones ({_takes(best)} of the "
                f"probability by {_spoken(best)}, on {n:,} documents); take a larger --sample")
    cheapest = min((row for row in scores if row["level_with_best"]),
                   key=lambda row: row["passes"])
    said = [f"trust {_spoken(best)}: masking its words takes {_takes(best)} from the probability, "
            f"{_against(best, baselines[0])}"]
    if cheapest is not best:
        said.append(f"{_spoken(cheapest)} is level with it at {cheapest['passes']:.1f} forward "
                    f"passes instead of {best['passes']:.1f}")
    said += [f"uniform takes {row['comprehensiveness']:.3f}" for row in scores[1:]
             if row["score"] == "uniform" and row is not cheapest]
    return "; ".join(said)


def _takes(row: dict[str, Any]) -> str:
    return (f"{row['comprehensiveness']:.3f} ({row['comprehensiveness_low']:.2f} to "
            f"{row['comprehensiveness_high']:.2f})")


def _against(best: dict[str, Any], baseline: dict[str, Any]) -> str:
    """How the best score stands to the best baseline, and to its cost."""
    shown, other = (f"{row['comprehensiveness']:.3f}" for row in (best, baseline))
    relation = ("level with" if baseline["level_with_best"] or shown == other else
                "more than" if shown > other else "less than")
    cost = baseline["passes"] / best["passes"]
    times = f"{cost:,.0f} times as much" if cost >= 1.5 else "about as much"
    return (f"{relation} {_spoken(baseline)} ({other}), which costs "
            f"{times}")


def _spoken(row: dict[str, Any]) -> str:
    return str(row["score"]).replace("_", " ") if row["kind"] == "baseline" else str(row["score"])
