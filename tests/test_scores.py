"""The scoring kernel and the head weights against plain NumPy in float64."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clsight import weights
from clsight.plan import ModelPlan
from clsight.scores import Words, word_scores
from conftest import REAL_MODELS, real_classifier, shared
from reference import Eager


def by_character(pieces, values, words):
    """Word scores by spreading each piece's value evenly over its characters that are in words.

    A piece without such characters goes to the first word behind it, or to the last of all.
    """
    owner = {c: w for w, (start, end) in enumerate(words) for c in range(start, end)}
    scores = np.zeros((len(values), len(words)))
    for (start, end), value in zip(pieces, np.transpose(values), strict=True):
        if start == end or not words:
            continue
        held = [owner[c] for c in range(start, end) if c in owner]
        behind = [w for w, (first, _) in enumerate(words) if first >= end]
        for word in held or behind[:1] or [len(words) - 1]:
            scores[:, word] += value / max(len(held), 1)
    return scores


def random_document(rng):
    """Pieces cut anywhere, that repeat (as bytes of one character do) and span words or none."""
    n = int(rng.integers(5, 40))
    cuts = np.unique(np.concatenate([[0, n], rng.integers(0, n, n // 3)]))
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    share = rng.choice([0.0, 0.3, 0.8])
    words = [span for span in spans if rng.random() < share]
    cuts = np.unique(np.concatenate([[0, n], rng.integers(0, n, n // 2)]))
    pieces = [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    pieces = [piece for piece in pieces for _ in range(rng.choice([1, 2, 40], p=[0.87, 0.1, 0.03]))]
    return [(0, 0), *pieces, (0, 0)], words


NAMES = ("uniform", "uniform_3", "classifier", "projected", "norm", "contribution",
         "contribution_3", "conservative")
MODEL = ModelPlan("", "", "bert", ("a", "b", "c", "d"), n_heads=3, layers=(3, 5), max_length=0)


def of_document(rng, pieces, words, head_weights):
    """A document's stored lists, and the word scores that follow from them in float64."""
    attention = rng.random((len(MODEL.layers), MODEL.n_heads, len(pieces))).astype(np.float32)
    stored = {name: rng.normal(size=len(pieces)).astype(np.float32) for name in NAMES[4:]}
    logits, target = rng.normal(size=4).astype(np.float32), int(rng.integers(4))
    other = max((c for c in range(4) if c != target), key=lambda c: logits[c])
    weights_ = head_weights[:, target, other]
    values = [weights_[0] @ attention[1].astype(float), weights_[0] @ attention[0].astype(float),
              weights_[1] @ attention[1].astype(float), weights_[2] @ attention[1].astype(float),
              *stored.values()]
    spans = np.array(pieces, dtype=np.int32)
    row = {"logits": logits, "target": MODEL.labels[target], "start": spans[:, 0],
           "end": spans[:, 1], "attention": attention.ravel(), **stored}
    return row, by_character(pieces, np.array(values), words)


def test_scores_are_those_of_numpy_however_many_threads(monkeypatch):
    rng = np.random.default_rng(3)
    head_weights = rng.random((3, 4, 4, MODEL.n_heads))
    documents = [random_document(rng) for _ in range(200)]
    rows, expected = zip(*(of_document(rng, *one, head_weights) for one in documents), strict=True)
    floats, integers = pa.list_(pa.float32()), pa.list_(pa.int32())
    kinds = {"target": pa.string(), "start": integers, "end": integers}
    table = pa.table({name: pa.array([row[name] for row in rows], kinds.get(name, floats))
                      for name in rows[0]})
    bounds = np.array([word for _, words in documents for word in words], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(words) for _, words in documents])])
    words = Words(offsets.astype(np.int32), bounds[:, 0], bounds[:, 1])
    for cores in (1, 2, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        got = word_scores(table, NAMES, MODEL, head_weights, words)
        np.testing.assert_allclose(got, np.concatenate(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_words_keep_the_mass_of_all_pieces_that_are_not_special(small_run, model):
    for name in small_run.plan.shard_names():
        attention = pq.read_table(small_run.folder / model / "attention" / name)
        scores = pq.read_table(small_run.folder / model / "scores" / name)
        for piece, word in zip(attention.to_pylist(), scores.to_pylist(), strict=True):
            own = np.ones(len(piece["start"]), dtype=bool)
            own[[0, -1]] = False  # [CLS] and [SEP]
            last = np.array(piece["attention"]).reshape(-1, 4, len(own))[-1]
            assert sum(word["uniform"]) == pytest.approx(last.mean(0)[own].sum(), abs=1e-5)
            assert sum(word["contribution"]) == pytest.approx(
                np.array(piece["contribution"])[own].sum(), abs=1e-5
            )


@pytest.mark.parametrize("name", REAL_MODELS)
def test_head_weights_follow_their_formula(name):
    classifier, _ = real_classifier(name, torch.float32)
    state = {k: v.double().numpy() for k, v in Eager(shared("models", name)).model.state_dict()
             .items()}
    roberta = name.startswith("roberta")
    out = state["classifier.out_proj.weight" if roberta else "classifier.weight"]
    dense = state["classifier.dense.weight" if roberta else "bert.pooler.dense.weight"]
    last = max(int(key.split(".")[3]) for key in state if ".encoder.layer." in key)
    base = "roberta" if roberta else "bert"
    w_o = state[f"{base}.encoder.layer.{last}.attention.output.dense.weight"]
    got = weights.head_weights(classifier)
    n_heads = got.shape[-1]
    size = len(w_o) // n_heads
    for best, second in ((0, 1), (1, 0)):
        for weighting, through in ((1, np.eye(len(w_o))), (2, w_o)):
            effective = (out[best] - out[second]) @ dense @ through
            norm = [np.abs(effective[h * size : (h + 1) * size]).sum() for h in range(n_heads)]
            np.testing.assert_allclose(got[weighting, best, second], norm / np.sum(norm), rtol=1e-6)
    np.testing.assert_allclose(got[0], 1 / n_heads)


def test_head_weights_survive_storage():
    stored = np.random.default_rng(0).random((3, 3, 3, 5))
    for c in range(3):
        stored[:, c, c] = 1 / 5
    np.testing.assert_array_equal(weights.from_table(weights.table("m", stored)), stored)
