"""Words are a partition of what is not white space, with the text's own characters."""

import unicodedata

import pyarrow as pa
import pytest

from clsight.words import segment
from conftest import real_reviews

TRICKY = [
    "It's a well-made film...  3.5 stars, “Café” NAÏVE!! isn’t it?",
    "e\u0301tude \u200d \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 日本語 हिन्दी में",
    "<br />[SEP] </s> -- ?!? ... ''quoted'' 1,000.50 rock'n'roll x_y",
    "\x91cp1252\x96 \t\n\r  trailing  ",
    "",
    "   ",
]


def words_of(text):
    found = segment(pa.array([text]))
    return [column[0].as_py() for column in (found.form, found.start, found.end)]


def test_examples():
    forms, start, end = words_of("It's WELL-made... 3.5 Cafe\u0301!!")
    assert forms == ["it's", "well", "-", "made", "...", "3.5", "caf\u00e9", "!!"]
    assert (start[0], end[0], start[-1]) == (0, 4, 27)


@pytest.mark.parametrize("text", TRICKY)
def test_words_hold_every_character_that_is_not_white_space_once(text):
    _, start, end = words_of(text)
    held = [character for s, e in zip(start, end, strict=True) for character in range(s, e)]
    assert held == [i for i, character in enumerate(text) if not character.isspace()]


@pytest.mark.parametrize("text", TRICKY)
def test_forms_are_the_folded_characters(text):
    forms, start, end = words_of(text)
    assert forms == [
        unicodedata.normalize("NFC", text[s:e].casefold()) for s, e in zip(start, end, strict=True)
    ]


def test_real_reviews_split_at_white_space_and_only_further():
    texts = real_reviews(1000)["text"].to_pylist()
    found = segment(pa.array(texts))
    for text, start, end in zip(texts, found.start.to_pylist(), found.end.to_pylist(), strict=True):
        assert "".join(text.split()) == "".join(
            text[s:e] for s, e in zip(start, end, strict=True)
        )
        boundaries = set(start)
        assert all(
            i in boundaries for i, c in enumerate(text)
            if not c.isspace() and (i == 0 or text[i - 1].isspace())
        )


def test_null_has_no_words():
    found = segment(pa.array(["a", None, "b c"]))
    assert found.form.to_pylist() == [["a"], [], ["b", "c"]]
