"""Pairs that go to disk shard by shard come back unit by unit, all of them."""

import numpy as np

from clsight import blocks
from clsight.blocks import Blocks


def test_pairs_come_back_by_unit_and_document(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "PAIRS_PER_BLOCK", 50)
    rng = np.random.default_rng(0)
    # Some units have more pairs than a block, one has none in the second shard.
    held = rng.random((7, 90)) < np.array([0.9, 0.1, 0.4, 0.2, 0.7, 0.05, 0.3])[:, None]
    held[2, 30:60] = False
    x = rng.random((3, 7, 90))
    made = Blocks(tmp_path, held.sum(axis=1), blocks.cut(held.sum(axis=1)))
    for first in (0, 30, 60):
        unit, document = np.nonzero(held[:, first : first + 30])
        made.write(str(first), unit, document + first, x[:, unit, document + first])
    seen = []
    for block in range(len(made.cuts) - 1):
        own, offsets, document, masses = made.read(["0", "30", "60"], block)
        assert len(document) <= 50 or own.stop - own.start == 1
        for i, unit in enumerate(range(own.start, own.stop)):
            part = slice(offsets[i], offsets[i + 1])
            np.testing.assert_array_equal(document[part], np.flatnonzero(held[unit]))
            np.testing.assert_array_equal(masses[:, part], x[:, unit, held[unit]])
            seen.append(unit)
    assert seen == list(range(7))


def test_there_are_never_more_blocks_than_a_file_can_have_parts(monkeypatch):
    monkeypatch.setattr(blocks, "PAIRS_PER_BLOCK", 1)
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 10)
    assert np.diff(blocks.cut(np.full(1000, 3))).tolist() == [100] * 10
