"""The bootstrap against the same resamples in NumPy, and its weights against their distribution."""

import math

import numpy as np
import pytest
import scipy.stats

from clsight.bootstrap import Bootstrap
from clsight.masses import Mass
from clsight.replicates import RESAMPLES, Strata, keys, resample_weights
from masses_of import random_case, sparse

N = 600
"""Resamples; more than fit into the lanes of one pass."""


def weights_of(rows, n=N):
    """Weights [rows, n] of documents in resamples."""
    weights, own = np.empty((len(rows), n), dtype=np.float32), keys(0, RESAMPLES, n)
    for i, row in enumerate(rows):
        resample_weights(np.uint32(row), own, weights[i])
    return weights


def test_weights_are_poisson_and_independent():
    weights = weights_of(range(400), 500)
    counts = np.bincount(weights.astype(int).ravel(), minlength=6)[:6]
    expected = scipy.stats.poisson.pmf(np.arange(6), 1) * weights.size
    assert scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4
    correlation = np.corrcoef(weights)[np.triu_indices(400, 1)]
    assert np.abs(correlation).max() < 0.3
    assert np.abs(correlation.std() - 1 / math.sqrt(500)) < 0.005


def two_models(seed=6):
    """Masses of two models for the same units, their errors and strata."""
    dense, strata = random_case(n=250, units=8, seed=seed)
    other, others = random_case(n=250, units=8, seed=seed + 1)
    other = np.where(dense != 0, np.maximum(other, 0.01), 0)
    return [dense, other], [strata, Strata(strata.rows, others.stratum, others.error)]


def resampled(x, strata, weights):
    """T [2, B], and the four effect sizes [B], of one unit, from their definitions."""
    error = strata.error
    t = []
    for stratum in strata.stratum:
        inside = (stratum == np.arange(stratum.max() + 1)[:, None]).astype(float)
        rate = (inside * error) @ weights / np.maximum(inside @ weights, 1e-300)
        t.append(x @ (weights * (error[:, None] - rate[stratum])))
    in_errors, in_correct = (x * error) @ weights, (x * ~error) @ weights
    holds = x != 0
    n_errors, n_correct = error @ weights, ~error @ weights
    with np.errstate(divide="ignore", invalid="ignore"):
        presence = ((holds & error) @ weights / n_errors) / ((holds & ~error) @ weights / n_correct)
        ratio = (in_errors / n_errors) / (in_correct / n_correct)
        adjusted = np.min([in_errors / (in_errors - one) for one in t], axis=0)
        return np.array(t), (adjusted, ratio, presence, ratio / presence)


def test_consistency_intervals_and_covariance_are_those_of_the_resamples():
    dense, strata = two_models()
    got = Bootstrap(strata, 0, N).resample([sparse(own) for own in dense])
    weights = weights_of(strata[0].rows)
    for score, unit in np.ndindex(dense[0].shape[:2]):
        adjusted = []
        for model in range(2):
            t, effects = resampled(dense[model][score, unit], strata[model], weights)
            assert got.consistency[0, model, score, unit] == pytest.approx((t.min(0) > 0).mean())
            assert got.consistency[1, model, score, unit] == pytest.approx((t.max(0) < 0).mean())
            # Of the resamples that have the unit at all.
            for interval, effect in zip(got.intervals[model, score, unit], effects, strict=True):
                expected = np.nanpercentile(effect, [2.5, 97.5])
                np.testing.assert_allclose(interval, expected, rtol=2e-3)
            adjusted.append(effects[0])
        known = np.isfinite(adjusted).all(0)
        expected = np.cov(np.array(adjusted)[:, known])
        np.testing.assert_allclose(got.covariance[score, unit], expected, rtol=5e-3, atol=1e-5)


def test_intervals_of_what_is_in_errors_alone_reach_infinity():
    strata = random_case(n=250, units=1)[1]
    x = np.where(strata.error, 0.1, 0)[None, None]
    got = Bootstrap([strata], 0, N).resample([sparse(x)])
    assert got.consistency[0].item() == 1
    assert np.isinf(got.intervals[0, 0, 0, 1]).all()
    assert np.isfinite(got.intervals[0, 0, 0, 0]).all()


@pytest.mark.parametrize("cores", [1, 3])
def test_threads_and_blocks_of_units_change_no_number(cores, monkeypatch):
    dense, strata = two_models(seed=9)
    whole = Bootstrap(strata, 0, N).resample([sparse(own) for own in dense])
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    bootstrap = Bootstrap(strata, 0, N)
    parts = [bootstrap.resample([sparse(own[:, units]) for own in dense])
             for units in (slice(0, 3), slice(3, None))]
    for field, axis in (("consistency", 3), ("intervals", 2), ("covariance", 1)):
        got = np.concatenate([getattr(part, field) for part in parts], axis=axis)
        np.testing.assert_array_equal(got, getattr(whole, field))


def test_coverage_of_the_intervals():
    """Nine in ten and more of 200 data sets have the true mass ratio within: 95 % is meant."""
    rng, inside, n = np.random.default_rng(0), 0, 400
    for seed in range(200):
        error = rng.random(n) < 0.3
        x = rng.gamma(2, 0.1, n) * (rng.random(n) < 0.5) * np.where(error, 1.5, 1)
        strata = Strata(np.arange(n), np.zeros((1, n), np.int32), error)
        mass = Mass(np.array([0, n]), np.arange(n), x[None])
        low, high = Bootstrap([strata], seed, 400).resample([mass]).intervals[0, 0, 0, 1]
        inside += low <= 1.5 <= high
    assert 180 <= inside <= 199
