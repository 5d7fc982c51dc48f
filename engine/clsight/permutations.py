"""p values and largest statistics by permuting errors within strata (Monte Carlo, seeded).

Whole documents are permuted, so that all units of a document move together. A p value is found in
two steps: through `JOINT` permutations that all units share, then, for the units that these leave
open, through draws for the documents that hold the unit, up to the budget. Besag and Clifford
(1991): permuting stops once `EXCEEDANCES` permutations reach the observed sum, and p is EXCEEDANCES
by the permutations made. Most units stop within a few hundred; what is left of the budget goes to
those near the threshold.
"""

import threading
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from clsight.kernels import even_cuts, in_threads, kernel
from clsight.masses import Mass
from clsight.replicates import LANES, PERMUTATIONS, Strata, keys, random_bits

Floats = npt.NDArray[np.float64]

EXCEEDANCES = 50
JOINT = 1024
"""Permutations that all units share, a bit a document each."""


class Permutations:
    """Permutations of the errors of some documents within their strata, under each reference."""

    def __init__(self, strata: Strata, seed: int, budget: int) -> None:
        """`budget` is the most permutations of a unit."""
        self.strata, self.rows = strata, strata.rows.astype(np.uint32)
        self.keys = keys(seed, PERMUTATIONS, budget)
        self.n, self.k = strata.counts()

    @cached_property
    def limits(self) -> npt.NDArray[np.uint32]:
        """[references, strata, shared permutations]: errors are the documents with less."""
        found = np.zeros((*self.n.shape, min(JOINT, self.keys.shape[1])), dtype=np.uint32)
        for stratum, n, k, limits in zip(self.strata.stratum, self.n, self.k, found, strict=True):
            rows = self.rows[np.argsort(stratum, kind="stable")]
            in_threads(partial(_limits, rows, n, k, self.keys, limits),
                       even_cuts(np.arange(limits.shape[1] + 1)))
        return found

    def p_values(self, mass: Mass, chosen: npt.NDArray[np.bool_]) -> Floats:
        """One-sided p [2, references, scores, W]: the sum over errors is as high, as low.

        Args:
            mass: of W units.
            chosen: [W] which are wanted; p is nan for the others.
        """
        p = np.full((2, len(self.n), *mass.shape), np.nan)
        if chosen.any():
            for reference in range(len(self.n)):
                p[:, reference, :, chosen] = np.moveaxis(
                    self._p_values(mass, chosen, reference)[:, :, chosen], -1, 0)
        return p

    def _p_values(self, mass: Mass, chosen: npt.NDArray[np.bool_], reference: int) -> Floats:
        stratum, n, k = self.strata.stratum[reference], self.n[reference], self.k[reference]
        given, cuts = (mass.offsets, mass.document, mass.x), even_cuts(mass.offsets)
        observed, slack = np.zeros(mass.shape), np.zeros(mass.shape)
        in_threads(partial(_observe, *given, stratum, self.strata.error, n, k, observed, slack),
                   cuts)
        reached = np.zeros((2, *mass.shape), dtype=np.int64)
        stopped = np.where(chosen, 0, np.ones_like(reached))
        state = (observed, slack, reached, stopped)
        for done, last, drawn in self._drawn(mass, reference):
            in_threads(partial(_permute_jointly, *given, drawn, done, last, *state), cuts)
            if stopped.all():
                break
        in_threads(partial(_permute_on, *given, self.rows, stratum, n, k, self.keys,
                           self.limits.shape[2], *state), cuts)
        return np.where(stopped > 0, EXCEEDANCES / np.maximum(stopped, 1),
                        (reached + 1) / (self.keys.shape[1] + 1))

    def _drawn(
        self, mass: Mass, reference: int
    ) -> Iterator[tuple[int, int, npt.NDArray[np.uint64]]]:
        """(first, last, bits) of the shared permutations, LANES at a time."""
        stratum, limits = self.strata.stratum[reference], self.limits[reference]
        held = np.zeros(len(self.rows), dtype=np.bool_)
        held[mass.document] = True
        drawn = np.empty((len(self.rows), LANES // 64), dtype=np.uint64)
        for done in range(0, limits.shape[1], LANES):
            in_threads(partial(_draw, self.rows, stratum, held, self.keys, limits, done, drawn),
                       even_cuts(np.arange(len(self.rows) + 1)))
            yield done, min(done + LANES, limits.shape[1]), drawn

    def extremes(self, mass: Mass, variance: Floats) -> Floats:
        """Highest and lowest z [2, references, scores, JOINT] over W units in each permutation.

        Args:
            mass: of the units.
            variance: [references, scores, W] of the sum over errors; units without any are left
                out.
        """
        found = np.full((2, len(self.n), len(mass.x), self.limits.shape[2]), -np.inf)
        lock, cuts = threading.Lock(), even_cuts(mass.offsets)
        for reference in range(len(self.n)):
            given = (mass.offsets, mass.document, mass.x, self.strata.stratum[reference],
                     self.n[reference], self.k[reference], variance[reference])
            for done, last, drawn in self._drawn(mass, reference):
                best = found[:, reference, :, done:last]
                in_threads(partial(_raise_to, best, lock, *given, drawn), cuts)
        found[1] *= -1
        return found


def _raise_to(best: Floats, lock: threading.Lock, *given: Any) -> None:
    """Raise best [2, scores, replicates] to the extremes of some units."""
    *before, first, last = given
    own = np.full((2, best.shape[1], LANES), -np.inf)
    _extremes(*before, own, first, last)
    with lock:
        np.maximum(best, own[:, :, : best.shape[2]], out=best)


@kernel
def _limits(rows, n, k, keys, limits, first, last):  # type: ignore[no-untyped-def]
    """Fill limits[s, r]: the k[s] rows of stratum s with the smallest numbers are below.

    So every replicate permutes the errors within all strata, exactly and uniformly as far as its
    numbers are random. `rows` are sorted by stratum; where all are errors there is none to permute,
    and the limit is 0.
    """
    bits = np.empty(max(n.max(), 1), np.uint32)
    for r in range(first, last):
        begin = 0
        for s in range(len(n)):
            numbers, own = bits[: n[s]], rows[begin : begin + n[s]]
            for i in range(n[s]):
                numbers[i] = random_bits(own[i], keys[0, r], keys[1, r])
            low, high = 0, 0 if k[s] == n[s] else 4294967295
            while low < high:  # bisection, since counting runs in SIMD lanes and sorting does not
                middle = (low + high) // 2
                below = _count_below(numbers, np.uint32(middle))
                low, high = (low, middle) if below >= k[s] else (middle + 1, high)
            limits[s, r] = high
            begin += n[s]


@kernel
def _count_below(numbers, limit):  # type: ignore[no-untyped-def]
    below = np.uint32(0)
    for i in range(len(numbers)):
        below = np.uint32(below + np.uint32(numbers[i] < limit))
    return below


@kernel
def _observe(  # type: ignore[no-untyped-def]
    offsets, document, x, stratum, error, n, k, observed, slack, first_unit, last_unit,
):
    """The sums over errors [scores, W] of this labelling, and what rounding may change in them.

    Strata of errors alone are left out: permuting does not change them.
    """
    for unit in range(first_unit, last_unit):
        for score in range(len(x)):
            for entry in range(offsets[unit], offsets[unit + 1]):
                i, value = document[entry], x[score, entry]
                slack[score, unit] += 1e-12 * abs(value)
                if error[i] and k[stratum[i]] < n[stratum[i]]:
                    observed[score, unit] += value


@kernel
def _draw(  # type: ignore[no-untyped-def]
    rows, stratum, held, keys, limits, first_replicate, drawn, first, last,
):
    """Fill drawn[i]: a bit for each replicate in which document i is an error."""
    for i in range(first, last):
        if not held[i]:
            continue
        for j in range(drawn.shape[1]):
            begin = first_replicate + 64 * j
            limit = limits[stratum[i], begin : begin + 64]
            one, two = keys[0, begin : begin + 64], keys[1, begin : begin + 64]
            bits = np.uint64(0)
            for lane in range(len(limit)):
                is_error = random_bits(rows[i], one[lane], two[lane]) < limit[lane]
                bits |= np.uint64(is_error) << np.uint64(lane)
            drawn[i, j] = bits


@kernel
def _sum_drawn(offsets, document, x, drawn, unit, total):  # type: ignore[no-untyped-def]
    """Sums over errors [scores, LANES] of a unit in the permutations that were drawn."""
    total[:] = 0.0
    for entry in range(offsets[unit], offsets[unit + 1]):
        for j in range(drawn.shape[1]):
            bits = drawn[document[entry], j]
            for score in range(len(x)):
                value, sums = x[score, entry], total[score, 64 * j : 64 * j + 64]
                for lane in range(len(sums)):
                    is_error = bits & (np.uint64(1) << np.uint64(lane))
                    sums[lane] += value if is_error != 0 else 0.0


@kernel
def _permute_jointly(  # type: ignore[no-untyped-def]
    offsets, document, x, drawn, done, last, observed, slack, reached, stopped, first_unit,
    last_unit,
):
    """Count which of the replicates done:last reach the observed sums of units, till they stop."""
    total = np.empty((len(x), 64 * drawn.shape[1]))
    for unit in range(first_unit, last_unit):
        if not stopped[:, :, unit].all():
            _sum_drawn(offsets, document, x, drawn, unit, total)
            _count_reached(total[:, : last - done], done, unit, observed, slack, reached, stopped)


@kernel
def _count_reached(  # type: ignore[no-untyped-def]
    total, done, unit, observed, slack, reached, stopped,
):
    """Go through the sums [scores, replicates] of a unit until its scores have stopped.

    Sums of the same masses in the same order are equal to the last digit; the slack covers those
    that are equal in exact arithmetic.
    """
    for score in range(len(total)):
        for side in range(2):
            sign = 1.0 - 2.0 * side
            enough = sign * observed[score, unit] - slack[score, unit]
            for lane in range(total.shape[1]):
                if stopped[side, score, unit] == 0 and sign * total[score, lane] >= enough:
                    reached[side, score, unit] += 1
                    if reached[side, score, unit] == EXCEEDANCES:
                        stopped[side, score, unit] = done + lane + 1


@kernel
def _permute_on(  # type: ignore[no-untyped-def]
    offsets, document, x, rows, stratum, n, k, keys, done, observed, slack, reached, stopped,
    first_unit, last_unit,
):
    """The same from replicate `done` on, each unit by itself."""
    total = np.empty((len(x), LANES))
    for unit in range(first_unit, last_unit):
        entries = np.arange(offsets[unit], offsets[unit + 1])
        if not stopped[:, :, unit].all():
            entries = entries[np.argsort(stratum[document[entries]], kind="mergesort")]
        for begin in range(done, keys.shape[1], LANES):
            if stopped[:, :, unit].all():
                break
            one, two = keys[0, begin : begin + LANES], keys[1, begin : begin + LANES]
            _permute(entries, document, x, rows, stratum, n, k, one, two, total)
            _count_reached(total[:, : len(one)], begin, unit, observed, slack, reached, stopped)


@kernel
def _permute(  # type: ignore[no-untyped-def]
    entries, document, x, rows, stratum, n, k, one, two, total,
):
    """Sums over errors [scores, LANES] of a unit under permutations of errors within strata.

    Only documents that hold the unit matter: going through those of a stratum, each is an error
    with probability (errors left) / (documents left), which is sampling without replacement.
    """
    total[:] = 0.0
    errors_left = np.empty(LANES)
    drawn = np.empty(LANES)
    s, documents_left = -1, 0.0
    for entry in entries:
        i = document[entry]
        if stratum[i] != s:
            s = stratum[i]
            documents_left = n[s]
            errors_left[:] = k[s] if k[s] < n[s] else 0
        scale = documents_left / 4294967296.0
        for lane in range(len(one)):
            drawn[lane] = random_bits(rows[i], one[lane], two[lane]) * scale < errors_left[lane]
            errors_left[lane] -= drawn[lane]
        for score in range(len(x)):
            value, sums = x[score, entry], total[score]
            for lane in range(LANES):
                sums[lane] += drawn[lane] * value
        documents_left -= 1


@kernel
def _extremes(  # type: ignore[no-untyped-def]
    offsets, document, x, stratum, n, k, variance, drawn, extremes, first_unit, last_unit,
):
    """Raise extremes [2, scores, LANES] to the units' z, and to their -z."""
    total = np.empty((len(x), LANES))
    for unit in range(first_unit, last_unit):
        _sum_drawn(offsets, document, x, drawn, unit, total)
        for score in range(len(x)):
            if not variance[score, unit] > 0:
                continue
            expected = 0.0
            for entry in range(offsets[unit], offsets[unit + 1]):
                s = stratum[document[entry]]
                if k[s] < n[s]:
                    expected += x[score, entry] * k[s] / n[s]
            scale = 1 / np.sqrt(variance[score, unit])
            high, low = extremes[0, score], extremes[1, score]
            for lane in range(LANES):
                z = (total[score, lane] - expected) * scale
                high[lane] = max(high[lane], z)
                low[lane] = max(low[lane], -z)
