"""The oracles: rows, contributions and logits against eager models with autograd, in float64."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    CamembertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from clsight.attention import IMPLEMENTATION, forward, prepare
from clsight.batches import gather, pack, tokenise
from clsight.models import FAMILIES, Classifier
from conftest import REAL_MODELS, real_classifier, real_reviews, shared
from reference import Eager, differentiable, eager_results


def extracted(classifier, ids, layers, budget=512):
    """Per document: logits, rows, contribution, z.g of packed batches; ids is a list of lists."""
    lengths = np.array([len(one) for one in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat, results = np.concatenate(ids), {}
    for batch in pack(lengths, budget):
        index, position = gather(offsets, batch.documents)
        got = forward(
            classifier, torch.from_numpy(flat[index]), torch.from_numpy(position), batch.groups,
            layers,
        )
        ends = np.cumsum(lengths[batch.documents])
        for i, document in enumerate(batch.documents):
            pieces = slice(ends[i] - lengths[document], ends[i])
            results[int(document)] = (
                got.logits[i].numpy(), got.rows[:, :, pieces].numpy(),
                got.contribution[:, pieces].numpy(), got.z_dot_g[i].numpy(),
            )
    return [results[i] for i in range(len(ids))]


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
def test_rows_sum_to_one_and_contributions_to_z_dot_g(name):
    classifier, plan = real_classifier(name, torch.float32)
    for _, rows, contribution, z_dot_g in of_texts(
        classifier, plan, real_reviews(200)["text"].to_pylist()
    ):
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(contribution.sum(-1), z_dot_g, atol=1e-5)


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
    texts = real_reviews(400)["text"].to_pylist()
    pairs = list(zip(of_texts(classifier, plan, texts), of_texts(exact, plan, texts), strict=True))
    rows = np.concatenate([np.abs(half[1] - full[1])[0] for half, full in pairs], axis=-1)
    mean = [np.abs(half[1].mean(1) - full[1].mean(1)).max() for half, full in pairs]
    flips = sum(half[0].argmax() != full[0].argmax() for half, full in pairs)
    assert max(mean) < 5e-3
    assert np.quantile(rows, 0.999) < 5e-3
    assert flips <= 2


TINY = {"vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 66, "num_labels": 3}
CONFIGS = {
    "bert": BertConfig(**TINY),
    "roberta": RobertaConfig(**TINY, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**TINY, pad_token_id=1),
    "camembert": CamembertConfig(**TINY, pad_token_id=1),
    "electra": ElectraConfig(**TINY, embedding_size=16),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_the_eager_model_with_autograd(family):
    torch.manual_seed(7)
    config = CONFIGS[family]
    config.initializer_range = 0.3
    eager = AutoModelForSequenceClassification.from_config(
        copy.deepcopy(config), attn_implementation="eager", dtype=torch.float64
    ).eval()
    differentiable(eager)
    packed = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=IMPLEMENTATION, dtype=torch.float32
    ).eval()
    packed.load_state_dict(eager.state_dict())
    classifier = prepare(Classifier(packed.requires_grad_(False), None, FAMILIES[family], 64))
    rng = np.random.default_rng(1)
    ids = [rng.integers(5, 100, n) for n in (5, 9, 9, 30, 64)]
    for one, got in zip(ids, extracted(classifier, ids, (0, 1, 2), 50), strict=True):
        for mine, theirs in zip(
            got, eager_results(eager, input_ids=torch.from_numpy(one)[None]), strict=False
        ):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", REAL_MODELS)
def test_cuda_is_the_cpu(name):
    classifier, plan = real_classifier(name, torch.float32)
    texts = real_reviews(40)["text"].to_pylist()
    on_cpu = of_texts(classifier, plan, texts)
    classifier.model.cuda()
    pieces = tokenise(classifier.tokenizer, texts, plan.max_length)
    for batch in pack(pieces.lengths, 4096):
        index, position = gather(pieces.offsets, batch.documents)
        got = forward(
            classifier, torch.from_numpy(pieces.ids[index].astype(np.int64)).cuda(),
            torch.from_numpy(position).cuda(), batch.groups, plan.layers,
        )
        for i, document in enumerate(batch.documents):
            np.testing.assert_allclose(got.logits[i].cpu(), on_cpu[document][0], atol=1e-4)
