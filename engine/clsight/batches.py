"""Texts -> pieces, tokenised once -> packed batches of similar length, without padding."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """The pieces of n texts, one after the other; text i has the pieces offsets[i]:offsets[i+1]."""

    ids: npt.NDArray[np.int32]
    """Vocabulary index of each piece."""
    start: npt.NDArray[np.int32]
    """First character of each piece in its text; special pieces, and only they, have (0, 0)."""
    end: npt.NDArray[np.int32]
    """One past the last character."""
    offsets: Integers
    """[n + 1]"""
    segments: npt.NDArray[np.int32]
    """Token type of each piece; 0 where the model's tokenizer makes no difference."""
    truncated: npt.NDArray[np.bool_]
    """[n] the text was longer than the model's maximum."""

    @property
    def lengths(self) -> Integers:
        """[n] number of pieces, special ones included."""
        return np.diff(self.offsets)


TEXTS_AT_A_TIME = 512
"""Texts per call of a tokenizer, whose answer holds some 30 kB of Python objects a text."""


def tokenise(
    tokenizer: Any, texts: list[str], max_length: int, pairs: list[str] | None = None
) -> Pieces:
    """Pieces of every text, cut at `max_length` pieces (special ones included).

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: the texts.
        max_length: most pieces of a document; of a pair the longer text is cut first.
        pairs: the second text of each pair; its characters count on from those of the first, with
            one character between them.
    """
    parts = [
        _tokenise(tokenizer, texts[some], pairs[some] if pairs else None, max_length)
        for some in (slice(first, first + TEXTS_AT_A_TIME)
                     for first in range(0, len(texts), TEXTS_AT_A_TIME))
    ]
    ids, spans, segments, lengths, truncated = (
        np.concatenate(columns) for columns in zip(_NO_TEXTS, *parts, strict=True)
    )
    return Pieces(
        ids=ids,
        start=np.ascontiguousarray(spans[:, 0]),
        end=np.ascontiguousarray(spans[:, 1]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        segments=segments,
        truncated=truncated,
    )


def tokenise_in_worker(
    folder: str, texts: list[str], max_length: int, pairs: list[str] | None
) -> Pieces:
    """`tokenise` with the tokenizer of a checkpoint folder, for processes that have no model."""
    return tokenise(_tokenizer(folder), texts, max_length, pairs)


@cache
def _tokenizer(folder: str) -> Any:
    """One that `models.inspect` has opened before; `models` itself would bring torch along."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


_NO_TEXTS = (np.empty(0, np.int32), np.empty((0, 2), np.int32), np.empty(0, np.int32),
             np.empty(0, np.int64), np.empty(0, np.bool_))


def _tokenise(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[npt.NDArray[Any], ...]:
    """Ids, spans [pieces, 2], token types, lengths and truncation of texts in one call."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    # The encodings themselves: transformers would make a dictionary of lists of each, which takes
    # half as long again as tokenising.
    encodings = backend.encode_batch(texts if pairs is None else [*zip(texts, pairs, strict=True)])
    lengths = np.array([*map(len, encodings)], dtype=np.int64)
    n_special = tokenizer.num_special_tokens_to_add(pair=pairs is not None) * len(texts)
    last = np.array([*map(len, texts)]) - 1
    spans = _flat(chain.from_iterable(one.offsets for one in encodings)).reshape(-1, 2)
    if pairs is None:
        spans = _placed(spans, n_special, encodings, np.repeat(last, lengths))
    else:
        in_pair = np.concatenate([np.equal(one.sequence_ids, 1) for one in encodings])
        last_of_pair = np.array([*map(len, pairs)]) - 1
        ends = np.where(in_pair, np.repeat(last_of_pair, lengths), np.repeat(last, lengths))
        spans = _placed(spans, n_special, encodings, ends)
        spans[in_pair] += np.repeat(last, lengths)[in_pair, None].astype(np.int32) + 2
    ids = _flat(one.ids for one in encodings)
    if "token_type_ids" in tokenizer.model_input_names:
        segments = _flat(one.type_ids for one in encodings)
    else:
        segments = np.zeros_like(ids)
    truncated = np.array([bool(one.overflowing) for one in encodings], dtype=np.bool_)
    return ids, spans, segments, lengths, truncated


def _flat(lists: Iterable[Iterable[int]]) -> npt.NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32)


def _placed(
    spans: npt.NDArray[np.int32], n_special: int, encodings: list[Any], last: Integers
) -> npt.NDArray[np.int32]:
    """The spans, where only the `n_special` special pieces have no character.

    RoBERTa's tokenizer trims white space off its spans and leaves none to a piece of white space
    alone: such a piece gets the next character of its text, or the text's `last`.
    """
    empty = spans[:, 0] >= spans[:, 1]
    if np.count_nonzero(empty) > n_special:
        special = _flat(one.special_tokens_mask for one in encodings)
        (trimmed,) = np.nonzero(empty & (special == 0))
        spans[trimmed, 0] = np.minimum(spans[trimmed, 0], np.maximum(last[trimmed], 0))
        spans[trimmed, 1] = spans[trimmed, 0] + 1
    return spans


@dataclass(frozen=True)
class Batch:
    """Documents whose pieces go through the model as one row, grouped by equal length.

    Equal lengths lie side by side, so that attention within a group is one dense call: no padding,
    and no loop over documents.
    """

    documents: Integers
    """[n] indices of the documents, by length."""
    groups: tuple[tuple[int, int, int], ...]
    """(first piece, number of documents, pieces per document) of each distinct length."""

    @property
    def n_pieces(self) -> int:
        """Pieces in the batch."""
        first, documents, length = self.groups[-1]
        return first + documents * length


def pack(lengths: Integers, tokens_per_batch: int) -> list[Batch]:
    """Batches over all documents, longest first, each of at most `tokens_per_batch` pieces.

    A longer document has a batch of its own. Longest first, so that memory is at its peak at once.

    Args:
        lengths: [n] pieces per document.
        tokens_per_batch: pieces per batch.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    cuts = [0]
    while cuts[-1] < len(order):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cut = int(np.searchsorted(ends, before + tokens_per_batch, side="right"))
        cuts.append(max(cut, cuts[-1] + 1))
    return [batch_of(order[first:last], lengths) for first, last in pairwise(cuts)]


def batch_of(documents: Integers, lengths: Integers) -> Batch:
    """The batch of some documents, given by falling length; `lengths` [n] are those of all."""
    length, count = np.unique(-lengths[documents], return_counts=True)
    first = np.concatenate([[0], np.cumsum(-length * count)[:-1]])
    groups = zip(first.tolist(), count.tolist(), (-length).tolist(), strict=True)
    return Batch(documents, tuple(groups))


def gather(offsets: Integers, documents: Integers) -> tuple[Integers, Integers]:
    """Where the documents' pieces lie, and each piece's place in its document.

    Returns:
        index into the flat pieces, and position from 0 within the document; one value per piece of
        the documents, in their order.
    """
    lengths = offsets[documents + 1] - offsets[documents]
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return np.repeat(offsets[documents], lengths) + position, position


def without_padding(
    ids: npt.NDArray[np.integer[Any]], position: Integers, padding: int
) -> Integers:
    """Positions as RoBERTa counts them: a padding piece that a text spells out has none (-1).

    Args:
        ids: [T] vocabulary indices.
        position: [T] from 0 in each document, as `gather` gives them.
        padding: the id of the padding piece.
    """
    counted = ids != padding
    if counted.all():
        return position
    behind = np.cumsum(counted)
    before = (behind - counted)[np.arange(len(ids)) - position]
    return np.where(counted, behind - before - 1, -1)
