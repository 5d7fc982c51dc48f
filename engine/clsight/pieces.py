"""Pieces -> words: which words each piece of a document lies in, by characters.

A piece that spans several words (one piece for `."`) is divided among them by the characters they
have in it; one that lies in no word (white space) goes to the word that follows, or to the last.
"""

import numpy as np

from clsight.kernels import inlined


@inlined
def words_of_pieces(  # type: ignore[no-untyped-def]
    piece_start, piece_end, first_piece, last_piece, word_start, word_end, first_word, last_word,
    alone, piece, word, share,
):
    """Say in which words the pieces of a document lie, which has words; returns a number of parts.

    alone[p] is the one word that piece p lies in, or the number of words where there is no such
    word. All other pieces but the special ones have parts: of piece[k], share[k] goes to word[k].
    All count from the document's first.
    """
    n_parts = 0
    first, last = np.uint64(first_word), np.uint64(last_word - 1)
    origin, at, before = np.uint64(first_piece), first, 0
    for p in range(np.uint64(first_piece), np.uint64(last_piece)):
        start, end = piece_start[p], piece_end[p]
        # Nearly every piece lies in the word of the piece before or in the next one: no branch,
        # for nothing could predict it.
        at += np.uint64(word_end[at] <= start) & np.uint64(at < last)
        if (before <= start) & (start < end) & (word_start[at] < end) & (end <= word_end[at]):
            alone[p - origin] = at - first
            before = start
            continue
        alone[p - origin] = last_word - first_word
        if start < end:
            w, begin = _word_behind(start, word_end, at, first_word, last_word), n_parts
            n_parts = _divide(start, end, word_start, word_end, w, last_word, n_parts, word, share)
            for k in range(begin, n_parts):
                piece[k] = p - origin
                word[k] -= first_word
            at, before = np.uint64(min(w, last_word - 1)), start
    return n_parts


@inlined
def most_parts(piece_start, piece_end, first_piece, last_piece):  # type: ignore[no-untyped-def]
    """The most parts that pieces can have: one for each character, for no word is shorter.

    Many pieces may lie in the same characters: those of one that is written in several bytes.
    """
    parts = 0
    for p in range(np.uint64(first_piece), np.uint64(last_piece)):
        parts += max(int(piece_end[p]) - int(piece_start[p]), 1)
    return parts


@inlined
def _word_behind(start, word_end, word, first_word, last_word):  # type: ignore[no-untyped-def]
    """The first word that ends behind `start`, or last_word; the search starts at `word`."""
    word = np.int64(word)
    while word > first_word and word_end[word - 1] > start:
        word -= 1
    while word < last_word and word_end[word] <= start:
        word += 1
    return word


@inlined
def _divide(  # type: ignore[no-untyped-def]
    start, end, word_start, word_end, first_word, last_word, n_parts, word, share,
):
    """Append the parts of one piece, by characters; first_word is the one that ends behind it."""
    begin, spanned = n_parts, 0
    w = first_word
    while w < last_word and word_start[w] < end:
        word[n_parts] = w
        share[n_parts] = min(end, word_end[w]) - max(start, word_start[w])
        spanned += share[n_parts]
        n_parts += 1
        w += 1
    if n_parts == begin:
        word[n_parts] = min(first_word, last_word - 1)
        share[n_parts], spanned = 1, 1
        n_parts += 1
    for k in range(begin, n_parts):
        share[k] /= spanned
    return n_parts
