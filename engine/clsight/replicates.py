"""Random numbers of documents in replicates: permutations of errors, resamples of documents.

A number is a function of (seed, row of the document, replicate) alone. So neither threads, nor
shards, nor the order of words change a result, all words meet the same replicates, and what runs
over replicates is an innermost loop without branches, in SIMD lanes: ten times as fast as one
replicate after the other.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clsight.kernels import inlined, kernel

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]

LANES = 256
"""Replicates made at a time."""
RESAMPLES, PERMUTATIONS = 0, 1
"""Streams of random numbers."""


@dataclass(frozen=True, eq=False)
class Strata:
    """N documents, by row, and their strata under R references."""

    rows: Integers
    """[N] rows of the dataset, ascending."""
    stratum: npt.NDArray[np.int32]
    """[R, N] from 0 under each reference."""
    error: npt.NDArray[np.bool_]
    """[N]"""

    def counts(self) -> tuple[Integers, Integers]:
        """Documents n and errors k of each stratum, [R, strata] each."""
        size = int(self.stratum.max(initial=0)) + 1
        n, k = (np.array([np.bincount(own, weights, size) for own in self.stratum]).astype(np.int64)
                for weights in (None, self.error))
        return n, k


def keys(seed: int, stream: int, n: int) -> Keys:
    """Two random words [2, n] for each replicate of a stream (splitmix64, S. Vigna)."""
    with np.errstate(over="ignore"):
        bits = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits += np.uint64(2 * seed + stream + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return np.stack([bits, bits >> np.uint64(32)]).astype(np.uint32)


@inlined
def random_bits(row, one, two):  # type: ignore[no-untyped-def]
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
def resample_weights(row, own_keys, weight):  # type: ignore[no-untyped-def]
    """Fill `weight` with the Poisson-bootstrap weights of a document, one for each resample."""
    one, two = own_keys[0], own_keys[1]
    for b in range(len(weight)):
        weight[b] = _poisson(random_bits(row, one[b], two[b]))
