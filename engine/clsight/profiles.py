"""Per shard, sums that say what heads look at and how far scores agree; SQL adds them up.

    heads      entropy of each head's [CLS] row, and its attention on [CLS], separators, punctuation
    agreement  rank correlation and top words of each pair of scores, and how much of the margin's
               variance each score's sum over words has
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsight import shards, tables
from clsight.kernels import inlined, kernel

Floats = npt.NDArray[np.float64]

TOP = 5
"""Words that are compared between scores; only documents with more words count."""
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
    sums = np.zeros((2, len(layers), n_heads, len(PROFILE)))
    _profile(lists.piece_offsets, lists.piece_start, lists.piece_end, rows.offsets.to_numpy(),
             rows.flatten().to_numpy(), lists.word_offsets, lists.word_start, lists.word_end,
             punctuation, correct.astype(np.int64), sums)
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
    pairs = np.zeros((len(names), len(names), 4))
    moments = np.zeros((len(names), len(MOMENTS)))
    _agree(scores, word_offsets, margin, pairs, moments)
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


@kernel
def _profile(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, row_offsets, rows, word_offsets, word_start, word_end,
    punctuation, group, sums,
):
    """sums[group, layer, head] += entropy, and attention on [CLS], separators and punctuation."""
    n_layers, n_heads = sums.shape[1:3]
    for document in range(len(piece_offsets) - 1):
        first, last = piece_offsets[document], piece_offsets[document + 1]
        n_pieces = last - first
        kind = np.zeros(n_pieces, np.int64)
        word = word_offsets[document]
        last_word = word_offsets[document + 1]
        for piece in range(first, last):
            if piece_start[piece] >= piece_end[piece]:
                kind[piece - first] = 2
                continue
            while word > word_offsets[document] and word_end[word - 1] > piece_start[piece]:
                word -= 1
            while word < last_word and word_end[word] <= piece_start[piece]:
                word += 1
            kind[piece - first] = _kind(piece_end[piece], word, last_word, word_start, punctuation)
        # [CLS] is the first piece, or the last where a family puts it there.
        kind[0 if kind[0] == 2 else n_pieces - 1] = 1
        place = row_offsets[document]
        for layer in range(n_layers):
            for head in range(n_heads):
                total = sums[group[document], layer, head]
                for piece in range(n_pieces):
                    weight = rows[place + piece]
                    if weight > 0:
                        total[0] -= weight * np.log(weight)
                    if kind[piece] > 0:
                        total[kind[piece]] += weight
                place += n_pieces


@inlined
def _kind(  # type: ignore[no-untyped-def]
    end, word, last_word, word_start, punctuation
):
    """3 for a piece that lies in punctuation alone, 0 for one that holds a letter or a digit."""
    kind = 0
    while word < last_word and word_start[word] < end:
        if not punctuation[word]:
            return 0
        kind = 3
        word += 1
    return kind


@kernel
def _agree(scores, word_offsets, margin, pairs, moments):  # type: ignore[no-untyped-def]
    """pairs[a, b] += documents and Spearman's rho, longer documents and share of TOP in common."""
    n_scores = len(scores)
    for document in range(len(word_offsets) - 1):
        first, last = word_offsets[document], word_offsets[document + 1]
        n = last - first
        ranks = np.empty((n_scores, n))
        top = np.zeros((n_scores, n), np.bool_)
        for score in range(n_scores):
            values = scores[score, first:last]
            order = np.argsort(-values, kind="mergesort")
            _rank(values, order, ranks[score])
            top[score, order[:TOP]] = True
            x, m = values.astype(np.float64).sum(), margin[document]
            moments[score] += np.array([1.0, x, x * x, m, m * m, x * m])
        for one in range(n_scores):
            for other in range(n_scores):
                centre = (n - 1) / 2
                a, b = ranks[one] - centre, ranks[other] - centre
                spread = np.sqrt((a * a).sum() * (b * b).sum())
                if spread > 0:
                    pairs[one, other, 0] += 1
                    pairs[one, other, 1] += (a * b).sum() / spread
                if n > TOP:
                    pairs[one, other, 2] += 1
                    pairs[one, other, 3] += (top[one] & top[other]).sum() / TOP


@inlined
def _rank(values, order, ranks):  # type: ignore[no-untyped-def]
    """Ranks from 0, largest first; equal values share their mean rank."""
    n, first = len(order), 0
    while first < n:
        last = first
        while last + 1 < n and values[order[last + 1]] == values[order[first]]:
            last += 1
        for i in range(first, last + 1):
            ranks[order[i]] = (first + last) / 2
        first = last + 1
