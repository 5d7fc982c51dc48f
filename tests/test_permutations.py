"""Permutations within strata against all permutations, brute force, and shuffled documents."""

import itertools

import numpy as np
import pytest

from clsight import permutations
from clsight.masses import Mass
from clsight.permutations import JOINT, Permutations
from clsight.replicates import Strata
from masses_of import random_case, sparse
from reference import permuted, statistic


def all_units(mass):
    return np.ones(mass.shape[1], dtype=bool)


def test_mean_and_variance_and_skewness_are_exact_over_all_permutations():
    """T and V of the reference, and the third moment of `statistics`, by enumeration."""
    stratum = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    error = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    x = np.array([0.3, 0, 0.2, 0.9, 0, 0.4, 0.1, 0, 0.6])
    sums = enumerated(x)
    t, v = statistic(x, error, stratum)
    assert t == pytest.approx(x[error].sum() - np.mean(sums))
    assert v == pytest.approx(np.var(sums))
    # and the kernel's p is the exact share of permutations that reach the observed sum
    strata = Strata(np.arange(9), np.stack([stratum]).astype(np.int32), error)
    mass = sparse(x[None, None])
    above, below = Permutations(strata, 0, 200_000).p_values(mass, all_units(mass)).ravel()
    assert above == pytest.approx(np.mean(sums >= x[error].sum() - 1e-12), rel=0.5)
    assert below == pytest.approx(np.mean(sums <= x[error].sum() + 1e-12), rel=0.5)


def enumerated(x):
    """Sums over errors under all permutations of 2 of the first 4 and 1 of the other 5."""
    return np.array([
        x[[*first, second]].sum()
        for first in itertools.combinations(range(4), 2) for second in range(4, 9)
    ])


def test_p_is_that_of_shuffling_all_documents():
    dense, strata = random_case(n=300, units=6, seed=4)
    mass = sparse(dense)
    got = Permutations(strata, 0, 100_000).p_values(mass, all_units(mass))
    rng = np.random.default_rng(9)
    rounds = 4000
    reached = np.zeros(got.shape)
    observed = dense[:, :, strata.error].sum(-1)
    for reference, stratum in enumerate(strata.stratum):
        for _ in range(rounds):
            shuffled = dense[:, :, permuted(strata.error, stratum, rng)].sum(-1)
            reached[0, reference] += shuffled >= observed * (1 - 1e-12)
            reached[1, reference] += shuffled <= observed * (1 + 1e-12)
    brute = (reached + 1) / (rounds + 1)
    # Both are estimates: 50 exceedances have a relative error of 14 %, the brute force its own.
    error = np.sqrt(brute / rounds) + 0.15 * brute
    assert (np.abs(got - brute) < 4 * error + 1e-3).all()


def test_masses_may_be_negative():
    """As differences between models are: the lower side of -x is the upper side of x."""
    dense, strata = random_case(n=300, units=5, seed=2)
    dense *= np.random.default_rng(1).choice([-1, 1], dense.shape)
    mass = sparse(dense)
    drawn = Permutations(strata, 3, 5000)
    one = drawn.p_values(mass, all_units(mass))
    other = drawn.p_values(Mass(mass.offsets, mass.document, -mass.x), all_units(mass))
    np.testing.assert_array_equal(one, other[::-1])
    assert (one[0] < 0.5).any()
    assert (one[0] > 0.5).any()


def test_every_shared_permutation_keeps_the_errors_of_each_stratum():
    _, strata = random_case(n=700, units=2)
    drawn_by = Permutations(strata, 0, 256)
    held, rows = np.ones(700, bool), strata.rows.astype(np.uint32)
    for reference, stratum in enumerate(strata.stratum):
        drawn = np.zeros((700, 4), dtype=np.uint64)
        permutations._draw(rows, stratum, held, drawn_by.keys, drawn_by.limits[reference], 0,
                           drawn, 0, 700)
        n, k = drawn_by.n[reference], drawn_by.k[reference]
        bits = np.unpackbits(drawn.view(np.uint8), axis=1, bitorder="little")
        inside = stratum == np.arange(len(n))[:, None]
        np.testing.assert_array_equal(inside.astype(int) @ bits, np.repeat(k[:, None], 256, axis=1))
        # A document is an error as often as its stratum has errors, and pairs hypergeometrically.
        rate = (k / n)[stratum]
        assert np.abs(bits.mean(1) - rate).max() < 5 * np.sqrt(0.25 / 256)
        first = np.flatnonzero(inside[0])
        both = (bits[first].astype(float) @ bits[first].T / 256)[np.triu_indices(len(first), 1)]
        assert both.mean() == pytest.approx(k[0] * (k[0] - 1) / n[0] / (n[0] - 1), rel=1e-9)
        assert both.std() == pytest.approx(
            np.sqrt(both.mean() * (1 - both.mean()) / 256), rel=0.1)


@pytest.mark.parametrize("budget", [1000, 20_000])  # shared ones, and a unit's own
def test_strata_of_errors_alone_and_without_errors_do_not_move(budget):
    stratum = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2]], dtype=np.int32)
    error = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    mass = sparse(np.array([0.5, 0, 0.25, 0.8, 0.1, 0.2, 0.3, 0.9, 0.4])[None, None])
    strata = Strata(np.arange(9), stratum, error)
    p = Permutations(strata, 0, budget).p_values(mass, all_units(mass))
    assert p[0].item() == pytest.approx(1 / 4, rel=0.5)
    assert p[1].item() == 1


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_threads_and_blocks_of_units_change_no_number(cores, monkeypatch):
    dense, strata = random_case(n=500, units=9, seed=5)
    mass = sparse(dense)
    whole = Permutations(strata, 0, 3000).p_values(mass, all_units(mass))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    drawn = Permutations(strata, 0, 3000)
    order = np.array([4, 8, 0, 2, 7, 1, 3, 6, 5])
    parts = [drawn.p_values(own, all_units(own))
             for own in (sparse(dense[:, order[:2]]), sparse(dense[:, order[2:]]))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole[..., order])


def test_extremes_are_those_of_all_units_in_each_permutation():
    """By hand, from the bits that say which documents are errors."""
    dense, strata = random_case(n=200, units=7, seed=3)
    mass, drawn_by = sparse(dense), Permutations(strata, 0, 5000)
    variance = np.array([[[statistic(x, strata.error, stratum)[1] for x in score]
                          for score in dense] for stratum in strata.stratum])
    got = drawn_by.extremes(mass, variance)
    assert got.shape == (2, 2, 2, JOINT)
    for reference, stratum in enumerate(strata.stratum):
        rate = (drawn_by.k[reference] / drawn_by.n[reference])[stratum]
        held = (dense != 0).any((0, 1))
        for first, last, drawn in drawn_by._drawn(mass, reference):
            bits = np.unpackbits(drawn.view(np.uint8), axis=1, bitorder="little").astype(bool)
            for lane in range(0, last - first, 50):
                excess = (dense * np.where(held, bits[:, lane] - rate, 0)).sum(-1)
                z = excess / np.sqrt(variance[reference])
                np.testing.assert_allclose(got[0, reference, :, first + lane], z.max(1), rtol=1e-9)
                np.testing.assert_allclose(got[1, reference, :, first + lane], z.min(1), rtol=1e-9)
