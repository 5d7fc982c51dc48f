"""Attention rows and piece scores -> word scores, from the Arrow buffers in place.

    uniform       mean over heads of the attention row: the heatmap's [CLS] row
    classifier    heads averaged with the classifier's weights, W_o ignored (`weights`)
    projected     the same with W_o
    norm, contribution, rollout, relevance, conservative: made for each piece by `attention`

A word's score is the sum over its pieces. A piece that spans several words (one piece for `."`) is
divided among them by the characters they have in it; one that lies in no word (white space) goes to
the word that follows, or to the last. So words keep the mass of all pieces but the special ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clsight import profiles, shards, tables, weights
from clsight.kernels import inlined, kernel
from clsight.plan import ModelPlan, Plan

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Words:
    """The words of the n documents of a shard."""

    offsets: Integers
    """[n + 1]"""
    start: Integers
    end: Integers
    """[words] in characters."""


def score_shard(run: Path, plan: Plan, model: str, name: str) -> None:
    """Make a shard's part of the folders in `shards.SCORED` from its attention and documents."""
    documents = pq.read_table(run / "documents" / name,
                              columns=["reason", "label", "form", "start", "end"])
    documents = documents.filter(documents["reason"].is_null()).combine_chunks()
    attention = pq.read_table(run / model / "attention" / name).combine_chunks()
    head_weights = weights.from_table(pq.read_table(run / model / "head_weights.parquet"))
    offsets, start = _lists(documents["start"])
    words = Words(offsets, start, _lists(documents["end"])[1])
    scores = word_scores(attention, plan.scores, plan.models[model], head_weights, words)
    _profile(run, model, name, attention, documents, words, head_weights,
             plan.models[model])
    profiles.write_agreement(run / model / "agreement" / name, model, plan.scores, scores, offsets,
                             attention["target_margin"].to_numpy())
    lists = pa.array(offsets, pa.int32())
    columns = {score: pa.ListArray.from_arrays(lists, values)
               for score, values in zip(plan.scores, scores, strict=True)}
    table = pa.table({"model": attention["model"], "row": attention["row"], **columns})
    shards.write(table.cast(tables.scores(plan.scores)), run / model / "scores" / name)


def _profile(
    run: Path, model: str, name: str, attention: pa.Table, documents: pa.Table, words: Words,
    head_weights: npt.NDArray[np.float64], plan: ModelPlan,
) -> None:
    """Write `MODEL/heads` of a shard."""
    piece_offsets, piece_start = _lists(attention["start"])
    lists = profiles.Lists(piece_offsets, piece_start, _lists(attention["end"])[1],
                           words.offsets, words.start, words.end)
    forms = pc.list_flatten(documents["form"]).combine_chunks()
    correct = pc.equal(attention["predicted"], documents["label"]).to_numpy()
    of_documents = _of_documents(head_weights[1:], attention, plan.labels)
    profiles.write_heads(run / model / "heads" / name, model, lists, attention, forms, correct,
                         of_documents, plan.layers)


def word_scores(
    attention: pa.Table,
    names: tuple[str, ...],
    model: ModelPlan,
    head_weights: npt.NDArray[np.float64],
    words: Words,
) -> Floats:
    """Scores [score, words] of all documents of a shard, in the order of `names`.

    Args:
        attention: rows of `tables.attention`.
        names: scores.
        model: whose rows they are.
        head_weights: [weighting, class, runner-up, head] of `weights.head_weights`.
        words: the documents' words.
    """
    from_rows = [i for i, score in enumerate(names) if tables.base(score) in tables.FROM_ROWS]
    from_pieces = [i for i, score in enumerate(names) if i not in from_rows]
    layers = [tables.score_layer(names[i]) for i in from_rows]
    places = [model.layers.index(model.layers[-1] if layer is None else layer) for layer in layers]
    weightings = [weights.WEIGHTINGS.index(tables.base(names[i])) for i in from_rows]
    chosen = _of_documents(head_weights[weightings], attention, model.labels)
    piece_offsets, piece_start = _lists(attention["start"])
    row_offsets, rows = _lists(attention["attention"])
    pieces = [_lists(attention[names[i]])[1] for i in from_pieces]
    scores = np.zeros((len(names), len(words.start)), dtype=np.float64)
    _score(
        piece_offsets, piece_start, _lists(attention["end"])[1], row_offsets, rows,
        np.array(places, dtype=np.int64), chosen, np.array(from_rows, dtype=np.int64),
        np.array(pieces, dtype=np.float32).reshape(len(pieces), len(piece_start)),
        np.array(from_pieces, dtype=np.int64), words.offsets, words.start, words.end, scores,
    )
    return scores.astype(np.float32)


def _of_documents(
    head_weights: npt.NDArray[np.float64], attention: pa.Table, labels: tuple[int | str, ...]
) -> npt.NDArray[np.float64]:
    """[documents, weighting, head] weights of each document's target against its best other."""
    logits = _lists(attention["logits"])[1].reshape(-1, len(labels))
    known = pa.array(labels, attention.schema.field("target").type)
    target = pc.index_in(attention["target"], known).to_numpy()
    others = np.where(target[:, None] == np.arange(len(labels)), -np.inf, logits)
    chosen = head_weights[:, target, others.argmax(1)]
    return np.ascontiguousarray(chosen.transpose(1, 0, 2))


@kernel
def _score(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, row_offsets, rows, layers, head_weights, from_rows,
    pieces, from_pieces, word_offsets, word_start, word_end, scores,
):
    """Add each piece's scores to its words: one pass over the rows for all weightings.

    scores[from_rows[i]] is the i-th weighting of heads, over the rows of the stored layer
    layers[i]; scores[from_pieces[i]] the sum of pieces[i].
    """
    n_weightings, n_heads = head_weights.shape[1:]
    for document in range(len(piece_offsets) - 1):
        first, last = piece_offsets[document], piece_offsets[document + 1]
        n_pieces = last - first
        row = row_offsets[document]
        first_word, last_word = word_offsets[document], word_offsets[document + 1]
        if first_word == last_word:
            continue
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
            if spanned == 0:  # lies in no word: as one character of the word that follows
                word = min(word, last_word - 1)
                start, end, spanned = word_start[word], word_start[word] + 1, 1
            covered = word
            while covered < last_word and word_start[covered] < end:
                part = _overlap(start, end, word_start[covered], word_end[covered]) / spanned
                for i in range(n_weightings):
                    value = 0.0
                    place = row + layers[i] * n_heads * n_pieces + piece - first
                    for head in range(n_heads):
                        value += head_weights[document, i, head] * rows[place + head * n_pieces]
                    scores[from_rows[i], covered] += part * value
                for i in range(len(pieces)):
                    scores[from_pieces[i], covered] += part * pieces[i, piece]
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
