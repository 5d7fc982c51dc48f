"""Across models and within slices: whose habit is a finding, and where does it hold?

    both models     p of the weaker one (intersection-union), documents on which both err
    paired          on documents that exactly one of two models gets wrong: is the unit's mass by
                    the wrong model, minus that by the right one, as large as chance lets it be?
                    "Errors" are the documents in which the first model is the wrong one
    heterogeneity   do the models' adjusted ratios differ by more than the bootstrap says?
    slices          the test within each value of a column, and whether the values differ
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import special

from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.replicates import Strata
from clsight.statistics import Moments

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

THIN = 20
"""Fewest documents of a bin."""
MOST_BINS = 10


@dataclass(frozen=True)
class Part:
    """Some of the documents, with strata and permutations of their own."""

    name: str
    documents: Integers
    """[n] ascending, among all documents."""
    permutations: Permutations

    def mass(self, mass: Mass) -> Mass:
        """What units hold in these documents alone; units may be left without any."""
        place = np.searchsorted(self.documents, mass.document)
        place = np.minimum(place, max(len(self.documents) - 1, 0))
        inside = np.zeros(len(place), dtype=bool)
        if len(self.documents):
            inside = self.documents[place] == mass.document
        before = np.concatenate([[0], np.cumsum(inside)])
        return Mass(before[mass.offsets], place[inside], mass.x[:, inside])


def part(
    name: str, chosen: npt.NDArray[np.bool_], strata: Strata, seed: int, budget: int
) -> Part:
    """The chosen documents, in strata that are numbered afresh."""
    documents = np.flatnonzero(chosen)
    stratum = np.stack([np.unique(own[documents], return_inverse=True)[1]
                        for own in strata.stratum]).astype(np.int32)
    own = Strata(strata.rows[documents], stratum, strata.error[documents])
    return Part(name, documents, Permutations(own, seed, budget))


def paired(
    one: Strata, other: Strata, label: Integers, certainty: Floats, seed: int, budget: int
) -> Part:
    """Documents that exactly one of two models gets wrong; strata are label x certainty.

    Args:
        one: the model whose errors count as errors.
        other: the model that it is compared with.
        label: [N] gold labels.
        certainty: [N] the first model's confidence minus the second's, which goes with who errs.
        seed: of the permutations.
        budget: of the permutations.
    """
    differ = one.error != other.error
    stratum = np.zeros(len(differ), dtype=np.int32)
    stratum[differ] = bins(label[differ], certainty[differ])
    return part("paired", differ, Strata(one.rows, stratum[None], one.error), seed, budget)


def bins(label: Integers, value: Floats) -> npt.NDArray[np.int32]:
    """Strata [n]: ranges of the value within each label, as many as have `THIN` documents."""
    stratum, before = np.empty(len(label), dtype=np.int32), 0
    for own in np.unique(label):
        inside = np.flatnonzero(label == own)
        n = max(1, min(MOST_BINS, len(inside) // THIN))
        rank = np.argsort(np.argsort(value[inside], kind="stable"), kind="stable")
        stratum[inside] = before + rank * n // len(inside)
        before += n
    return stratum


def moments(mass: Mass, strata: Strata) -> Moments:
    """Moments of units from their masses; `lift` is 0, for it needs the documents' words."""
    shape = (len(strata.stratum), *mass.shape)
    names = ("total", "in_errors", "excess", "expected", "variance", "third")
    found = {name: np.zeros(shape) for name in names}
    unit = np.repeat(np.arange(mass.shape[1]), np.diff(mass.offsets))
    error = strata.error[mass.document]
    for reference, (n, k) in enumerate(zip(*strata.counts(), strict=True)):
        stratum = strata.stratum[reference, mass.document]
        order = np.lexsort((stratum, unit))
        key = np.stack([unit[order], stratum[order]])
        first = np.flatnonzero(np.append(True, (key[:, 1:] != key[:, :-1]).any(0))[: len(unit)])
        sums = _sums(mass.x[:, order], error[order], first, n[key[1, first]], k[key[1, first]])
        for name, score in product(names, range(shape[1])):
            found[name][reference, score] = np.bincount(
                key[0, first], sums[name][score], shape[2])
    return Moments(
        np.diff(mass.offsets), np.bincount(unit[error], minlength=shape[2]),
        lift=np.zeros(shape), **found,
    )


def _sums(
    x: Floats, error: npt.NDArray[np.bool_], first: Integers, n: Integers, k: Integers
) -> dict[str, Floats]:
    """[S, cells] of the (unit, stratum) cells that begin at `first`: see `statistics`."""
    s1, s2, s3, se = (np.add.reduceat(y, first, axis=1) if len(first) else y
                      for y in (x, x**2, x**3, x * error))
    spread = np.where(s2 - s1**2 / n > 1e-12 * s2, s2 - s1**2 / n, 0)
    two, three = np.maximum(n - 1, 1), np.maximum((n - 1) * (n - 2), 1)
    return {
        "total": s1, "in_errors": se, "expected": k * s1 / n, "excess": se - k * s1 / n,
        "variance": k * (n - k) / n * spread / two,
        "third": k * (n - k) * (n - 2.0 * k) / n / three * (n > 2)
        * (s3 - 3 * s1 * s2 / n + 2 * s1**3 / n**2),
    }


def agreement(moments_of: list[Moments], min_documents: int) -> tuple[Floats, Floats]:
    """Cochran's Q [S, W] of the adjusted ratios of independent parts, and p [S, W].

    By the first reference. A ratio's variance is V / E^2, that under permuting errors; parts in
    which it has none, or too few documents hold the unit, are left out.
    """
    excess, expected, variance = (
        np.stack([getattr(own, name)[0] for own in moments_of])
        for name in ("excess", "expected", "variance")
    )
    enough = np.stack([own.n_documents >= min_documents for own in moments_of])[:, None]
    known = enough & (variance > 0) & (expected > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(known, excess / expected, 0)
        weight = np.where(known, expected**2 / variance, 0)
        mean = (weight * effect).sum(0) / weight.sum(0)
    q, free = (weight * (effect - mean) ** 2).sum(0), known.sum(0) - 1
    q = np.where(free > 0, q, np.nan)
    return q, special.chdtrc(np.maximum(free, 1), q)


def both_errors(mass: Mass, one: Strata, other: Strata) -> Integers:
    """[W] documents that hold the unit and that both models get wrong."""
    both = (one.error & other.error)[mass.document]
    return np.diff(np.concatenate([[0], np.cumsum(both)])[mass.offsets])
