"""The compiled kernels against NumPy and the machine's memory, on data made with a seed.

    scores        attention rows -> word scores, three weightings of heads in one pass, for 200,000
                  documents of the shape of BERT-base (12 heads, 26 pieces on average)
    permutations  1,000 permutations of errors within strata, both references
    bootstrap     1,000 Poisson resamples of documents, both references

The last two are over some 19 million (document, word) pairs: words of Zipf frequencies in 1 million
documents, with 1 score and with 4. NumPy makes a few replicates of each; its times are scaled to
all of them. Permutations are timed with the rule that stops words early, and without it, as the
most extreme word of each permutation needs them all.

Systems alternate in one process; a ratio is of two times of the same round, the result file has
the median, least and greatest. Each part is a process of its own, so that peaks of memory are its.

    python benchmarks/kernels.py [--part scores permutations bootstrap] [--rounds 7] [--pairs N]
        [-o benchmarks/results/kernels.json]
"""

import argparse
import json
import os
import resource
import statistics as middle
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
from result_file import finish, hardware

from clsight import bootstrap, permutations, scores
from clsight.bootstrap import Bootstrap
from clsight.kernels import even_cuts, in_threads
from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.replicates import Strata

RESULT = Path(__file__).parent / "results" / "kernels.json"
N_DOCUMENTS, N_HEADS, WEIGHTINGS = 200_000, 12, 3
N_REPLICATES, N_STRATA, NUMPY_REPLICATES = 1000, 60, 2


def documents(rng):
    """Offsets, start and end of the pieces and of the words of documents, as int32."""
    n_words = np.clip(rng.lognormal(2.9, 0.45, N_DOCUMENTS).astype(int), 3, 120)
    word_offsets = np.concatenate([[0], np.cumsum(n_words)])
    pieces = rng.choice([1, 2, 3], word_offsets[-1], p=[0.83, 0.12, 0.05])
    of_word = np.repeat(np.arange(N_DOCUMENTS), n_words)
    characters = np.concatenate([[0], np.cumsum(4 * pieces + 1)])
    word_start = characters[:-1] - characters[word_offsets[of_word]]
    word = np.repeat(np.arange(len(pieces)), pieces)
    within = np.arange(len(word)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    n_pieces = np.add.reduceat(pieces, word_offsets[:-1]) + 2
    piece_offsets = np.concatenate([[0], np.cumsum(n_pieces)])
    start, end = np.zeros((2, piece_offsets[-1]), dtype=int)
    place = np.arange(len(word)) + 1 + 2 * of_word[word]
    start[place] = word_start[word] + 4 * within
    end[place] = start[place] + 4
    arrays = (piece_offsets, start, end, word_offsets, word_start, word_start + 4 * pieces)
    return [x.astype(np.int32) for x in arrays]


def numpy_scores(piece_offsets, start, end, rows, weights, word_offsets, word_start, word_end):
    """Scores [weighting, words]: documents of one length at a time, then sums by `reduceat`.

    Only for pieces that lie in one word, each of which has some; weights [documents, weighting,
    heads].
    """
    n_pieces, values = np.diff(piece_offsets), np.empty((weights.shape[1], len(start)))
    for n in np.unique(n_pieces):
        own = np.flatnonzero(n_pieces == n)
        first = piece_offsets[own].astype(np.int64)
        taken = rows[(N_HEADS * first)[:, None] + np.arange(N_HEADS * n)]
        weighed = weights[own] @ taken.reshape(len(own), N_HEADS, n).astype(np.float64)
        values[:, first[:, None] + np.arange(n)] = weighed.transpose(1, 0, 2)
    inside = np.flatnonzero(start < end)
    behind = np.int64(1) << 32
    piece_key = np.repeat(np.arange(len(n_pieces)), n_pieces)[inside] * behind + start[inside]
    n_words = np.diff(word_offsets)
    word_key = np.repeat(np.arange(len(n_words)), n_words) * behind + word_start
    first = np.searchsorted(piece_key, word_key)
    return np.add.reduceat(values[:, inside], first, axis=1).astype(np.float32)


def scores_part(rounds):
    """Times of the scoring kernel, of NumPy for the same, and of a copy of the rows."""
    rng = np.random.default_rng(0)
    piece_offsets, start, end, word_offsets, word_start, word_end = documents(rng)
    row_offsets = piece_offsets * N_HEADS
    rows = rng.random(row_offsets[-1], dtype=np.float32)
    weights = rng.random((WEIGHTINGS, 2, 2, N_HEADS))
    target = rng.integers(0, 2, N_DOCUMENTS)
    got, copied = np.empty((WEIGHTINGS, len(word_start)), np.float32), np.empty_like(rows)
    given = (piece_offsets, start, end, row_offsets, rows, np.zeros(WEIGHTINGS, np.int64), weights,
             target, 1 - target, np.empty((0, len(start)), np.float32), word_offsets, word_start,
             word_end, np.arange(WEIGHTINGS), np.arange(0))
    whole = even_cuts(np.arange(len(rows) + 1))
    of_documents = np.ascontiguousarray(weights[:, target, 1 - target].transpose(1, 0, 2))
    systems = {
        "clsight": lambda: in_threads(
            lambda first, last: scores._score(*given, first, last, got), even_cuts(piece_offsets)),
        "copy": lambda: in_threads(
            lambda first, last: np.copyto(copied[first:last], rows[first:last]), whole),
        "numpy": lambda: numpy_scores(piece_offsets, start, end, rows, of_documents, word_offsets,
                                      word_start, word_end),
    }
    systems["clsight"]()
    systems["copy"]()
    np.testing.assert_allclose(got, systems["numpy"](), rtol=1e-6)
    times = alternated(systems, rounds)
    return {
        "documents": N_DOCUMENTS, "pieces": len(start), "words": len(word_start),
        "weightings": WEIGHTINGS, "row_mib": rows.nbytes / 2**20,
        "seconds": {name: middle.median(own) for name, own in times.items()},
        "copy_gb_s": rows.nbytes / middle.median(times["copy"]) / 1e9,
        "share_of_copy": spread(times["copy"], times["clsight"]),
        "times_numpy": spread(times["numpy"], times["clsight"]),
    }


def masses(n_pairs, n_scores, rng):
    """Words of Zipf frequencies, and errors in random strata."""
    n = max(n_pairs // 20, 1000)
    share = 1 / np.arange(1, 20_001)
    sizes = np.clip(share / share.sum() * n_pairs, 40, 0.8 * n).astype(int)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), n_pairs) + 1]
    held = [np.unique(rng.integers(0, n, int(-n * np.log1p(-size / n)))) for size in sizes]
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in held])])
    document = np.concatenate(held)
    x = rng.random((n_scores, len(document)))
    stratum = rng.integers(0, N_STRATA, (2, n)).astype(np.int32)
    return Mass(offsets, document, x), Strata(np.arange(n), stratum, rng.random(n) < 0.15)


def replicates_part(kind, n_pairs, n_scores):
    """Seconds of all replicates of many pairs, against NumPy one replicate after the other."""
    rng = np.random.default_rng(0)
    mass, strata = masses(n_pairs, n_scores, rng)
    system = {"permutations": permute, "bootstrap": resample}[kind]
    system(*masses(20_000, n_scores, rng))  # compiles
    result = {"pairs": len(mass.document), "documents": len(strata.rows), "scores": n_scores,
              "words": len(mass.offsets) - 1, "replicates": N_REPLICATES}
    with parts() as seconds:
        result["seconds"] = timed(lambda: system(mass, strata))
    result["seconds_of_parts"] = dict(seconds)
    if kind == "permutations":
        result["seconds_without_stopping"] = timed(lambda: permute_all(mass, strata))
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["input_mib"] = (mass.document.nbytes + mass.x.nbytes) / 2**20
    prepared = {"permutations": numpy_permutation, "bootstrap": numpy_resample}[kind]
    replicate = prepared(mass, strata, rng)
    one = min(timed(replicate) for _ in range(NUMPY_REPLICATES))
    result["numpy_seconds_scaled"] = one * N_REPLICATES
    whole = result.get("seconds_without_stopping", result["seconds"])
    return result | {"times_numpy": result["numpy_seconds_scaled"] / whole}


def permute(mass, strata):
    """p of every word, both sides and references."""
    Permutations(strata, 0, N_REPLICATES).p_values(mass, np.ones(mass.shape[1], bool))


def permute_all(mass, strata):
    """The most extreme words of every permutation."""
    Permutations(strata, 0, N_REPLICATES).extremes(mass, np.ones((2, *mass.shape)))


def resample(mass, strata):
    """Consistency, and intervals of four effect sizes, of every word."""
    Bootstrap([strata], 0, N_REPLICATES).resample([mass])


def numpy_permutation(mass, strata, rng):
    """A function that makes one permutation under both references: sums [2, scores, words]."""
    groups = [np.split(np.argsort(stratum), np.cumsum(np.bincount(stratum))[:-1])
              for stratum in strata.stratum]

    def permutation():
        error = np.empty(len(strata.error))
        for own in groups:
            for stratum in own:
                error[stratum] = rng.permutation(strata.error[stratum])
            np.add.reduceat(mass.x * error[mass.document], mass.offsets[:-1], axis=1)

    return permutation


def numpy_resample(mass, strata, rng):
    """A function that makes one Poisson resample under both references: T [2, scores, words]."""

    def resample():
        weight = rng.poisson(1, len(strata.error))
        for stratum in strata.stratum:
            rate = np.bincount(stratum, weight * strata.error) / np.bincount(stratum, weight)
            excess = weight * (strata.error - rate[stratum])
            np.add.reduceat(mass.x * excess[mass.document], mass.offsets[:-1], axis=1)

    return resample


class parts:  # noqa: N801 (a context manager, read like a function)
    """Context manager: seconds that each kernel over replicates takes."""

    def __enter__(self):
        self.seconds = {}

        def threaded(function, cuts):
            name = function.func.__name__.strip("_")
            spent = timed(lambda: in_threads(function, cuts))
            self.seconds[name] = self.seconds.get(name, 0) + spent

        permutations.in_threads = bootstrap.in_threads = threaded
        return self.seconds

    def __exit__(self, *_):
        permutations.in_threads = bootstrap.in_threads = in_threads


def timed(function):
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def alternated(systems, rounds):
    """name -> seconds of each round."""
    times = {name: [] for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            times[name].append(timed(system))
    return times


def spread(over, under):
    """Median, least and greatest ratio of times of the same round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return [middle.median(ratios), min(ratios), max(ratios)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["scores", *(f"{kind}-{n}" for kind in ("permutations", "bootstrap") for n in (1, 4))]
    parser.add_argument("--part", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=20_000_000)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        kind, _, n_scores = arguments.part[0].partition("-")
        part = (scores_part(arguments.rounds) if kind == "scores"
                else replicates_part(kind, arguments.pairs, int(n_scores)))
        print(json.dumps(part))
        return
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    done = earlier.get("parts", {})
    for part in arguments.part:
        command = [sys.executable, __file__, "--alone", "--part", part, "--rounds",
                   str(arguments.rounds), "--pairs", str(arguments.pairs)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        done[part] = json.loads(output)
    finish({
        "benchmark": "kernels", "hardware": hardware() | {"cores": os.cpu_count()},
        "numba": numba.__version__, "numpy": np.__version__, "parts": done,
    }, arguments.output)


if __name__ == "__main__":
    main()
