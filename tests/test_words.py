"""Words are a partition of what is not white space, and every tokenizer's pieces belong to them."""

import json
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from clsight.batches import tokenise
from clsight.plan import ModelPlan
from clsight.scores import Words, word_scores
from clsight.words import segment
from conftest import real_reviews
from small_tokenizers import FAMILIES, small_tokenizer

TRICKY = [
    "It's a well-made film...  3.5 stars, “Café” NAÏVE!! isn’t it?",
    "e\u0301tude \u200d \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 日本語 हिन्दी में",
    "<br />[SEP] </s> -- ?!? ... ''quoted'' 1,000.50 rock'n'roll x_y",
    "\x91cp1252\x96 \t\n\r  trailing  ",
    "",
    "   ",
]
SNIPPETS = [
    "It's", " a ", "  film", "...", '."', "bad", "The", " don't", "3.5", "éblouissante", "e\u0301",
    "großartig", "İstanbul", "ﬁn", "½", "电影", "日本語", "فِيلْم", " रائع", "हिन्दी", "में",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f44e\U0001f3fd",
    "\U0001f1eb\U0001f1f7", "[SEP]", "[CLS]", " [MASK]", "[UNK]", "[PAD]", "<s>", "</s>",
    " <mask>", "<unk>", "<pad>", "<sep>", "<cls>", "<|begin_of_text|>", "<|end_of_text|>",
    "<br />", "&amp;", "▁", "Ġ", "##s", "<0x0A>", "``", "''", "\r\n", "\x00", "\ufeff", "\xad",
]
INVISIBLE = " \t\n\x00\x01\x1c\x85\xa0\u3000\u200b\u200d\ufe0f\u0301.\"'-"
ANY = st.characters(exclude_categories=["Cs"])  # no lone surrogate, which Arrow cannot hold
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(SNIPPETS),
        st.text(st.sampled_from(INVISIBLE), max_size=5),
        st.text(ANY, max_size=5),
    ),
    max_size=10,
).map("".join)


def generated(max_examples):
    """Hypothesis without chance or clock, so that a slow machine sees what a fast one sees."""
    return settings(max_examples=max_examples, deadline=None, derandomize=True,
                    suppress_health_check=[HealthCheck.too_slow])


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


@generated(300)
@given(TEXTS)
def test_words_of_any_text_hold_every_character_that_is_not_white_space_once_and_in_order(text):
    _, start, end = words_of(text)
    assert all(s < e for s, e in zip(start, end, strict=True))
    held = [character for s, e in zip(start, end, strict=True) for character in range(s, e)]
    # Python's isspace counts the four separators of ASCII, which Unicode's White_Space leaves out.
    assert held == [
        i for i, character in enumerate(text)
        if not character.isspace() or "\x1c" <= character <= "\x1f"
    ]


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


def values_of_words(pieces, words, values):
    """Scores [documents, words] of a text's words, for documents that differ in piece values."""
    lists = pa.list_(pa.float32())
    table = pa.table({
        "logits": pa.array([[1.0, 0.0]] * len(values), lists),
        "target": pa.array([0] * len(values)),
        "start": pa.array([pieces.start] * len(values), pa.list_(pa.int32())),
        "end": pa.array([pieces.end] * len(values), pa.list_(pa.int32())),
        "attention": pa.array(list(values), lists),
        "contribution": pa.array(list(-values), lists),
    })
    offsets = np.arange(len(values) + 1, dtype=np.int32) * len(words)
    bounds = np.tile(words, (len(values), 1))
    model = ModelPlan("", "", "bert", (0, 1), n_heads=1, layers=(0,), max_length=0)
    scores = word_scores(table, ("uniform", "contribution"), model, np.ones((3, 2, 2, 1)),
                         Words(offsets, bounds[:, 0], bounds[:, 1]))
    np.testing.assert_array_equal(scores[0], -scores[-1])
    return scores[0].reshape(len(values), len(words)).astype(np.float64)


def pieces_and_words(family, text):
    """Pieces of a text, which of them are the tokenizer's own, and [words, 2] bounds."""
    tokenizer = small_tokenizer(family)
    special = tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"]
    _, start, end = words_of(text)
    words = np.stack([start, end], axis=1).astype(np.int32).reshape(-1, 2)
    return tokenise(tokenizer, [text], 10**6), np.array(special, dtype=bool), words


@pytest.mark.parametrize("family", FAMILIES)
@generated(60)
@given(text=TEXTS)
def test_each_piece_is_divided_among_adjacent_words_and_special_pieces_are_in_none(family, text):
    pieces, special, words = pieces_and_words(family, text)
    np.testing.assert_array_equal(pieces.start >= pieces.end, special)
    if len(words) == 0:
        return
    random = np.random.default_rng(0).random((1, len(special)))
    got = values_of_words(pieces, words, np.concatenate([random, np.eye(len(special))]))
    mass, shares = got[0], got[1:]
    np.testing.assert_allclose(mass.sum(), random[0, ~special].sum(), rtol=1e-5)
    np.testing.assert_allclose(shares.sum(1), np.where(special, 0, 1), atol=1e-5)
    for share in shares[~special]:
        (held,) = np.nonzero(share)
        assert (np.diff(held) == 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_special_piece_typed_in_a_text_is_a_piece_of_its_words(family):
    tokenizer = small_tokenizer(family)
    for typed in {tokenizer.bos_token, tokenizer.sep_token, tokenizer.mask_token} - {None}:
        text = f"so {typed} bad"
        pieces, special, words = pieces_and_words(family, text)
        (place,) = np.nonzero((pieces.ids == tokenizer.convert_tokens_to_ids(typed)) & ~special)
        assert len(place) == 1
        (share,) = values_of_words(pieces, words, np.eye(len(special))[place])
        inside = (words[:, 0] >= 3) & (words[:, 1] <= 3 + len(typed))
        np.testing.assert_allclose(share[inside].sum(), 1, atol=1e-6)
        assert (share[inside] > 0).all()


@pytest.mark.parametrize("family", ["roberta", "deberta", "modernbert", "eurobert", "big_bird"])
def test_pieces_of_white_space_belong_to_the_next_word_or_the_last(family):
    pieces, special, words = pieces_and_words(family, "  故   长  ")
    shares = values_of_words(pieces, words, np.eye(len(special)))[~special]
    first = pieces.start[~special] <= 2
    assert first.sum() >= 2
    assert (~first).sum() >= 3
    np.testing.assert_array_equal(shares, np.stack([first, ~first], axis=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_small_tokenizers_are_the_same_when_saved_and_opened_by_name(family, tmp_path):
    tokenizer = small_tokenizer(family)
    tokenizer.save_pretrained(tmp_path)
    model_type = family.removesuffix("-cased")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opened = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert opened.is_fast
    for text in [*TRICKY, *SNIPPETS, " ".join(SNIPPETS)]:
        one, other = (t(text, return_offsets_mapping=True) for t in (tokenizer, opened))
        assert one["input_ids"] == other["input_ids"]
        assert one["offset_mapping"] == other["offset_mapping"]
