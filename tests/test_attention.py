"""The oracles: rows, contributions and logits against eager models with autograd, in float64."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch

from clsight import attention, general, heads
from clsight.attention import Wanted
from clsight.batches import gather, pack, tokenise
from clsight.errors import ClsightError
from clsight.models import Classifier
from clsight.prepacked import Prepacked, prepack
from clsight.references import references
from conftest import REAL_MODELS, real_classifier, real_reviews, shared
from reference import Eager, conservative, differentiable, piece_scores
from small_models import FAST, GENERAL, MAX_LENGTH, eager_model, opened_model

SCORES = ("norm", "contribution", "contribution_0", "contribution_1", "rollout", "relevance",
          "conservative", "deeplift")
WITHOUT_VALUES = SCORES[1:]


MASK = 4
"""The piece that stands for masked words."""


def attended(classifier, ids, wanted, budget=512, target=None, special=None, path=None):
    """Per document a dictionary of logits, rows and scores from packed batches of `ids`.

    `special` says of each document which pieces are of no word: by default the first and the last.
    """
    path = path or (attention if classifier.family.fast else general)
    special = special or [np.isin(np.arange(len(one)), (0, len(one) - 1)) for one in ids]
    lengths = np.array([len(one) for one in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat, results = torch.from_numpy(np.concatenate(ids)), {}
    device = classifier.device
    for batch in pack(lengths, budget):
        index, position = gather(offsets, batch.documents)
        given = references(flat[index].numpy(), np.zeros_like(index),
                           np.concatenate(special)[index], batch.groups, MASK)
        got = path.forward(
            classifier, flat[index].to(device), torch.from_numpy(position).to(device),
            batch.groups, wanted,
            target=None if target is None else torch.from_numpy(target[batch.documents]),
            references=given.to(device) if wanted.references else None,
        )
        ends = np.cumsum(lengths[batch.documents])
        for i, document in enumerate(batch.documents):
            pieces = slice(ends[i] - lengths[document], ends[i])
            results[int(document)] = {
                "logits": got.logits[i].cpu().numpy(),
                "rows": got.rows[:, :, pieces].cpu().numpy(),
                **{name: x[:, pieces].cpu().numpy() for name, x in got.scores.items()},
            }
    return [results[i] for i in range(len(ids))]


def extracted(classifier, ids, layers, budget=512):
    """Per document: logits, rows, contribution [heads, pieces]."""
    return [tuple(one.values()) for one in attended(classifier, ids, Wanted(layers), budget)]


def of_texts(classifier, plan, texts, budget=512):
    pieces = tokenise(classifier.tokenizer, texts, plan.max_length)
    ids = np.split(pieces.ids.astype(np.int64), pieces.offsets[1:-1])
    return extracted(classifier, ids, plan.layers, budget)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_float32_is_the_eager_model_with_autograd(name):
    classifier, plan = real_classifier(name, torch.float32)
    eager = Eager(shared("models", name))
    texts = [*real_reviews(30)["text"].to_pylist(), "long " * 300]
    for text, got in zip(texts, of_texts(classifier, plan, texts), strict=True):
        for mine, theirs in zip(got, eager(text, plan.max_length), strict=False):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_rows_sum_to_one(name):
    classifier, plan = real_classifier(name, torch.float32)
    for _, rows, _ in of_texts(classifier, plan, real_reviews(200)["text"].to_pylist()):
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_contributions_of_a_head_sum_to_z_dot_g(name):
    classifier, plan = real_classifier(name, torch.float32)
    eager = Eager(shared("models", name))
    projection = Classifier.of(eager.model, None, 0).layers[-1].attention.output.dense
    texts = real_reviews(20)["text"].to_pylist()
    for text, (_, rows, contribution) in zip(texts, of_texts(classifier, plan, texts), strict=True):
        given = []
        hook = projection.register_forward_pre_hook(
            lambda _, inputs, kept=given: kept.extend(inputs)
        )
        encoded = eager.tokenizer(text, return_tensors="pt")
        logits = eager.model(**encoded).logits[0].sort(descending=True).values
        hook.remove()
        (g,) = torch.autograd.grad(logits[0] - logits[1], given[0])
        per_head = (given[0] * g)[0, 0].unflatten(0, (rows.shape[1], -1)).sum(-1)
        np.testing.assert_allclose(contribution.sum(-1), per_head.detach(), atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_packed_is_one_by_one(name):
    classifier, plan = real_classifier(name, torch.float32)
    texts = real_reviews(40)["text"].to_pylist()
    packed, single = (of_texts(classifier, plan, texts, budget) for budget in (4096, 1))
    for one, other in zip(packed, single, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_packed_is_padded(name):
    classifier, plan = real_classifier(name, torch.float32)
    eager = Eager(shared("models", name))
    texts = real_reviews(24)["text"].to_pylist()
    padded = eager.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = eager.model(**padded, output_attentions=True)
    for i, got in enumerate(of_texts(classifier, plan, texts)):
        n = int(padded["attention_mask"][i].sum())
        rows = torch.stack([layer[i, :, 0, :n] for layer in answer.attentions]).numpy()
        np.testing.assert_allclose(got[1], rows, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got[0], answer.logits[i].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_bfloat16_attention_is_close(name):
    classifier, plan = real_classifier(name, torch.bfloat16, layers="last")
    exact, _ = real_classifier(name, torch.float32, layers="last")
    texts = real_reviews(160)["text"].to_pylist()
    pairs = list(zip(of_texts(classifier, plan, texts), of_texts(exact, plan, texts), strict=True))
    rows = np.concatenate([np.abs(half[1] - full[1])[0] for half, full in pairs], axis=-1)
    mean = [np.abs(half[1].mean(1) - full[1].mean(1)).max() for half, full in pairs]
    flips = sum(half[0].argmax() != full[0].argmax() for half, full in pairs)
    assert max(mean) < 5e-3
    # Per head the largest are 0.012: rounding of weights and activations in 8-bit mantissas.
    assert np.quantile(rows, 0.995) < 5e-3
    assert flips <= 2


def documents(seed=1):
    """Random pieces of a few lengths, two of them alike, one as long as can be."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 600, n) for n in (5, 9, 9, 30, MAX_LENGTH)]


def expected(name, eager, classifier, ids, target=None):
    """All piece scores of one document, from the eager model."""
    own, inputs = Classifier.of(eager, None, 0), {"input_ids": torch.from_numpy(ids)[None]}
    read = torch.zeros(len(ids), dtype=eager.dtype)
    read[{"first": 0, "last": -1}.get(classifier.pooling, slice(None))] = 1
    projection = own.layers[-1].get_submodule(own.family.output) if classifier.family.fast else None
    scores = piece_scores(eager, projection, read / read.sum(), inputs, target)
    scores["deeplift"] = in_double(own, ids, target)
    if name == "xlnet":  # its first layer takes two streams; the embedding is what both come from
        start = eager.get_input_embeddings()
        return scores | {"conservative": conservative(eager, start, [], inputs, target)}
    gates = [getattr(layer.mlp, "act", None) or layer.mlp.act_fn
             for layer in own.layers if own.family.gated]
    return scores | {"conservative": conservative(eager, own.layers[0], gates, inputs, target)}


def in_double(own, ids, target):
    """`deeplift` on the general path in float64; `test_deeplift` holds that against definitions."""
    chosen = None if target is None else np.array([target])
    (got,) = attended(own, [ids], Wanted((0,), ("deeplift",)), target=chosen, path=general)
    return got["deeplift"][0]


def assert_same(got, reference, names, tolerance=1e-5, single=None):
    """Within the tolerance, beside what float32 costs the eager model itself (`single`).

    EuroBERT's contributions to 5 pieces are 8e-6 off in transformers' own float32 on one processor.
    """
    for score in ("logits", "rows", *names):
        mine = got[score] if score in ("logits", "rows") else got[score].sum(0)
        scale = max(1, np.abs(reference[score]).max())
        own = 0 if single is None else np.abs(single[score] - reference[score]).max() / scale
        np.testing.assert_allclose(mine / scale, reference[score] / scale, rtol=0,
                                   atol=tolerance + own, err_msg=score)


@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_each_family_is_the_eager_model_with_autograd(name):
    eager = eager_model(name)
    classifier, single = opened_model(name, eager), copy.deepcopy(eager).float()
    differentiable(eager)
    differentiable(single)
    names = SCORES if classifier.family.fast else WITHOUT_VALUES
    wanted = Wanted((0, 1, 2), names)
    for ids, got in zip(documents(), attended(classifier, documents(), wanted, 50), strict=True):
        assert_same(got, expected(name, eager, classifier, ids), names,
                    single=expected(name, single, classifier, ids))


@pytest.mark.parametrize("name", ["bert", "modernbert mean", "mpnet"])
@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_scores_explain_the_target_for_any_number_of_classes(name, n_classes):
    eager = eager_model(name, num_labels=n_classes)
    classifier = opened_model(name, eager, num_labels=n_classes)
    differentiable(eager)
    wanted = Wanted((2,), ("contribution", "conservative"))
    target = np.array([0, 1, 0, 1, 0]) if n_classes < 4 else np.array([3, 2, 1, 0, 3])
    results = attended(classifier, documents(), wanted, 50, target)
    for ids, chosen, got in zip(documents(), target, results, strict=True):
        reference = expected(name, eager, classifier, ids, int(chosen))
        for score in wanted.scores:
            np.testing.assert_allclose(got[score].sum(0), reference[score], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_long_documents_are_attended_in_blocks(name, monkeypatch):
    classifier = opened_model(name, eager_model(name))
    wanted = Wanted((0, 2), SCORES)
    whole = attended(classifier, documents(), wanted)
    monkeypatch.setattr(heads, "BLOCK", 200)
    for one, other in zip(whole, attended(classifier, documents(), wanted), strict=True):
        for score in one:
            np.testing.assert_allclose(one[score], other[score], rtol=1e-5, atol=1e-6)


def test_conserving_shares_add_up_to_the_margin_but_for_biases():
    eager = eager_model("roberta")
    for name, parameter in eager.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    classifier = opened_model("roberta", eager)
    for got in attended(classifier, documents(), Wanted((2,), ("conservative",))):
        ranked = np.sort(got["logits"])
        assert got["conservative"].sum() == pytest.approx(
            ranked[-1] - ranked[-2], rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize(("name", "module", "kind"), [
    ("bert", attention, "Passage"), ("albert", attention, "Passage"),
    ("mpnet", general, "Softmaxes"),
])
def test_nothing_of_a_batch_stays_in_memory(name, module, kind, monkeypatch):
    classifier = opened_model(name, eager_model(name))
    made = []

    class Watched(getattr(module, kind)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, kind, Watched)
    attended(classifier, documents(), Wanted((2,), WITHOUT_VALUES), 50)
    gc.collect()
    assert len(made) >= 3
    assert [watched() for watched in made] == [None] * len(made)


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "eurobert"])
def test_the_last_layer_multiplies_the_queries_of_cls_alone(name):
    classifier = opened_model(name, eager_model(name))
    query = classifier.layers[-1].get_submodule(classifier.family.query)
    rows = []
    query.register_forward_hook(lambda _, inputs, output: rows.append(inputs[0].shape[1]))
    ids = 3 * documents()  # 15 queries and 351 pieces, both filled up to multiples of ROUNDED
    attended(classifier, ids, Wanted((2,)))
    assert rows[-1] == attention.ROUNDED
    assert set(rows[:-1]) <= {3 * attention.ROUNDED}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("bias", [True, False])
def test_prepacked_layers_are_linear_with_and_without_a_graph(dtype, tolerance, bias):
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(40, 56, bias)).to(dtype).requires_grad_(False)
    weight, offset = block[0].weight.double(), block[0].bias.double() if bias else 0
    prepack([block])
    # Without bfloat16 units oneDNN has no such product, and the layer stays as it is.
    assert isinstance(block[0], Prepacked) or dtype == torch.bfloat16
    for n in (1, 7, 4097):
        x = torch.randn(n, 40).to(dtype)
        expected = x.double() @ weight.T + offset
        for given in (x, x.clone().requires_grad_()):
            torch.testing.assert_close(block(given).double(), expected, rtol=tolerance,
                                       atol=tolerance)
        (grad,) = torch.autograd.grad(block(given).sum(), given)
        torch.testing.assert_close(grad.double(), weight.sum(0).expand(n, 40), rtol=tolerance,
                                   atol=4 * tolerance)


def test_attention_in_another_form_is_refused():
    with pytest.raises(ClsightError, match="longformer models"):
        opened_model("longformer", eager_model("longformer"))


def test_a_model_that_does_not_call_its_attention_is_an_error():
    classifier = opened_model("bert", eager_model("bert"))
    classifier.model.set_attn_implementation("sdpa")
    with pytest.raises(ClsightError, match="did not call its attention"):
        attended(classifier, documents(), Wanted((2,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", ["bert", "modernbert mean", "eurobert", "mpnet"])
def test_cuda_is_the_cpu(name):
    eager = eager_model(name)
    classifier = opened_model(name, eager)
    names = SCORES if classifier.family.fast else WITHOUT_VALUES
    wanted = Wanted((0, 1, 2), names)
    on_cpu = attended(classifier, documents(), wanted)
    on_cuda = attended(opened_model(name, eager, device="cuda"), documents(), wanted)
    for one, other in zip(on_cpu, on_cuda, strict=True):
        for score in one:
            np.testing.assert_allclose(one[score], other[score], rtol=1e-3, atol=1e-4)
