"""Attention rows -> word scores, from the Arrow buffers in place.

    uniform       a word's share of attention, mean over heads
    classifier    heads averaged with the classifier's weights, W_o ignored
    projected     the same with W_o
    contribution  what the word adds to the margin, first order, exact; signed

A word's score is the sum over its pieces. A piece that spans several words (one piece for `."`) is
divided among them by the characters they have in it, so that words keep the mass of their pieces;
special pieces and pieces of white space belong to no word.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clsight import shards, tables, weights
from clsight.kernels import inlined, kernel

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


def score_shard(run: Path, model: str, name: str) -> None:
    """Score the words of one shard: `MODEL/attention` and `documents` -> `MODEL/scores`."""
    words = pq.read_table(run / "documents" / name, columns=["row", "reason", "start", "end"])
    words = words.filter(words["reason"].is_null()).combine_chunks()
    attention = pq.read_table(run / model / "attention" / name).combine_chunks()
    head_weights = weights.from_table(pq.read_table(run / model / "head_weights.parquet"))
    offsets, start = _lists(words["start"])
    _, end = _lists(words["end"])
    scores = word_scores(attention, head_weights, (offsets, start, end))
    lists = pa.array(offsets, pa.int32())
    columns = {score: pa.ListArray.from_arrays(lists, values)
               for score, values in zip(tables.SCORES, scores, strict=True)}
    table = pa.table({"model": attention["model"], "row": attention["row"], **columns})
    shards.write(table.cast(tables.scores()), run / model / "scores" / name)


def word_scores(
    attention: pa.Table,
    head_weights: npt.NDArray[np.float64],
    words: tuple[Integers, Integers, Integers],
) -> Floats:
    """Scores [score, words] of all documents of a shard, in the order of `tables.SCORES`.

    Args:
        attention: rows of `tables.attention`, the last layer's values at the end of each list.
        head_weights: [weighting, class, runner-up, head] of `weights.head_weights`.
        words: offsets [documents + 1], start and end [words] in characters.
    """
    n_classes = head_weights.shape[1]
    logits = _lists(attention["logits"])[1].reshape(-1, n_classes)
    ranked = np.argsort(-logits, axis=1, kind="stable")
    chosen = np.ascontiguousarray(head_weights[:, ranked[:, 0], ranked[:, 1]].transpose(1, 0, 2))
    piece_offsets, piece_start = _lists(attention["start"])
    row_offsets, rows = _lists(attention["attention"])
    scores = np.zeros((chosen.shape[1] + 1, len(words[1])), dtype=np.float64)
    _score(
        piece_offsets, piece_start, _lists(attention["end"])[1], row_offsets, rows,
        _lists(attention["contribution"])[1], chosen, *words, scores,
    )
    return scores.astype(np.float32)


@kernel
def _score(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, row_offsets, rows, contribution, head_weights,
    word_offsets, word_start, word_end, scores,
):
    """Add each piece's scores to its words: one pass over the rows for all weightings."""
    n_weightings, n_heads = head_weights.shape[1:]
    for document in range(len(piece_offsets) - 1):
        first, last = piece_offsets[document], piece_offsets[document + 1]
        n_pieces = last - first
        # The last layer's rows are the last n_heads * n_pieces values of the document.
        row = row_offsets[document + 1] - n_heads * n_pieces
        first_word, last_word = word_offsets[document], word_offsets[document + 1]
        word = first_word
        for piece in range(first, last):
            start, end = piece_start[piece], piece_end[piece]
            if start >= end:
                continue
            while word > first_word and word_end[word - 1] > start:
                word -= 1
            while word < last_word and word_end[word] <= start:
                word += 1
            spanned = _spanned(start, end, word_start, word_end, word, last_word)
            covered = word
            while covered < last_word and word_start[covered] < end:
                part = _overlap(start, end, word_start[covered], word_end[covered]) / spanned
                for weighting in range(n_weightings):
                    value = 0.0
                    for head in range(n_heads):
                        value += (
                            head_weights[document, weighting, head]
                            * rows[row + head * n_pieces + piece - first]
                        )
                    scores[weighting, covered] += part * value
                scores[n_weightings, covered] += part * contribution[piece]
                covered += 1


@inlined
def _overlap(start: int, end: int, other_start: int, other_end: int) -> int:
    return min(end, other_end) - max(start, other_start)


@inlined
def _spanned(  # type: ignore[no-untyped-def]
    start, end, word_start, word_end, word, last_word
):
    """Characters of the piece that lie in words."""
    spanned = 0
    while word < last_word and word_start[word] < end:
        spanned += _overlap(start, end, word_start[word], word_end[word])
        word += 1
    return spanned


def _lists(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """Offsets and flat values of a list column, without a copy."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    offsets = array.offsets.to_numpy()
    return offsets - offsets[0], array.flatten().to_numpy()
