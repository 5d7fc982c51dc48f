"""Attention rows and piece scores -> word scores, from the Arrow buffers in place.

    uniform       mean over heads of the attention row: the heatmap's [CLS] row
    classifier    heads averaged with the classifier's weights, W_o ignored (`weights`)
    projected     the same with W_o
    norm, contribution, rollout, relevance, conservative, deeplift: made for each piece by
                  `attention`

A word's score is the sum, in float64, over its pieces or its parts of them (see `pieces`). So words
keep the mass of all pieces but the special ones. Heads are averaged in float32, as rows are stored:
neither rows nor weights are negative, so that nothing cancels, and it takes half of float64's time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsight import profiles, shards, tables, weights
from clsight.kernels import even_cuts, in_threads, inlined, kernel
from clsight.pieces import most_parts, words_of_pieces
from clsight.plan import ModelPlan, Plan

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


LANES = 16
"""Pieces that are weighed at a time."""


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
    documents = shards.read(run / "documents" / name, ["reason", "label", "form", "start", "end"])
    documents = documents.filter(documents["reason"].is_null()).combine_chunks()
    attention = shards.read(run / model / "attention" / name)
    row, answered = attention["row"], attention["problem"].is_null().combine_chunks()
    if attention["problem"].null_count < len(row):
        documents, attention = documents.filter(answered), attention.filter(answered)
    head_weights = weights.from_table(shards.read(run / model / "head_weights.parquet"))
    offsets, start = lists(documents["start"])
    words = Words(offsets, start, lists(documents["end"])[1])
    scores = word_scores(attention, plan.scores, plan.models[model], head_weights, words)
    _profile(run, model, name, attention, documents, words, head_weights,
             plan.models[model])
    profiles.write_agreement(run / model / "agreement" / name, model, plan.scores, scores, offsets,
                             attention["target_margin"].to_numpy())
    list_offsets = pa.array(offsets, pa.int32())
    columns = {
        score: _spread(pa.ListArray.from_arrays(list_offsets, values), answered.to_numpy(False))
        for score, values in zip(plan.scores, scores, strict=True)
    }
    table = pa.table({"model": pa.repeat(model, len(row)), "row": row, **columns})
    shards.write(table.cast(tables.scores(plan.scores)), run / model / "scores" / name)


def _spread(values: pa.Array, there: npt.NDArray[np.bool_]) -> pa.Array:
    """The values at the places that are there, null at all others."""
    if there.all():
        return values
    return values.take(pa.array(np.cumsum(there) - 1, mask=~there))


def _profile(
    run: Path, model: str, name: str, attention: pa.Table, documents: pa.Table, words: Words,
    head_weights: npt.NDArray[np.float64], plan: ModelPlan,
) -> None:
    """Write `MODEL/heads` of a shard."""
    piece_offsets, piece_start = lists(attention["start"])
    given = profiles.Lists(piece_offsets, piece_start, lists(attention["end"])[1],
                           words.offsets, words.start, words.end)
    forms = pc.list_flatten(documents["form"]).combine_chunks()
    correct = pc.equal(attention["predicted"], documents["label"]).to_numpy()
    of_documents = head_weights[1:, *_compared(attention, plan.labels)]
    profiles.write_heads(run / model / "heads" / name, model, given, attention, forms, correct,
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
    target, other = _compared(attention, model.labels)
    piece_offsets, piece_start = lists(attention["start"])
    row_offsets, rows = lists(attention["attention"])
    pieces = [lists(attention[names[i]])[1] for i in from_pieces]
    scores = np.empty((len(names), len(words.start)), dtype=np.float32)
    given = (
        piece_offsets, piece_start, lists(attention["end"])[1], row_offsets, rows,
        np.array(places, dtype=np.int64), head_weights[weightings], target, other,
        np.array(pieces, dtype=np.float32).reshape(len(pieces), len(piece_start)),
        words.offsets, words.start, words.end, np.array(from_rows, dtype=np.int64),
        np.array(from_pieces, dtype=np.int64),
    )
    in_threads(lambda first, last: _score(*given, first, last, scores), even_cuts(piece_offsets))
    return scores


def _compared(
    attention: pa.Table, labels: tuple[int | str, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each document's target and the best class but it, as indices into `labels`."""
    logits = lists(attention["logits"])[1].reshape(-1, len(labels))
    known = pa.array(labels, attention.schema.field("target").type)
    target = pc.index_in(attention["target"], known).to_numpy().astype(np.int64)
    others = np.where(target[:, None] == np.arange(len(labels)), -np.inf, logits)
    return target, others.argmax(1)


@kernel
def _score(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, row_offsets, rows, layers, head_weights, target, other,
    pieces, word_offsets, word_start, word_end, from_rows, from_pieces, first, last, scores,
):
    """Scores [score, words] of the documents first:last: one pass over the rows for all weightings.

    scores[from_rows[i]] is the i-th weighting [class, runner-up, head] of heads, over the rows of
    the stored layer layers[i]; scores[from_pieces[i]] the sum of pieces[i].
    """
    n_heads = head_weights.shape[-1]
    longest, most = 1, 1
    for i in range(first, last):
        longest = max(longest, piece_offsets[i + 1] - piece_offsets[i],
                      word_offsets[i + 1] - word_offsets[i])
        most = max(most, most_parts(piece_start, piece_end, piece_offsets[i], piece_offsets[i + 1]))
    alone, piece = np.empty(longest, np.uint32), np.empty(most, np.uint32)
    word, share = np.empty(most, np.uint32), np.empty(most)
    values, sums = np.empty(longest + LANES, np.float32), np.empty(longest + 1)
    for i in range(first, last):
        first_piece, last_piece = piece_offsets[i], piece_offsets[i + 1]
        first_word, last_word = word_offsets[i], word_offsets[i + 1]
        n_pieces, n_words = last_piece - first_piece, last_word - first_word
        if n_words == 0:
            continue
        n_parts = words_of_pieces(
            piece_start, piece_end, first_piece, last_piece, word_start, word_end, first_word,
            last_word, alone, piece, word, share,
        )
        for j in range(len(from_rows)):
            weights = head_weights[j, target[i], other[i]]
            _weigh(rows, row_offsets[i] + layers[j] * n_heads * n_pieces, n_pieces, weights, values)
            _add_up(values[:n_pieces], alone, n_parts, piece, word, share, sums[: n_words + 1])
            _store(sums, scores[from_rows[j], first_word:last_word])
        for j in range(len(from_pieces)):
            _add_up(pieces[j, first_piece:last_piece], alone, n_parts, piece, word, share,
                    sums[: n_words + 1])
            _store(sums, scores[from_pieces[j], first_word:last_word])


@inlined
def _weigh(rows, place, n_pieces, weights, values):  # type: ignore[no-untyped-def]
    """values[p] = sum over heads h of weights[h] * rows[place + h * n_pieces + p].

    Four heads at a time, so that sums are loaded and stored a quarter as often; for whole vectors,
    into the next row where need be, so that no piece is left to be done alone.
    """
    n_heads, row = len(weights), np.uint64(place)
    n = np.uint64(n_pieces)
    behind = len(rows) - place - (n_heads - 1) * n_pieces
    vectors = np.uint64(min(-(-n_pieces // LANES) * LANES, behind))
    total = values[:vectors]
    total[:] = np.float32(0)
    for head in range(0, n_heads - 3, 4):
        a, b = np.float32(weights[head]), np.float32(weights[head + 1])
        c, d = np.float32(weights[head + 2]), np.float32(weights[head + 3])
        two, three = row + n, row + n + n
        four = three + n
        for p in range(vectors):
            total[p] += (a * rows[row + p] + b * rows[two + p]) + (
                c * rows[three + p] + d * rows[four + p])
        row = four + n
    for head in range(n_heads - n_heads % 4, n_heads):
        a = np.float32(weights[head])
        for p in range(vectors):
            total[p] += a * rows[row + p]
        row += n


@inlined
def _add_up(values, alone, n_parts, piece, word, share, sums):  # type: ignore[no-untyped-def]
    """sums[w] = the values of the pieces of word w; sums has a last place for all others."""
    sums[:] = 0.0
    for p in range(len(values)):
        sums[alone[p]] += values[p]
    for k in range(n_parts):
        sums[word[k]] += share[k] * values[piece[k]]


@inlined
def _store(sums, scores):  # type: ignore[no-untyped-def]
    """Round to float32; an assignment of slices would take two more seconds to compile."""
    for w in range(len(scores)):
        scores[w] = sums[w]


def lists(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """Offsets and flat values of a list column, without a copy."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    offsets = array.offsets.to_numpy()
    return offsets - offsets[0], array.flatten().to_numpy()
