"""Per shard, sums that say what heads look at and how far scores agree; SQL adds them up.

    heads      entropy of each head's [CLS] row, and its attention on [CLS], separators, punctuation
    agreement  rank correlation and top words of each pair of scores, and how much of the margin's
               variance each score's sum over words has
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsight import shards, tables
from clsight.kernels import Function, in_threads, kernel
from clsight.pieces import most_parts, words_of_pieces

Floats = npt.NDArray[np.float64]

TOP = 5
"""Words that are compared between scores; only documents with more words count."""
COUNTED = 1000
"""Most words whose ranks are found by counting."""
BLOCK = 512
"""Documents whose sums one thread adds up."""
PROFILE = ("entropy", "on_cls", "on_separators", "on_punctuation")
MOMENTS = ("n", "x", "xx", "m", "mm", "xm")
"""Sums over documents of 1, of a score's sum over words x, of the target's margin m, ..."""


@dataclass(frozen=True)
class Lists:
    """The n documents of a shard in flat arrays; offsets are [n + 1]."""

    piece_offsets: npt.NDArray[np.int32]
    piece_start: npt.NDArray[np.int32]
    piece_end: npt.NDArray[np.int32]
    word_offsets: npt.NDArray[np.int32]
    word_start: npt.NDArray[np.int32]
    word_end: npt.NDArray[np.int32]


def write_heads(
    path: Path, model: str, lists: Lists, attention: pa.Table, forms: pa.Array,
    correct: npt.NDArray[np.bool_], weights: Floats, layers: tuple[int, ...],
) -> None:
    """Write the sums of a shard as `tables.heads`.

    Args:
        path: where to.
        model: whose rows they are.
        lists: the documents.
        attention: rows of `tables.attention`.
        forms: [words] spellings.
        correct: [n] the prediction is the gold label.
        weights: [2, n, heads] `classifier` and `projected` weights, of the last layer.
        layers: which layers' rows are stored.
    """
    n_heads = weights.shape[2]
    rows = attention["attention"].combine_chunks()
    punctuation = pc.match_substring_regex(forms, r"^[^\p{L}\p{N}]+$").to_numpy(False)
    given = (lists.piece_offsets, lists.piece_start, lists.piece_end, rows.offsets.to_numpy(),
             rows.flatten().to_numpy(), lists.word_offsets, lists.word_start, lists.word_end,
             punctuation, correct.astype(np.int64))
    sums = _summed(_profile, len(correct), given, (2, len(layers), n_heads, len(PROFILE)))
    index = np.indices(sums.shape[:3]).reshape(3, -1)
    counts = np.bincount(correct, minlength=2)[index[0]]
    weight = np.full((2, *sums.shape[:3]), np.nan)
    for outcome in range(2):
        weight[:, outcome, -1] = weights[:, correct == outcome].sum(1)
    columns = {"correct": index[0].astype(bool), "layer": np.array(layers)[index[1]],
               "head": index[2], "n_documents": counts}
    columns |= {name: sums[..., i].ravel() for i, name in enumerate(PROFILE)}
    columns |= {name: pa.array(weight[i].ravel(), from_pandas=True)
                for i, name in enumerate(("classifier", "projected"))}
    columns = {"model": pa.repeat(model, index.shape[1])} | columns
    shards.write(pa.table(columns).cast(tables.heads()), path)


def write_agreement(
    path: Path, model: str, names: tuple[str, ...], scores: npt.NDArray[np.float32],
    word_offsets: npt.NDArray[np.int32], margin: Floats,
) -> None:
    """Write how the scores [score, words] of a shard agree, as `tables.agreement`."""
    pairs = _summed(_agree, len(margin), (scores, word_offsets), (len(names), len(names), 4))
    moments = _summed(_moments, len(margin), (scores, word_offsets, margin),
                      (len(names), len(MOMENTS)))
    one, other = (index.ravel() for index in np.indices(pairs.shape[:2]))
    taken = pa.array(names)
    columns = {
        "model": pa.repeat(model, len(one)), "score": taken.take(pa.array(one)),
        "other": taken.take(pa.array(other)),
        **{name: pairs[..., i].ravel() for i, name in enumerate(
            ("n_ranked", "rank_correlation", "n_longer", "top_shared"))},
        **{name: moments[one, i] for i, name in enumerate(MOMENTS)},
    }
    shards.write(pa.table(columns).cast(tables.agreement()), path)


def _summed(
    function: Function, n_documents: int, given: tuple[Any, ...], shape: tuple[int, ...]
) -> Floats:
    """Sums over documents that a kernel adds up, in blocks that do not depend on the threads."""
    cuts = np.append(np.arange(0, n_documents, BLOCK), n_documents)
    sums = np.zeros((len(cuts) - 1, *shape))
    in_threads(lambda first, last: function(*given, first, last, sums[first // BLOCK]), cuts)
    total: Floats = sums.sum(0)
    return total


@kernel
def _profile(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, row_offsets, rows, word_offsets, word_start, word_end,
    punctuation, group, first, last, sums,
):
    """sums[group, layer, head] += entropy, and attention on [CLS], separators and punctuation."""
    n_layers, n_heads = sums.shape[1:3]
    attended = np.zeros(4)
    for document in range(first, last):
        kind = _kinds(
            piece_start, piece_end, piece_offsets[document], piece_offsets[document + 1],
            word_start, word_end, word_offsets[document], word_offsets[document + 1], punctuation,
        )
        place = row_offsets[document]
        for layer in range(n_layers):
            for head in range(n_heads):
                row = rows[place : place + len(kind)]
                attended[:] = 0.0
                entropy = 0.0
                for piece in range(len(kind)):
                    weight = row[piece]
                    if weight > 0:
                        entropy -= weight * np.log(weight)
                    attended[kind[piece]] += weight
                total = sums[group[document], layer, head]
                total[0] += entropy
                total[1:] += attended[1:]
                place += len(kind)


@kernel
def _kinds(  # type: ignore[no-untyped-def]
    piece_start, piece_end, first_piece, last_piece, word_start, word_end, first_word, last_word,
    punctuation,
):
    """Of each piece of a document: 1 [CLS], 2 separator, 3 in punctuation alone, 0 any other."""
    n_pieces, n_words = last_piece - first_piece, last_word - first_word
    most = most_parts(piece_start, piece_end, first_piece, last_piece)
    alone, piece = np.empty(n_pieces, np.uint32), np.empty(most, np.uint32)
    word, share = np.empty(most, np.uint32), np.empty(most)
    kind, n_parts = np.zeros(n_pieces, np.uint8), 0
    if n_words > 0:
        n_parts = words_of_pieces(
            piece_start, piece_end, first_piece, last_piece, word_start, word_end, first_word,
            last_word, alone, piece, word, share,
        )
    for p in range(n_pieces):
        if piece_start[first_piece + p] >= piece_end[first_piece + p]:
            kind[p] = 2
        elif n_words > 0 and alone[p] < n_words and punctuation[first_word + alone[p]]:
            kind[p] = 3
    for k in range(n_parts):
        p, w = first_piece + piece[k], first_word + word[k]
        if k == 0 or piece[k - 1] != piece[k]:
            kind[piece[k]] = 3
        if not punctuation[w] or word_start[w] >= piece_end[p] or word_end[w] <= piece_start[p]:
            kind[piece[k]] = 0
    # [CLS] is the first piece, or the last where a family puts it there.
    kind[0 if kind[0] == 2 else n_pieces - 1] = 1
    return kind


@kernel
def _agree(scores, word_offsets, first, last, pairs):  # type: ignore[no-untyped-def]
    """pairs[a, b] += documents and Spearman's rho, longer documents and share of TOP in common."""
    n_scores = len(scores)
    for document in range(first, last):
        begin, end = word_offsets[document], word_offsets[document + 1]
        ranks = np.empty((n_scores, end - begin), np.int64)
        top = np.empty((n_scores, end - begin), np.int64)
        for score in range(n_scores):
            _rank(scores[score, begin:end], ranks[score], top[score])
        for one in range(n_scores):
            for other in range(one, n_scores):
                spread = math.sqrt(
                    float(_dot(ranks[one], ranks[one])) * float(_dot(ranks[other], ranks[other])))
                if spread > 0:
                    pairs[one, other, 0] += 1
                    pairs[one, other, 1] += _dot(ranks[one], ranks[other]) / spread
                if end - begin > TOP:
                    pairs[one, other, 2] += 1
                    pairs[one, other, 3] += _dot(top[one], top[other]) / TOP
    for one in range(n_scores):
        for other in range(one):
            pairs[one, other] = pairs[other, one]


@kernel
def _rank(values, ranks, top):  # type: ignore[no-untyped-def]
    """Fill ranks with twice the centred rank, larger values less, and top: 1 for the first TOP.

    Counting runs in SIMD lanes: n^2 comparisons are faster than sorting up to some 1,000 words.
    Equal values share their mean rank; of those, the first ones come first in `top`.
    """
    if len(values) > COUNTED:
        return _rank_sorted(values, ranks, top)
    for i in range(len(values)):
        value, larger, smaller = values[i], np.int32(0), np.int32(0)
        for j in range(len(values)):
            larger = np.int32(larger + np.int32(values[j] > value))
            smaller = np.int32(smaller + np.int32(values[j] < value))
        ranks[i] = larger - smaller
        before = 0
        if larger < TOP:
            for j in range(i):
                before += values[j] == value
        top[i] = larger + before < TOP


@kernel
def _rank_sorted(values, ranks, top):  # type: ignore[no-untyped-def]
    """The same by sorting: counting takes 12 s for a text of 225,000 words."""
    order, n, first = np.argsort(-values, kind="mergesort"), len(values), 0
    for last in range(1, n + 1):
        if last == n or values[order[last]] != values[order[first]]:
            for place in range(first, last):
                ranks[order[place]] = first - (n - last)
                top[order[place]] = place < TOP
            first = last


@kernel
def _dot(a, b):  # type: ignore[no-untyped-def]
    """Of whole numbers, whose sum can be taken in any order, and so in SIMD lanes."""
    total = 0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel
def _moments(scores, word_offsets, margin, first, last, moments):  # type: ignore[no-untyped-def]
    """moments[score] += `MOMENTS` of each document."""
    for document in range(first, last):
        m = margin[document]
        for score in range(len(scores)):
            x = 0.0
            for word in range(word_offsets[document], word_offsets[document + 1]):
                x += scores[score, word]
            for i, value in enumerate((1.0, x, x * x, m, m * m, x * m)):
                moments[score, i] += value
