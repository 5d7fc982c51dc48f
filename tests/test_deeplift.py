"""Differences to masked words: what they add up to, each rule by its definition, both paths."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from clsight import general
from clsight.attention import Wanted
from clsight.batches import tokenise
from clsight.models import Classifier
from clsight.rules import Rules, norm_difference, secant, softmax_difference
from conftest import REAL_MODELS, real_classifier, real_reviews, shared
from reference import Eager, margin_of
from small_models import FAST, GENERAL, MAX_LENGTH, eager_model, opened_model
from test_attention import MASK, attended

RNG = np.random.default_rng(0)


def documents():
    """Random pieces; of two alike in length, one has a special piece in its middle."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(5, 600, n) for n in (5, 9, 9, 30, MAX_LENGTH)]
    special = [np.isin(np.arange(len(one)), (0, len(one) - 1)) for one in ids]
    special[2][4] = True
    return ids, special


def scored(classifier, ids, special, path=None):
    """Per document the scores of its pieces, from packed batches."""
    wanted = Wanted((2,), ("deeplift",))
    results = attended(classifier, ids, wanted, 60, special=special, path=path)
    return [one["deeplift"][0] for one in results]


def difference(model, ids, special):
    """m(document) - m(document with all its words masked), of the same two classes."""
    masked = np.where(special, ids, MASK)
    with torch.no_grad():
        logits, other = (model(torch.from_numpy(one)[None]).logits for one in (ids, masked))
    if logits.shape[1] == 1:
        logits, other = (functional.pad(one, (1, 0)) for one in (logits, other))
    best, second = logits[0].topk(2).indices
    return float(margin_of(logits) - (other[0, best] - other[0, second]))


@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_scores_add_up_to_what_masking_all_words_takes(name):
    eager = eager_model(name)
    ids, special = documents()
    scores = scored(opened_model(name, eager), ids, special)
    for one, flags, got in zip(ids, special, scores, strict=True):
        assert got.sum() == pytest.approx(difference(eager, one, flags), rel=1e-5, abs=2e-5)
        assert not got[flags].any()


@pytest.mark.parametrize("name", REAL_MODELS)
def test_it_does_for_real_reviews(name):
    classifier, _ = real_classifier(name, torch.float32)
    eager = Eager(shared("models", name))
    texts = real_reviews(12)["text"].to_pylist()
    encoded = [eager.tokenizer(text, return_special_tokens_mask=True) for text in texts]
    ids = [np.array(one["input_ids"]) for one in encoded]
    special = [np.array(one["special_tokens_mask"], dtype=bool) for one in encoded]
    scores = scored(classifier, ids, special)
    for one, flags, got in zip(ids, special, scores, strict=True):
        assert got.sum() == pytest.approx(difference(eager.model, one, flags), abs=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert mean", "eurobert"])
def test_both_paths_share_the_difference_alike(name):
    eager = eager_model(name)
    ids, special = documents()
    plain = Classifier.of(copy.deepcopy(eager).float(), None, MAX_LENGTH)
    if name == "eurobert":  # its eager attention calls no function of the registry
        plain.model.set_attn_implementation("eager")
    both = zip(scored(opened_model(name, eager), ids, special),
               scored(plain, ids, special, general), strict=True)
    for fast, slow in both:
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_bfloat16_is_close_to_float32(name):
    exact, plan = real_classifier(name, torch.float32)
    pieces = tokenise(exact.tokenizer, real_reviews(16)["text"].to_pylist(), plan.max_length)
    ids = np.split(pieces.ids.astype(np.int64), pieces.offsets[1:-1])
    special = np.split(pieces.start == pieces.end, pieces.offsets[1:-1])
    rounded, _ = real_classifier(name, torch.bfloat16)
    apart = [np.abs(one - other).max() / np.abs(one).max() for one, other in zip(
        scored(exact, ids, special), scored(rounded, ids, special), strict=True)]
    assert np.mean(apart) < 0.03


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_by_the_integral_that_defines_the_logarithmic_mean(masked):
    s, s0 = (torch.from_numpy(RNG.normal(0, 3, 7)) for _ in range(2))
    s0[2] = s[2]
    if masked:
        s[5] = s0[5] = -torch.inf
    a, a0 = s.softmax(-1), s0.softmax(-1)
    point, weight = np.polynomial.legendre.leggauss(60)
    t = (point[:, None] + 1) / 2
    mean = (weight[:, None] / 2 * a.numpy() ** t * a0.numpy() ** (1 - t)).sum(0)
    matrix = np.diag(mean) - np.outer(mean, mean) / mean.sum()
    grad = torch.from_numpy(RNG.normal(size=7))
    given = softmax_difference(grad, a, a0, a.log(), a0.log())
    np.testing.assert_allclose(given, matrix @ grad.numpy(), atol=1e-8)
    step = np.nan_to_num((s - s0).numpy())
    np.testing.assert_allclose(matrix @ step, a - a0, atol=1e-12)


def test_layer_norm_multipliers_add_up():
    x, x0, grad = (torch.from_numpy(RNG.normal(size=(4, 9))) for _ in range(3))
    got = norm_difference(grad, x, x0, 1e-5)
    got = got - got.mean(-1, keepdim=True)
    change = functional.layer_norm(x, (9,)) - functional.layer_norm(x0, (9,))
    torch.testing.assert_close((got * (x - x0)).sum(-1), (grad * change).sum(-1))


@pytest.mark.parametrize("function", [functional.gelu, torch.tanh, functional.silu, torch.relu])
@pytest.mark.parametrize("step", [0, 1e-8, 1e-5, 1e-3, 0.1, 3])
def test_secants_of_float32_are_those_of_float64(function, step):
    x0 = torch.linspace(-4, 4, 401, dtype=torch.float64)[torch.arange(401) != 200]
    x = (x0 + step).float()
    x0 = x0.float()
    wide = (x.double() - x0.double()).numpy()
    low, high = x0.double(), x.double()
    slopes = (function(high) - function(low)).numpy()
    grid = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 5, dtype=torch.float64)
    grid.requires_grad_()
    (slope,) = torch.autograd.grad(function(grid).sum(), grid)
    expected = np.where(np.abs(wide) > 1e-6, slopes / np.where(wide == 0, 1, wide),
                        slope.mean(1).numpy())
    np.testing.assert_allclose(secant(function, x, x0), expected, atol=1e-4)


@pytest.mark.parametrize("function", [
    lambda x, y: x @ y.T, lambda x, y: torch.einsum("ij,kj->ik", x, y), lambda x, y: x * y,
    lambda x, y: x / (2 + y.square()), lambda x, y: x.pow(3) * torch.rsqrt(y.pow(2) + 1),
    lambda x, y: x / torch.sqrt(y * y + 1), lambda x, y: torch.sigmoid(1.7 * x) * x + y,
])
def test_products_quotients_and_powers_add_up(function):
    one, other = ([torch.from_numpy(RNG.normal(size=(3, 3))) for _ in "xy"] for _ in range(2))
    seen = general.InOrder()
    outputs = []
    for given, counterpart in ((other, seen.keep), (one, seen.find)):
        rules = Rules()
        rules.counterpart, rules.rule = counterpart, "difference"
        leaves = [x.clone().requires_grad_() for x in given]
        with rules:
            outputs.append(function(*leaves).sum())
    multipliers = torch.autograd.grad(outputs[1], leaves)
    total = sum(((x - x0) * m).sum() for x, x0, m in zip(one, other, multipliers, strict=True))
    torch.testing.assert_close(total, (outputs[1] - outputs[0]).detach())
