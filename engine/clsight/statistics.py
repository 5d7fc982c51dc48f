"""Which words hold more of a score in errors than in comparable correct documents?

x[i, w] is the mass of word w in document i: its summed share, 0 where it is absent. Documents are
compared within strata s (class x confidence x length) of n_s documents and k_s errors. With the
sums S1 = sum x, S2 = sum x^2 over a stratum and SE = sum x over its errors,

    T = sum_s (SE_s - k_s S1_s / n_s)
    V = sum_s k_s (n_s - k_s) / n_s * (S2_s - S1_s^2 / n_s) / (n_s - 1)       z = T / sqrt(V)

is the conditional permutation test (the Cochran-Mantel-Haenszel mean score statistic): mean and
variance are exact under permuting errors within strata. There are two references, documents of the
same prediction and of the same gold label, and a word counts only where both agree
(intersection-union test: p is the larger, z the smaller of the two).
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from clsight.kernels import even_cuts, in_threads, inlined, kernel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Options:
    """How words are tested, and when a word counts as over-attended."""

    min_documents: int = 40
    """Words in fewer documents are not tested; a choice by total support, never by errors."""
    min_mass_ratio: float = 1.2
    max_q: float = 0.05
    min_consistency: float = 0.95
    bootstrap: int = 1000
    """Poisson-bootstrap resamples of documents behind `consistency`."""
    permutations: int = 100_000
    """Most permutations a word; the smallest p that they can give is 1 / (permutations + 1)."""
    permuted_below: int = 1000
    """Words in fewer documents get their p by permutation, others by the normal tail."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Strata:
    """The N documents of a model, by row, and their strata under both references."""

    rows: Integers
    """[N] rows of the dataset, ascending."""
    stratum: Integers
    """[2, N] stratum under the references "predicted" and "label"."""
    error: npt.NDArray[np.bool_]
    """[N]"""

    def counts(self) -> Floats:
        """[2, 2, strata] documents n and errors k of each stratum, per reference."""
        size = int(self.stratum.max()) + 1
        return np.array([
            [np.bincount(s, minlength=size), np.bincount(s, self.error, minlength=size)]
            for s in self.stratum
        ])


@dataclass(frozen=True)
class Mass:
    """Sparse masses of W words: word w has the entries offsets[w]:offsets[w + 1]."""

    offsets: Integers
    """[W + 1]"""
    document: Integers
    """[entries] index into `Strata.rows`, ascending within a word."""
    x: Floats
    """[scores, entries]"""


@dataclass(frozen=True)
class Tested:
    """What the test says of each score and word; all [scores, W]."""

    z: Floats
    """The smaller of the two references'."""
    p: Floats
    """One-sided; the larger of the two references'."""
    consistency: Floats
    """Share of bootstrap resamples of documents in which T > 0 against both references."""


def test_words(mass: Mass, strata: Strata, options: Options) -> Tested:
    """Test every word against both references, on all cores."""
    replicates = _replicates(strata, options)
    held = np.zeros(len(strata.rows), dtype=np.bool_)
    held[mass.document] = True
    shape = (2, len(mass.x), len(mass.offsets) - 1)
    z, p, over_errors = np.zeros(shape), np.ones(shape), np.zeros(shape)
    n, k = strata.counts().transpose(1, 0, 2)
    few = np.diff(mass.offsets) < options.permuted_below
    for reference, stratum in enumerate(strata.stratum):
        given = (mass.offsets, mass.document, mass.x, stratum, strata.error, n[reference],
                 k[reference])
        out = (z[reference], p[reference], over_errors[reference])
        in_threads(partial(_normal, *given, *out), even_cuts(mass.offsets))
        if few.any():
            p[reference, :, few] = _permuted(
                mass, strata, reference, replicates, held, few, over_errors[reference],
                options.permutations,
            )[:, few].T
    return Tested(z.min(axis=0), p.max(axis=0), _consistency(mass, strata, replicates))


@dataclass(frozen=True)
class Replicates:
    """What all words share: R permutations of errors within strata, B resamples of documents."""

    permutation_keys: Keys
    """[2, permutations]"""
    limits: npt.NDArray[np.uint32]
    """[2, strata, R] per reference: document i is an error where its random number is below."""
    resample_keys: Keys
    """[2, B]"""
    rates: npt.NDArray[np.float32]
    """[2, strata, B] error rate of each stratum in each resample, per reference."""


@lru_cache(maxsize=1)
def _replicates(strata: Strata, options: Options) -> Replicates:
    """Made once for a model: words are tested in blocks, and all meet the same permutations."""
    n, k = strata.counts().transpose(1, 0, 2).astype(np.int64)
    rows = strata.rows.astype(np.uint32)
    permutation_keys = _keys(options.seed, 1, options.permutations)
    joint = min(JOINT, options.permutations)
    limits = np.zeros((*n.shape, joint), dtype=np.uint32)
    for reference, stratum in enumerate(strata.stratum):
        given = (rows[np.argsort(stratum, kind="stable")], n[reference], k[reference])
        in_threads(partial(_limits, *given, permutation_keys, limits[reference]),
                   even_cuts(np.arange(joint + 1)))
    resample_keys = _keys(options.seed, 0, options.bootstrap)
    rates = np.zeros((*n.shape, options.bootstrap), dtype=np.float32)
    in_threads(partial(_rates, rows, strata.stratum, strata.error, resample_keys, rates),
               even_cuts(np.arange(options.bootstrap + 1)))
    return Replicates(permutation_keys, limits, resample_keys, rates)


def _keys(seed: int, stream: int, n: int) -> Keys:
    """Two random words [2, n] for each replicate of a stream (splitmix64, S. Vigna)."""
    with np.errstate(over="ignore"):
        bits = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits += np.uint64(2 * seed + stream + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return np.stack([bits, bits >> np.uint64(32)]).astype(np.uint32)


def _permuted(
    mass: Mass, strata: Strata, reference: int, replicates: Replicates,
    held: npt.NDArray[np.bool_], few: npt.NDArray[np.bool_], observed: Floats, permutations: int,
) -> Floats:
    """One-sided p [scores, W] by permuting errors within strata, of the words in `few`.

    First through permutations that all words share, then, for the words that these leave open,
    through draws for the documents that hold the word.
    """
    rows, stratum = strata.rows.astype(np.uint32), strata.stratum[reference]
    keys, limits = replicates.permutation_keys, replicates.limits[reference]
    reached = np.zeros(observed.shape, dtype=np.int64)
    stopped = np.where(few, 0, np.ones_like(reached))
    drawn = np.empty((len(rows), LANES // 64), dtype=np.uint64)
    given, state = (mass.offsets, mass.document, mass.x), (observed, reached, stopped)
    cuts = even_cuts(mass.offsets)
    for done in range(0, limits.shape[1], LANES):
        if stopped.all():
            break
        in_threads(partial(_draw, rows, stratum, held, keys, limits, done, drawn),
                   even_cuts(np.arange(len(rows) + 1)))
        last = min(done + LANES, limits.shape[1])
        in_threads(partial(_permute_jointly, *given, drawn, done, last, *state), cuts)
    n, k = strata.counts()[reference]
    in_threads(partial(_permute_on, *given, rows, stratum, n, k, keys, limits.shape[1], *state),
               cuts)
    return np.where(stopped > 0, EXCEEDANCES / np.maximum(stopped, 1),
                    (reached + 1) / (permutations + 1))


def _consistency(mass: Mass, strata: Strata, replicates: Replicates) -> Floats:
    """Share [scores, W] of resamples in which T > 0 against both references."""
    rows = strata.rows.astype(np.uint32)
    positive = np.zeros((len(mass.x), len(mass.offsets) - 1), dtype=np.int64)
    n_resamples = replicates.rates.shape[2]
    for first in range(0, n_resamples, LANES):
        # Copies, since loops over strided views do not run in SIMD lanes.
        keys = replicates.resample_keys[:, first : first + LANES].copy()
        rates = replicates.rates[:, :, first : first + LANES].copy()
        in_threads(partial(_resample, mass.offsets, mass.document, mass.x, rows, strata.stratum,
                           strata.error, keys, rates, positive), even_cuts(mass.offsets))
    share: Floats = positive / n_resamples
    return share


def describe(mass: Mass, strata: Strata, lift_factor: Floats) -> dict[str, npt.NDArray[Any]]:
    """Effect sizes of W words, [scores, W] each; nan where a denominator is 0.

    mass_ratio = presence_ratio x intensity_ratio: is the word in errors more often, and when it is
    there, does it hold more? lift is the mean over the documents that hold the word of
    (mass / occurrences) x (words in the document): 1 where all words are alike.

    Args:
        mass: masses of the words.
        strata: the documents.
        lift_factor: [entries] number of words in the document / occurrences of the word.
    """
    error = strata.error[mass.document]
    first = mass.offsets[:-1]
    n_documents = np.diff(mass.offsets)
    n_errors = np.add.reduceat(error.astype(np.int64), first)
    k, correct = int(strata.error.sum()), int((~strata.error).sum())
    in_errors = np.add.reduceat(mass.x * error, first, axis=1)
    in_correct = np.add.reduceat(mass.x * ~error, first, axis=1)
    scores = np.ones((len(mass.x), 1), dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mass_errors, mass_correct = in_errors / k, in_correct / correct
        presence = (n_errors / k) / ((n_documents - n_errors) / correct)
        ratio = mass_errors / mass_correct
        columns = {
            "n_documents": n_documents * scores,
            "n_errors": n_errors * scores,
            "mass_errors": mass_errors,
            "mass_correct": mass_correct,
            "mass_ratio": ratio,
            "presence_ratio": presence * scores,
            "intensity_ratio": ratio / presence,
            "lift": np.add.reduceat(mass.x * lift_factor, first, axis=1) / n_documents,
        }
    return {
        name: np.where(np.isfinite(values), values, np.nan) if values.dtype.kind == "f" else values
        for name, values in columns.items()
    }


# Besag and Clifford (1991): permuting stops once this many permutations reach the observed sum,
# and p = EXCEEDANCES / permutations made. Most words stop within a few hundred; what is left of the
# budget goes to those near the threshold.
EXCEEDANCES = 50
JOINT = 1024
"""Permutations that all words share; the few words that go on have their own."""
LANES = 256
"""Replicates made at a time. Permutations are 32 bytes a document then."""

# Kernels. Whatever runs over replicates (permutations, resamples) is the innermost loop, without
# branches, so that it runs in SIMD lanes: ten times faster than one replicate after the other.
# What is random is a function of (seed, row, replicate) alone: neither threads, nor blocks, nor
# the order of words change a number.


@inlined
def _random(row, one, two):  # type: ignore[no-untyped-def]
    """32 random bits of a row in a replicate with these keys (lowbias32 of C. Wellons, keyed).

    Every step can be undone, so in one replicate no two rows have the same number.
    """
    x = np.uint32(row ^ one)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(x + two)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@inlined
def _poisson(bits):  # type: ignore[no-untyped-def]
    """A Poisson(1) weight by inversion, at most 8 (one weight in a million would be larger)."""
    # floor(2^32 * P(weight <= i)) for i = 0 .. 7
    return (
        (bits >= np.uint32(1580030168)) + (bits >= np.uint32(3160060337))
        + (bits >= np.uint32(3950075421)) + (bits >= np.uint32(4213413783))
        + (bits >= np.uint32(4279248373)) + (bits >= np.uint32(4292415291))
        + (bits >= np.uint32(4294609777)) + (bits >= np.uint32(4294923276))
    )


@kernel
def _normal(  # type: ignore[no-untyped-def]
    offsets, document, x, stratum, error, n, k, z, p, over_errors, first_word, last_word,
):
    """z, its normal tail, and the sum over errors, all [scores, W], against one reference.

    The sum leaves out strata of errors alone: permuting does not change them.
    """
    s1, s2, se = np.zeros(len(n)), np.zeros(len(n)), np.zeros(len(n))
    for word in range(first_word, last_word):
        for score in range(len(x)):
            s1[:], s2[:], se[:] = 0.0, 0.0, 0.0
            for entry in range(offsets[word], offsets[word + 1]):
                i, value = document[entry], x[score, entry]
                s = stratum[i]
                s1[s] += value
                s2[s] += value * value
                if error[i]:
                    se[s] += value
                    if k[s] < n[s]:
                        over_errors[score, word] += value
            t, v = 0.0, 0.0
            for s in range(len(n)):
                t += se[s] - k[s] * s1[s] / max(n[s], 1)
                if n[s] > 1:
                    v += k[s] * (n[s] - k[s]) / n[s] * (s2[s] - s1[s] * s1[s] / n[s]) / (n[s] - 1)
            if v > 0:
                z[score, word] = t / math.sqrt(v)
                p[score, word] = 0.5 * math.erfc(z[score, word] / math.sqrt(2))


@kernel
def _limits(rows, n, k, keys, limits, first, last):  # type: ignore[no-untyped-def]
    """Fill limits[s, r]: the k[s] rows of stratum s with the smallest numbers are below.

    So every replicate permutes the errors within all strata, exactly and uniformly as far as its
    numbers are random. `rows` are sorted by stratum; where all are errors there is none to permute,
    and the limit is 0.
    """
    bits = np.empty(n.max(), np.uint32)
    for r in range(first, last):
        begin = 0
        for s in range(len(n)):
            numbers, own = bits[: n[s]], rows[begin : begin + n[s]]
            for i in range(n[s]):
                numbers[i] = _random(own[i], keys[0, r], keys[1, r])
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
def _draw(  # type: ignore[no-untyped-def]
    rows, stratum, held, keys, limits, first_replicate, drawn, first, last,
):
    """Fill drawn[i]: a bit for each replicate in which document i is an error."""
    for i in range(first, last):
        if not held[i]:
            continue
        for j in range(drawn.shape[1]):
            begin = first_replicate + 64 * j
            one, two = keys[0, begin : begin + 64], keys[1, begin : begin + 64]
            limit = limits[stratum[i], begin : begin + 64]
            bits = np.uint64(0)
            for lane in range(len(limit)):
                is_error = _random(rows[i], one[lane], two[lane]) < limit[lane]
                bits |= np.uint64(is_error) << np.uint64(lane)
            drawn[i, j] = bits


@kernel
def _permute_jointly(  # type: ignore[no-untyped-def]
    offsets, document, x, drawn, done, last, observed, reached, stopped, first_word, last_word,
):
    """Count which of the replicates done:last reach the observed sums of words, till they stop."""
    total = np.empty((len(x), 64 * drawn.shape[1]))
    for word in range(first_word, last_word):
        if stopped[:, word].all():
            continue
        total[:] = 0.0
        for entry in range(offsets[word], offsets[word + 1]):
            for j in range(drawn.shape[1]):
                bits = drawn[document[entry], j]
                for score in range(len(x)):
                    value, sums = x[score, entry], total[score, 64 * j : 64 * j + 64]
                    for lane in range(len(sums)):
                        is_error = bits & (np.uint64(1) << np.uint64(lane))
                        sums[lane] += value if is_error != 0 else 0.0
        _count_reached(total[:, : last - done], done, word, observed, reached, stopped)


@kernel
def _count_reached(total, done, word, observed, reached, stopped):  # type: ignore[no-untyped-def]
    """Go through the sums [scores, replicates] of a word until its scores have stopped."""
    for score in range(len(total)):
        # Sums of the same masses in the same order are equal to the last digit; the slack only
        # covers masses that are equal in exact arithmetic.
        enough = observed[score, word] * (1 - 1e-12)
        for lane in range(total.shape[1]):
            if stopped[score, word] == 0 and total[score, lane] >= enough:
                reached[score, word] += 1
                if reached[score, word] == EXCEEDANCES:
                    stopped[score, word] = done + lane + 1


@kernel
def _permute_on(  # type: ignore[no-untyped-def]
    offsets, document, x, rows, stratum, n, k, keys, done, observed, reached, stopped, first_word,
    last_word,
):
    """The same from replicate `done` on, each word by itself."""
    total = np.empty((len(x), LANES))
    for word in range(first_word, last_word):
        entries = np.arange(offsets[word], offsets[word + 1])
        if not stopped[:, word].all():
            entries = entries[np.argsort(stratum[document[entries]], kind="mergesort")]
        for begin in range(done, keys.shape[1], LANES):
            if stopped[:, word].all():
                break
            one, two = keys[0, begin : begin + LANES], keys[1, begin : begin + LANES]
            _permute(entries, document, x, rows, stratum, n, k, one, two, total)
            _count_reached(total[:, : len(one)], begin, word, observed, reached, stopped)


@kernel
def _permute(  # type: ignore[no-untyped-def]
    entries, document, x, rows, stratum, n, k, one, two, total,
):
    """Sums over errors [scores, LANES] of a word under permutations of errors within strata.

    Only documents that hold the word matter: going through those of a stratum, each is an error
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
            drawn[lane] = _random(rows[i], one[lane], two[lane]) * scale < errors_left[lane]
            errors_left[lane] -= drawn[lane]
        for score in range(len(x)):
            value, sums = x[score, entry], total[score]
            for lane in range(LANES):
                sums[lane] += drawn[lane] * value
        documents_left -= 1


@kernel
def _rates(  # type: ignore[no-untyped-def]
    rows, stratum, error, keys, rates, first, last,
):
    """Fill rates[:, :, first:last] of `Replicates`."""
    n = np.zeros((*rates.shape[:2], last - first))
    k = np.zeros(n.shape)
    weight, own = np.empty(last - first), keys[:, first:last].copy()
    for i in range(len(rows)):
        _weights(rows[i], own, weight)
        for reference in range(2):
            n[reference, stratum[reference, i]] += weight
            if error[i]:
                k[reference, stratum[reference, i]] += weight
    rates[:, :, first:last] = k / np.maximum(n, 1)


@kernel
def _weights(row, keys, weight):  # type: ignore[no-untyped-def]
    """Fill `weight` with the Poisson-bootstrap weights of a document, one for each resample."""
    one, two = keys[0], keys[1]
    for b in range(len(weight)):
        weight[b] = _poisson(_random(row, one[b], two[b]))


@kernel
def _resample(  # type: ignore[no-untyped-def]
    offsets, document, x, rows, stratum, error, keys, rates, positive, first_word, last_word,
):
    """Count in positive[score, word] the resamples with T > 0 against both references.

    T of a resample is linear in its weights: sum_i x_i weight_i (error_i - rate of i's stratum).
    Weights are made anew for each word: looking them up in a table, a byte each, took 1.4 (one
    score) to 1.7 times (four) as long for 1 million documents.
    """
    n_scores, n_resamples = len(x), keys.shape[1]
    t = np.empty((2, n_scores, n_resamples))
    # float32 takes half as long to load and to store as float64.
    weight, excess = np.empty(n_resamples, np.float32), np.empty(n_resamples, np.float32)
    for word in range(first_word, last_word):
        t[:] = 0.0
        for entry in range(offsets[word], offsets[word + 1]):
            i = document[entry]
            is_error = np.float32(error[i])
            _weights(rows[i], keys, weight)
            for reference in range(2):
                rate = rates[reference, stratum[reference, i]]
                for b in range(n_resamples):
                    excess[b] = weight[b] * (is_error - rate[b])
                for score in range(n_scores):
                    value, sums = x[score, entry], t[reference, score]
                    for b in range(n_resamples):
                        sums[b] += value * excess[b]
        for score in range(n_scores):
            for b in range(n_resamples):
                positive[score, word] += t[0, score, b] > 0 and t[1, score, b] > 0
