"""Poisson bootstrap of documents: how sure effect sizes are, and how models differ in them.

A resample gives each document a weight, Poisson(1), which is the same for all words and models: so
effects of several models can be compared resample by resample, whatever their errors have in
common.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from clsight.kernels import even_cuts, in_threads, kernel
from clsight.masses import Mass
from clsight.replicates import LANES, RESAMPLES, Strata, keys, resample_weights

Floats = npt.NDArray[np.float64]

INTERVALS = ("adjusted_ratio", "mass_ratio", "presence_ratio", "intensity_ratio")
"""Effect sizes that have intervals; see `statistics`."""
BOUNDS = (0.025, 0.975)


@dataclass(frozen=True)
class Resampled:
    """What B resamples say of W units, by S scores and M models."""

    consistency: Floats
    """[2, M, S, W] share of resamples in which T > 0, in which T < 0, against all references."""
    intervals: Floats
    """[M, S, W, 4, 2] 95 % intervals of `INTERVALS`; nan where most resamples have no value."""
    covariance: Floats
    """[S, W, M, M] of the models' adjusted ratios."""


class Bootstrap:
    """Resamples of some documents, whose M models have their own errors and strata."""

    def __init__(self, strata: list[Strata], seed: int, resamples: int) -> None:
        """Prepare what all units share."""
        self.rows = strata[0].rows.astype(np.uint32)
        self.stratum = np.stack([own.stratum for own in strata])
        self.error = np.stack([own.error for own in strata])
        self.keys = keys(seed, RESAMPLES, resamples)
        size = int(self.stratum.max()) + 1
        self.rates = np.zeros((*self.stratum.shape[:2], size, resamples), dtype=np.float32)
        self.errors = np.zeros((len(strata), 2, resamples))
        in_threads(partial(_rates, self.rows, self.stratum, self.error, self.keys, self.rates,
                           self.errors), even_cuts(np.arange(resamples + 1)))

    def resample(self, masses: list[Mass]) -> Resampled:
        """Resample the masses that the models give to the same W units."""
        mass, n_models, n = masses[0], len(masses), self.keys.shape[1]
        shape = (n_models, *mass.shape)
        signs, intervals = np.zeros((2, *shape)), np.full((*shape, len(INTERVALS), 2), np.nan)
        covariance = np.full((*mass.shape, n_models, n_models), np.nan)
        x = np.stack([own.x for own in masses])
        given = (mass.offsets, mass.document, x, self.rows, self.stratum, self.error, self.keys,
                 self.rates, self.errors, np.array(BOUNDS))
        in_threads(partial(_resample, *given, signs, intervals, covariance),
                   even_cuts(mass.offsets))
        return Resampled(signs / n, intervals, covariance)


@kernel
def _rates(  # type: ignore[no-untyped-def]
    rows, stratum, error, keys, rates, errors, first, last,
):
    """Fill rates [models, references, strata, first:last] and errors [models, 2, first:last].

    The error rate of each stratum in each resample; the errors and correct documents in each.
    """
    n_models, n_references, n_strata = rates.shape[:3]
    n, k = np.zeros((n_strata, last - first)), np.zeros((n_strata, last - first))
    weight, own = np.empty(last - first), keys[:, first:last].copy()
    for model in range(n_models):
        for reference in range(n_references):
            n[:], k[:] = 0.0, 0.0
            for i in range(len(rows)):
                resample_weights(rows[i], own, weight)
                s = stratum[model, reference, i]
                n[s] += weight
                if error[model, i]:
                    k[s] += weight
            rates[model, reference, :, first:last] = k / np.maximum(n, 1)
        errors[model, 0, first:last] = k.sum(0)
        errors[model, 1, first:last] = n.sum(0) - k.sum(0)


@kernel
def _resample(  # type: ignore[no-untyped-def]
    offsets, document, x, rows, stratum, error, keys, rates, errors, bounds, signs, intervals,
    covariance, first_unit, last_unit,
):
    """Fill the columns first_unit:last_unit of `Resampled`."""
    n_models, n_references, _, n = rates.shape
    n_scores = x.shape[1]
    t = np.empty((n_models, n_references, n_scores, n))
    in_errors, in_correct = np.empty((n_models, n_scores, n)), np.empty((n_models, n_scores, n))
    held = np.empty((n_models, 2, n))
    ratio, adjusted, presence = np.empty(n), np.empty((n_models, n_scores, n)), np.empty(n)
    for unit in range(first_unit, last_unit):
        t[:], in_errors[:], in_correct[:], held[:] = 0.0, 0.0, 0.0, 0.0
        first, last = offsets[unit], offsets[unit + 1]
        _add_up(first, last, document, x, rows, stratum, error, keys, rates, t, in_errors,
                in_correct, held)
        for model in range(n_models):
            presence[:] = (held[model, 0] / errors[model, 0]) / (held[model, 1] / errors[model, 1])
            for score in range(n_scores):
                own = intervals[model, score, unit]
                above, below = signs[0, model, score], signs[1, model, score]
                _adjusted(t[model, :, score], in_errors[model, score], adjusted[model, score])
                for b in range(n):
                    above[unit] += t[model, :, score, b].min() > 0
                    below[unit] += t[model, :, score, b].max() < 0
                ratio[:] = (in_errors[model, score] / errors[model, 0]) / (
                    in_correct[model, score] / errors[model, 1])
                _interval(adjusted[model, score], bounds, own[0])
                _interval(ratio, bounds, own[1])
                if score == 0:
                    _interval(presence, bounds, own[2])
                else:
                    own[2] = intervals[model, 0, unit, 2]
                ratio /= presence
                _interval(ratio, bounds, own[3])
        for score in range(n_scores):
            _covariance(adjusted[:, score], covariance[score, unit])


@kernel
def _add_up(  # type: ignore[no-untyped-def]
    first, last, document, x, rows, stratum, error, keys, rates, t, in_errors, in_correct, held,
):
    """Sums of a unit over its documents in all resamples.

    T of a resample is linear in its weights: sum_i x_i weight_i (error_i - rate of i's stratum).
    Weights are made anew for each unit: looking them up in a table, a byte each, took 1.4 (one
    score) to 1.7 times (four) as long for 1 million documents.
    """
    n_models, n_references, n_scores, n = t.shape
    # float32 takes half as long to load and to store as float64.
    weight, excess = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for begin in range(0, n, LANES):
        end = min(begin + LANES, n)
        own = keys[:, begin:end].copy()
        weights, excesses = weight[: end - begin], excess[: end - begin]
        for entry in range(first, last):
            i = document[entry]
            resample_weights(rows[i], own, weights)
            for model in range(n_models):
                outcome = 0 if error[model, i] else 1
                is_error = np.float32(1 - outcome)
                mass = in_errors if outcome == 0 else in_correct
                _add(weights, np.float32(1), held[model, outcome, begin:end])
                for score in range(n_scores):
                    _add(weights, x[model, score, entry], mass[model, score, begin:end])
                for reference in range(n_references):
                    rate = rates[model, reference, stratum[model, reference, i], begin:end]
                    for b in range(len(weights)):
                        excesses[b] = weights[b] * (is_error - rate[b])
                    for score in range(n_scores):
                        _add(excesses, x[model, score, entry],
                             t[model, reference, score, begin:end])


@kernel
def _add(weights, value, sums):  # type: ignore[no-untyped-def]
    for b in range(len(sums)):
        sums[b] += value * weights[b]


@kernel
def _adjusted(t, in_errors, adjusted):  # type: ignore[no-untyped-def]
    """Mass in errors over what the strata let expect, by the weaker of the references."""
    for b in range(len(adjusted)):
        adjusted[b] = in_errors[b] / (in_errors[b] - t[:, b].min())


@kernel
def _interval(values, bounds, found):  # type: ignore[no-untyped-def]
    """Percentiles of the values that are numbers, where most are."""
    known = np.sort(values[~np.isnan(values)])
    if 10 * len(known) < 9 * len(values):
        found[:] = np.nan
        return
    for i in range(len(bounds)):
        place = bounds[i] * (len(known) - 1)
        below = int(place)
        above = min(below + 1, len(known) - 1)
        found[i] = known[below]
        if known[above] > known[below]:
            found[i] += (place - below) * (known[above] - known[below])


@kernel
def _covariance(values, found):  # type: ignore[no-untyped-def]
    """Covariance [M, M] over the resamples [M, B] in which all models have a finite value."""
    n_models = len(values)
    known = np.ones(values.shape[1], np.bool_)
    for model in range(n_models):
        known &= np.isfinite(values[model])
    n = known.sum()
    for one in range(n_models if n > 1 else 0):
        for other in range(n_models):
            a, b = values[one][known], values[other][known]
            found[one, other] = ((a - a.mean()) * (b - b.mean())).sum() / (n - 1)
