"""Random masses, errors and strata that tests share, dense and sparse."""

import numpy as np

from clsight.masses import Mass
from clsight.replicates import Strata
from clsight.statistics import Moments
from reference import statistic


def sparse(dense):
    """Mass of a dense [scores, units, documents] array."""
    present = dense[0] != 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(1))])
    unit, document = np.nonzero(present)
    return Mass(offsets, document, dense[:, unit, document])


def random_case(n=600, units=12, seed=0):
    """Masses [2, units, n], errors and strata under two references; unit 0 leans to errors."""
    rng = np.random.default_rng(seed)
    stratum = rng.integers(0, 6, (2, n)).astype(np.int32)
    error = rng.random(n) < 0.1 + 0.05 * stratum[0]
    present = rng.random((units, n)) < np.linspace(0.05, 0.5, units)[:, None]
    present[0] = rng.random(n) < np.where(error, 0.3, 0.1)
    dense = rng.gamma(2, 0.05, (2, units, n)) * present
    return dense, Strata(np.arange(n) * 3, stratum, error)


def moments(dense, strata, n_words=None, covered=1):
    """Moments of dense masses [scores, units, documents], by the formulas over all documents."""
    error, shape = strata.error, (len(strata.stratum), *dense.shape[:2])
    found = {name: np.zeros(shape) for name in ("excess", "expected", "variance", "third")}
    for reference, score, unit in np.ndindex(shape):
        x, place = dense[score, unit], (reference, score, unit)
        found["excess"][place], found["variance"][place] = statistic(
            x, error, strata.stratum[reference])
        for s in np.unique(strata.stratum[reference]):
            own, k = x[strata.stratum[reference] == s], error[strata.stratum[reference] == s].sum()
            n = len(own)
            found["expected"][place] += k * own.mean()
            if n > 2:
                found["third"][place] += (k * (n - k) * (n - 2 * k) / (n - 1) / (n - 2)
                                          * ((own - own.mean()) ** 3).mean())
    repeated = {
        "total": dense.sum(-1), "in_errors": dense[..., error].sum(-1),
        "lift": (dense * (1 if n_words is None else n_words) / covered).sum(-1),
    }
    holds = dense[0] != 0
    return Moments(holds.sum(-1), holds[:, error].sum(-1), **found,
                   **{name: np.stack([x] * shape[0]) for name, x in repeated.items()})
