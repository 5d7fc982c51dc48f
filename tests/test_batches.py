"""Every piece of every document goes through the model once, in batches within the budget."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from clsight.batches import gather, pack, tokenise, without_padding
from conftest import DEMO


@pytest.mark.parametrize("budget", [1, 50, 333, 10**6])
def test_batches_partition_the_documents_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(2, 60, 500)
    batches = pack(lengths, budget)
    documents = np.concatenate([batch.documents for batch in batches])
    assert sorted(documents) == list(range(500))
    for batch in batches:
        assert batch.n_pieces == lengths[batch.documents].sum()
        assert batch.n_pieces <= budget or len(batch.documents) == 1
        grouped = [length for _, n, length in batch.groups for _ in range(n)]
        assert grouped == lengths[batch.documents].tolist()


def test_no_documents_make_no_batches():
    assert pack(np.empty(0, dtype=np.int64), 10) == []


def test_gather_finds_each_piece_and_its_position():
    lengths = np.array([3, 1, 4, 2])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index, position = gather(offsets, np.array([2, 0, 3]))
    assert index.tolist() == [4, 5, 6, 7, 0, 1, 2, 8, 9]
    assert position.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_pieces_are_those_of_the_tokenizer_one_text_at_a_time(model):
    tokenizer = AutoTokenizer.from_pretrained(DEMO / model)
    texts = ["Café isn't bad...", "x", "A long and winding review of nothing at all. " * 5]
    pieces = tokenise(tokenizer, texts, 20)
    for i, text in enumerate(texts):
        one = tokenizer(text, truncation=True, max_length=20, return_offsets_mapping=True)
        inside = slice(pieces.offsets[i], pieces.offsets[i + 1])
        assert pieces.ids[inside].tolist() == one["input_ids"]
        spans = zip(pieces.start[inside].tolist(), pieces.end[inside].tolist(), strict=True)
        assert list(spans) == [tuple(span) for span in one["offset_mapping"]]
    assert pieces.truncated.tolist() == [len(tokenizer(text)["input_ids"]) > 20 for text in texts]


def test_spelled_out_padding_has_no_position():
    ids = np.array([5, 1, 6, 2, 7, 8, 1, 1, 3])
    position = np.array([0, 1, 2, 3, 0, 1, 2, 3, 4])
    assert without_padding(ids, position, 1).tolist() == [0, -1, 1, 2, 0, 1, -1, -1, 2]
    assert without_padding(ids, position, 99) is position
