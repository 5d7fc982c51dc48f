"""Texts -> words, once and independently of any model, so that all models share them.

A word is a run of letters, marks and digits (apostrophes inside it kept, as in "it's"), a decimal
number, one ideograph, a run of one repeated punctuation mark, or any other single symbol with the
marks that follow it. Every character that is not white space belongs to exactly one word.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

LETTER = r"[\p{L}\p{M}\p{N}_&&[^\p{Han}]]"
WORD = "|".join(
    [
        r"\p{N}+(?:[.,]\p{N}+)+",
        rf"{LETTER}+(?:['’]{LETTER}+)*",
        *(rf"{mark}{{2,}}" for mark in (r"\.", r"\-", "!", r"\?", r"\*", "=", "~")),
        r"\S(?:[\p{M}\x{FE0F}]|\x{200D}\S)*",
    ]
)
# White space goes to the match behind it, so the matches tile the text and positions are
# cumulative lengths: no second search, and all of it runs in Polars' threads.
TILE = rf"\s*(?:{WORD})"


@dataclass(frozen=True)
class Words:
    """The words of a column of texts, each field a list array with one list per text."""

    form: pa.ListArray
    """Spelling after case folding and Unicode NFC."""
    start: pa.ListArray
    """First character (int32), in code points."""
    end: pa.ListArray
    """One past the last character (int32)."""


def segment(texts: pa.Array) -> Words:
    """Words of each text; a null or blank text has none.

    Args:
        texts: strings, length n.
    """
    tiles = pl.Series("tile", texts, dtype=pl.String).fill_null("").str.extract_all(TILE)
    offsets = np.concatenate([[0], np.cumsum(tiles.list.len().to_numpy(), dtype=np.int64)])
    tile = tiles.explode(empty_as_null=False)
    spelled = tile.str.strip_chars_start()
    ends = np.cumsum(tile.str.len_chars().to_numpy(), dtype=np.int64)
    before = np.concatenate([[0], ends])[offsets[:-1]]
    end = ends - np.repeat(before, np.diff(offsets))
    start = end - spelled.str.len_chars().to_numpy()
    lists = pa.array(offsets, pa.int32())
    return Words(
        form=pa.ListArray.from_arrays(lists, fold(spelled)),
        start=pa.ListArray.from_arrays(lists, pa.array(start, pa.int32())),
        end=pa.ListArray.from_arrays(lists, pa.array(end, pa.int32())),
    )


def fold(words: pl.Series) -> pa.Array:
    """The form of each word: case-folded NFC, computed once per distinct spelling."""
    encoded = words.to_arrow().cast(pa.string()).dictionary_encode()
    folded = [
        unicodedata.normalize("NFC", spelling.casefold())
        for spelling in encoded.dictionary.to_pylist()
    ]
    return pa.array(folded, pa.string()).take(encoded.indices)
