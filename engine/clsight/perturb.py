"""Changed documents: some of their words masked, or taken out.

A word stands for all pieces of which any part lies in it; special pieces belong to no word and stay
as they are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clsight.batches import Integers, Pieces, gather
from clsight.errors import UsageError
from clsight.kernels import kernel
from clsight.pieces import most_parts, words_of_pieces
from clsight.references import mask_piece
from clsight.scores import Words

if TYPE_CHECKING:
    from clsight.models import Classifier

Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """Which words the pieces of all documents lie in: of piece[k], share[k] belongs to word[k]."""

    piece: Integers
    word: Integers
    share: npt.NDArray[np.float64]

    def summed(self, values: Floats, n_words: int) -> Floats:
        """[words] sums over their pieces of values [T]; the rule of `scores.word_scores`."""
        sums = np.bincount(self.word, self.share * values[self.piece], n_words)
        return sums.astype(np.float32)

    def hit(self, words: Booleans, n_pieces: int) -> Booleans:
        """[sets, T] the pieces of sets of words [sets, words]."""
        hit = np.zeros((len(words), n_pieces), np.bool_)
        of_set, part = np.nonzero(words[:, self.word])
        hit[of_set, self.piece[part]] = True
        return hit

    def each(self, pieces: Pieces, words: Words, first: int, last: int) -> Booleans:
        """[pieces of the copies] the pieces of word w in the w-th copy.

        The copies are of the documents first:last, one of a document for each of its words.
        """
        lengths = np.repeat(pieces.lengths[first:last], np.diff(words.offsets[first : last + 1]))
        begin = np.cumsum(lengths) - lengths
        # Parts follow each other as documents do, not as words within a document.
        document = np.searchsorted(pieces.offsets, self.piece, side="right") - 1
        own = slice(*np.searchsorted(document, (first, last)))
        hit = np.zeros(int(lengths.sum()), np.bool_)
        place = self.piece[own] - pieces.offsets[document[own]]
        hit[begin[self.word[own] - words.offsets[first]] + place] = True
        return hit


def parts_of(pieces: Pieces, words: Words) -> Parts:
    """The parts of documents' pieces in their words."""
    most = int(np.maximum(pieces.end - pieces.start, 1).sum())
    piece, word = np.empty(most, np.int64), np.empty(most, np.int64)
    share = np.empty(most)
    n = _parts(pieces.offsets, pieces.start, pieces.end, words.offsets, words.start, words.end,
               piece, word, share)
    return Parts(piece[:n], word[:n], share[:n])


@kernel
def _parts(  # type: ignore[no-untyped-def]
    piece_offsets, piece_start, piece_end, word_offsets, word_start, word_end, piece, word, share
):
    """Fill piece, word and share; returns how many there are."""
    n = 0
    for i in range(len(piece_offsets) - 1):
        first_piece, last_piece = piece_offsets[i], piece_offsets[i + 1]
        first_word, last_word = word_offsets[i], word_offsets[i + 1]
        if first_word == last_word:
            continue
        most = most_parts(piece_start, piece_end, first_piece, last_piece)
        alone = np.empty(last_piece - first_piece, np.uint32)
        own_piece, own_word = np.empty(most, np.uint32), np.empty(most, np.uint32)
        own_share = np.empty(most)
        n_parts = words_of_pieces(
            piece_start, piece_end, first_piece, last_piece, word_start, word_end, first_word,
            last_word, alone, own_piece, own_word, own_share,
        )
        for p in range(last_piece - first_piece):
            if alone[p] < last_word - first_word:
                piece[n], word[n], share[n] = first_piece + p, first_word + alone[p], 1.0
                n += 1
        for k in range(n_parts):
            piece[n], word[n] = first_piece + own_piece[k], first_word + own_word[k]
            share[n] = own_share[k]
            n += 1
    return n


def ranks(scores: Floats, words: Words) -> Integers:
    """[words] the place of each word in its document by falling score, from 0; ties by position."""
    n_words = np.diff(words.offsets)
    order = np.lexsort((-scores, np.repeat(np.arange(len(n_words)), n_words)))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores)) - np.repeat(words.offsets[:-1], n_words)
    return rank


def top(rank: Integers, words: Words, fraction: float) -> Booleans:
    """[words] whether a word is among the max(1, round(fraction * words)) first of its document."""
    n_words = np.diff(words.offsets)
    k = np.maximum(1, np.rint(fraction * n_words))
    return rank < np.repeat(k, n_words)


def perturbed(
    pieces: Pieces, documents: Integers, hit: Booleans, mask: int, remove: bool = False
) -> Pieces:
    """Copies of documents in which some pieces are masked, or taken out.

    Args:
        pieces: of all documents.
        documents: [m] which document each copy is of.
        hit: [pieces of the copies] which pieces of the copies, in their order.
        mask: vocabulary index of the mask piece.
        remove: take them out. Where nothing would be left of a copy, for the tokenizer has no
            special pieces, its first piece stays, masked.
    """
    index, position = gather(pieces.offsets, documents)
    lengths, kept = pieces.lengths[documents], np.ones(len(index), np.bool_)
    if remove:
        copy = np.repeat(np.arange(len(documents)), lengths)
        left = np.bincount(copy[~hit], minlength=len(documents))
        kept = ~hit | ((position == 0) & (left[copy] == 0))
        index, lengths = index[kept], np.maximum(left, 1)
    return Pieces(
        np.where(hit[kept], np.int32(mask), pieces.ids[index]), pieces.start[index],
        pieces.end[index], np.concatenate([[0], np.cumsum(lengths)]), pieces.segments[index],
        pieces.truncated[documents],
    )


def stand_in(classifier: "Classifier") -> int:
    """Vocabulary index of the piece that stands for a word that is masked.

    Raises:
        UsageError: the tokenizer has none.
    """
    index = mask_piece(classifier.tokenizer)
    if index is None:
        raise UsageError(f"the tokenizer of {classifier.model.config.name_or_path} has no piece "
                         "that could stand for a masked word; leave this model out")
    return index
