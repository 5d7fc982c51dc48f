"""Random masses, errors and strata that tests share, dense and sparse."""

import numpy as np

from clsight.masses import Mass
from clsight.replicates import Strata


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
