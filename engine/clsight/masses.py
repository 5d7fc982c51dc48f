"""Shares of a document's words -> masses of units, and their sums by stratum for each shard.

The share of a word is its score over the sum of the document's scores, of positive parts; the mass
of a unit in a document is the sum of the shares of the places that it covers, each counted once.
Sums of a shard add up to those of the dataset, in any order, and are all that the test's statistic
needs: see `statistics`.
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clsight import shards, tables
from clsight.kernels import even_cuts, in_threads, kernel
from clsight.scores import lists
from clsight.units import Places, Units

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MOMENTS = ("s1", "s2", "s3", "lift")
"""Sums over documents of the mass, its square, its cube, and mass x words / places covered."""


@dataclass(frozen=True)
class Pairs:
    """The (unit, document) pairs of a shard, by unit and then by document."""

    unit: Integers
    document: Integers
    """Index among the shard's usable documents."""
    covered: Integers
    """Places of the document that the unit covers."""
    x: Floats
    """[scores, pairs] mass."""


@dataclass(frozen=True)
class Mass:
    """Sparse masses of W units: unit w has the entries offsets[w]:offsets[w + 1]."""

    offsets: Integers
    """[W + 1]"""
    document: Integers
    """[entries] index among the documents, ascending within a unit."""
    x: Floats
    """[scores, entries]"""

    @property
    def shape(self) -> tuple[int, int]:
        """(scores, W)"""
        return len(self.x), len(self.offsets) - 1


def pairs(
    offsets: Integers, places: list[Places], scores: npt.NDArray[np.float32], n_units: int
) -> Pairs:
    """Masses of all units in the documents of a shard.

    Args:
        offsets: [n + 1] of the documents' words.
        places: where the units stand; no unit is in two of them.
        scores: [scores, words]
        n_units: number of all units.
    """
    return by_unit(reduce(joined, [_pairs(offsets, own, scores, n_units) for own in places]))


def among(given: Pairs, place: Integers) -> Pairs:
    """The pairs of the documents whose place among others is not negative, which is then theirs."""
    own = place[given.document]
    kept = own >= 0
    return Pairs(given.unit[kept], own[kept], given.covered[kept], given.x[:, kept])


def joined(one: Pairs, other: Pairs) -> Pairs:
    """All pairs of both."""
    return Pairs(*(np.concatenate([a, b], axis=-1) for a, b in (
        (one.unit, other.unit), (one.document, other.document), (one.covered, other.covered),
        (one.x, other.x))))


def by_unit(given: Pairs) -> Pairs:
    """The same pairs by unit; within a unit in the order that they had."""
    order = np.argsort(given.unit, kind="stable")
    return Pairs(given.unit[order], given.document[order], given.covered[order],
                 given.x[:, order])


def _pairs(
    offsets: Integers, places: Places, scores: npt.NDArray[np.float32], n_units: int
) -> Pairs:
    n, most = len(offsets) - 1, len(places.unit)
    unit, document, covered = (np.empty(most, dtype=np.int64) for _ in range(3))
    x, counts = np.empty((len(scores), most)), np.zeros(n, dtype=np.int64)

    def part(first: int, last: int) -> None:
        _masses(offsets, places.offsets, places.unit, places.first, places.width, scores, n_units,
                first, last, unit, document, covered, x, counts)

    in_threads(part, even_cuts(offsets))
    # Each document's pairs begin where its places do; what lies between is not filled.
    begin = places.offsets[:-1]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    filled = np.repeat(begin, counts) + within
    return Pairs(unit[filled], document[filled], covered[filled], x[:, filled])


@kernel
def _masses(  # type: ignore[no-untyped-def]
    offsets, place_offsets, place_unit, place_first, width, scores, n_units, first, last, unit,
    document, covered, x, counts,
):
    """Fill the pairs of the documents first:last, from each one's first place on."""
    n_scores = len(scores)
    slot, behind = np.full(n_units, -1), np.zeros(n_units, np.int64)
    total = np.empty(n_scores)
    for i in range(first, last):
        for score in range(n_scores):
            total[score] = 0.0
            for word in range(offsets[i], offsets[i + 1]):
                total[score] += max(scores[score, word], 0.0)
        begin = place_offsets[i]
        end = begin
        for place in range(begin, place_offsets[i + 1]):
            own = place_unit[place]
            if slot[own] < begin:
                slot[own] = end
                unit[end], document[end], covered[end] = own, i, 0
                x[:, end] = 0.0
                behind[own] = offsets[i]
                end += 1
            pair = slot[own]
            # A place that two occurrences share ("very very very") counts once.
            for word in range(max(place_first[place], behind[own]), place_first[place] + width):
                covered[pair] += 1
                for score in range(n_scores):
                    x[score, pair] += max(scores[score, word], 0.0)
            behind[own] = place_first[place] + width
        counts[i] = end - begin
        for score in range(n_scores):
            if total[score] > 0:
                x[score, begin:end] /= total[score]


def read_scores(
    path: Path, names: tuple[str, ...], offsets: Integers
) -> npt.NDArray[np.float32]:
    """[scores, words] of a shard of `tables.scores`; 0 for documents without an answer.

    Args:
        path: the shard.
        names: scores.
        offsets: [n + 1] of the documents' words.
    """
    table = shards.read(path, list(names))
    answered = table[names[0]].is_valid().to_numpy()
    scores = np.zeros((len(names), offsets[-1]), dtype=np.float32)
    own = np.repeat(answered, np.diff(offsets))
    for place, name in enumerate(names):
        scores[place, own] = lists(table[name])[1]
    return scores


def write_sums(
    path: Path, model: str, units: Units, names: tuple[str, ...], given: Pairs,
    strata: npt.NDArray[np.int32], error: npt.NDArray[np.bool_], n_words: Integers,
) -> None:
    """Write the sums of a shard as `tables.sums`.

    Args:
        path: where to.
        model: whose scores they are.
        units: what is tested.
        names: the scores.
        given: pairs of the shard.
        strata: [2, N] of all documents, under the references "predicted" and "label".
        error: [N]
        n_words: [pairs] of the pairs' documents.
    """
    lifted = n_words / given.covered
    own = strata[:, given.document].astype(np.int64)
    # A unit's pairs, by its pairs of strata; a pair of strata is of errors alone, or of none.
    order = np.lexsort((own[1], own[0], given.unit))
    key = np.stack([given.unit[order], *own[:, order]])
    first = np.flatnonzero(np.append(True, (key[:, 1:] != key[:, :-1]).any(0))[: key.shape[1]])
    x = given.x[:, order]
    sums = np.stack([x, x**2, x**3, x * lifted[order]], axis=1)
    sums = np.add.reduceat(sums, first, axis=2) if len(first) else sums
    unit = pa.array(key[0, first])
    columns = {
        "model": pa.repeat(model, len(first)),
        "kind": units.table["kind"].combine_chunks().take(unit),
        "form": units.table["form"].combine_chunks().take(unit),
        "predicted_stratum": key[1, first], "label_stratum": key[2, first],
        "error": error[given.document[order][first]],
        "n_documents": np.diff(np.append(first, len(order))),
    }
    columns |= {f"{name}_{moment}": sums[i, j]
                for i, name in enumerate(names) for j, moment in enumerate(MOMENTS)}
    shards.write(pa.table(columns).cast(tables.sums(names)), path)
