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
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from clsight.kernels import inlined, kernel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
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
    n, k = strata.counts().transpose(1, 0, 2)
    keys = _keys(strata.rows, options.seed)
    rates = _bootstrap_rates(keys, strata.stratum, strata.error, n.shape[1], options.bootstrap)
    shape = (len(mass.x), len(mass.offsets) - 1)
    z, p = np.zeros((2, *shape)), np.ones((2, *shape))
    consistency = np.zeros(shape)

    def words(first: int, last: int) -> None:
        _consistency(mass.offsets, mass.document, mass.x, keys, strata.stratum, strata.error,
                     rates, first, last, consistency)
        for reference in range(2):
            _test(mass.offsets, mass.document, mass.x, ~keys, strata.stratum[reference],
                  strata.error, n[reference], k[reference], options.permutations,
                  options.permuted_below, first, last, z[reference], p[reference])

    _in_threads(words, mass.offsets)
    return Tested(z.min(axis=0), p.max(axis=0), consistency)


def _keys(rows: Integers, seed: int) -> npt.NDArray[np.uint64]:
    """A random key for each document, fixed by (seed, row), so that shards need not meet."""
    with np.errstate(over="ignore"):
        bits = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits += np.uint64(seed + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: npt.NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return keys


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


def _in_threads(words: Any, offsets: Integers) -> None:
    """Call words(first, last) over ranges of about equally many entries, one thread a core."""
    n_words, cores = len(offsets) - 1, os.cpu_count() or 1
    ends = np.linspace(0, offsets[-1], 4 * cores + 1)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(offsets, ends), [n_words]]))
    cuts = cuts[cuts <= n_words]
    with ThreadPoolExecutor(cores) as pool:
        for done in [pool.submit(words, *cut) for cut in pairwise(cuts)]:
            done.result()


# Kernels. Whatever runs over replicates (permutations, resamples) is the innermost loop, without
# branches, so that it runs in SIMD lanes: ten times faster than one replicate after the other.


@inlined
def _random(key, replicate):  # type: ignore[no-untyped-def]
    """32 random bits, fixed by a document's key and a replicate (a keyed lowbias32, C. Wellons)."""
    x = np.uint32(np.uint32(replicate) * np.uint32(0x9E3779B9)) ^ np.uint32(key)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(x + np.uint32(key >> np.uint64(32)))
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
def _test(  # type: ignore[no-untyped-def]
    offsets, document, x, keys, stratum, error, n, k, permutations, permuted_below,
    first_word, last_word, z, p,
):
    """z and one-sided p [scores, W] of words first_word:last_word against one reference."""
    n_scores = len(x)
    for word in range(first_word, last_word):
        entries = np.arange(offsets[word], offsets[word + 1])
        entries = entries[np.argsort(stratum[document[entries]], kind="mergesort")]
        observed = np.zeros(n_scores)
        for score in range(n_scores):
            t, v, observed[score] = _statistic(entries, document, x[score], stratum, error, n, k)
            if v > 0:
                z[score, word] = t / math.sqrt(v)
                p[score, word] = 0.5 * math.erfc(z[score, word] / math.sqrt(2))
        if len(entries) < permuted_below:
            p[:, word] = _permuted(entries, document, x, keys, stratum, n, k, observed,
                                   permutations)


@kernel
def _statistic(entries, document, x, stratum, error, n, k):  # type: ignore[no-untyped-def]
    """T, V and the sum over errors SE of one word and score; entries are sorted by stratum."""
    t, v, over_errors = 0.0, 0.0, 0.0
    at = 0
    while at < len(entries):
        s = stratum[document[entries[at]]]
        s1, s2, se = 0.0, 0.0, 0.0
        while at < len(entries) and stratum[document[entries[at]]] == s:
            value = x[entries[at]]
            s1 += value
            s2 += value * value
            if error[document[entries[at]]]:
                se += value
                over_errors += value
            at += 1
        t += se - k[s] * s1 / n[s]
        if n[s] > 1:
            v += k[s] * (n[s] - k[s]) / n[s] * (s2 - s1 * s1 / n[s]) / (n[s] - 1)
    return t, v, over_errors


# Besag and Clifford (1991): permuting stops once this many permutations reach the observed sum,
# and p = EXCEEDANCES / permutations made. Most words stop within a few hundred; what is left of the
# budget goes to those near the threshold.
EXCEEDANCES = 50
LANES = 256
"""Permutations made at a time."""


@kernel
def _permuted(  # type: ignore[no-untyped-def]
    entries, document, x, keys, stratum, n, k, observed, permutations,
):
    """One-sided p [scores] by permuting errors within strata."""
    n_scores = len(x)
    p = np.zeros(n_scores)
    exceeded = np.zeros(n_scores, dtype=np.int64)
    total = np.empty((n_scores, LANES))
    unfinished, done = n_scores, 0
    while done < permutations and unfinished > 0:
        _permute(entries, document, x, keys, stratum, n, k, done, total)
        for lane in range(min(LANES, permutations - done)):
            for score in range(n_scores):
                # Sums of the same masses in the same order are equal to the last digit; the slack
                # only covers masses that are equal in exact arithmetic.
                if p[score] == 0 and total[score, lane] >= observed[score] * (1 - 1e-12):
                    exceeded[score] += 1
                    if exceeded[score] == EXCEEDANCES:
                        p[score] = EXCEEDANCES / (done + lane + 1)
                        unfinished -= 1
        done += LANES
    for score in range(n_scores):
        if p[score] == 0:
            p[score] = (exceeded[score] + 1) / (permutations + 1)
    return p


@kernel
def _permute(  # type: ignore[no-untyped-def]
    entries, document, x, keys, stratum, n, k, first_replicate, total,
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
            errors_left[:] = k[s]
        key, scale = keys[i], documents_left / 4294967296.0
        for lane in range(LANES):
            drawn[lane] = _random(key, first_replicate + lane) * scale < errors_left[lane]
            errors_left[lane] -= drawn[lane]
        for score in range(len(x)):
            value = x[score, entry]
            for lane in range(LANES):
                total[score, lane] += drawn[lane] * value
        documents_left -= 1


@kernel
def _weights(key, weight):  # type: ignore[no-untyped-def]
    """Fill `weight` [replicates] with a document's Poisson-bootstrap weights."""
    for b in range(len(weight)):
        weight[b] = _poisson(_random(key, b))


@kernel
def _bootstrap_rates(keys, stratum, error, n_strata, replicates):  # type: ignore[no-untyped-def]
    """Error rate [2, strata, replicates] of each stratum in each resample of documents."""
    n = np.zeros((2, n_strata, replicates))
    k = np.zeros((2, n_strata, replicates))
    weight = np.empty(replicates)
    for i in range(len(keys)):
        _weights(keys[i], weight)
        for reference in range(2):
            n[reference, stratum[reference, i]] += weight
            if error[i]:
                k[reference, stratum[reference, i]] += weight
    return k / np.maximum(n, 1)


@kernel
def _consistency(  # type: ignore[no-untyped-def]
    offsets, document, x, keys, stratum, error, rates, first_word, last_word, consistency,
):
    """Share of resamples with T > 0 against both references, of words first_word:last_word.

    T of a resample is linear in its weights: sum_i weight_i x_i (error_i - rate of i's stratum).
    """
    n_scores, replicates = len(x), rates.shape[2]
    t = np.empty((2, n_scores, replicates))
    weight = np.empty(replicates)
    for word in range(first_word, last_word):
        t[:] = 0.0
        for entry in range(offsets[word], offsets[word + 1]):
            i = document[entry]
            _weights(keys[i], weight)
            for reference in range(2):
                rate = rates[reference, stratum[reference, i]]
                for score in range(n_scores):
                    value, value_if_error = x[score, entry], x[score, entry] * error[i]
                    for b in range(replicates):
                        t[reference, score, b] += weight[b] * (value_if_error - value * rate[b])
        for score in range(n_scores):
            both = 0
            for b in range(replicates):
                both += t[0, score, b] > 0 and t[1, score, b] > 0
            consistency[score, word] = both / replicates
