"""Small classifiers of every family with random weights, the same twice: eager, and as opened."""

import copy
import dataclasses

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BigBirdConfig,
    CamembertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from clsight import general
from clsight.attention import prepare
from clsight.families import FAMILIES, UNKNOWN
from clsight.models import IMPLEMENTATION, Classifier

MAX_LENGTH = 64
TINY = {"vocab_size": 700, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": MAX_LENGTH + 2, "num_labels": 3}
BERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "pooler_hidden_size": 24,
         "type_vocab_size": 0, "position_biased_input": False, "max_relative_positions": 16}
DISTIL = {"vocab_size": 700, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40,
          "max_position_embeddings": MAX_LENGTH + 2, "num_labels": 3}
MODERN = {**TINY, "global_attn_every_n_layers": 2, "local_attention": 16, "pad_token_id": 0,
          "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
EURO = {**TINY, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "bert": BertConfig(**TINY),
    "roberta": RobertaConfig(**TINY, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**TINY, pad_token_id=1),
    "camembert": CamembertConfig(**TINY, pad_token_id=1),
    "electra": ElectraConfig(**TINY, embedding_size=16),
    "distilbert": DistilBertConfig(**DISTIL),
    "albert": AlbertConfig(**TINY, embedding_size=16),
    "modernbert": ModernBertConfig(**MODERN, classifier_pooling="cls"),
    "modernbert mean": ModernBertConfig(**MODERN, classifier_pooling="mean"),
    "eurobert": EuroBertConfig(**EURO, classifier_pooling="bos"),
    "eurobert mean": EuroBertConfig(**EURO, classifier_pooling="mean"),
    "eurobert late": EuroBertConfig(**EURO, classifier_pooling="late"),
    "deberta": DebertaConfig(**TINY, **BERTA),
    "deberta-v2": DebertaV2Config(**TINY, **BERTA, position_buckets=8, norm_rel_ebd="layer_norm",
                                  share_att_key=True),
    "mpnet": MPNetConfig(**TINY, pad_token_id=1),
    "big_bird": BigBirdConfig(**TINY, attention_type="original_full"),
    "xlnet": XLNetConfig(vocab_size=700, d_model=24, n_layer=3, n_head=4, d_inner=40, num_labels=3),
    "longformer": LongformerConfig(**TINY, attention_window=8, pad_token_id=1),
}
"""Name -> configuration; the second word is the pooling."""
FAST = [name for name in CONFIGS if FAMILIES.get(name.split()[0], UNKNOWN).fast]
GENERAL = ["deberta", "deberta-v2", "mpnet", "big_bird", "xlnet"]


def small_config(name, **changes):
    """A copy of a configuration with larger weights than the usual, so that heads differ."""
    config = copy.deepcopy(CONFIGS[name])
    config.initializer_range = 0.3
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def eager_model(name, **changes):
    """The family's model in float64 (XLNet's cannot leave float32) with eager attention."""
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_config(
        small_config(name, **changes), attn_implementation="eager",
        dtype=torch.float32 if name == "xlnet" else torch.float64,
    ).eval()
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        # Fresh biases are 0 and LayerNorm weights 1, which would hide mistakes.
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def opened_model(name, eager, dtype=torch.float32, device="cpu", **changes):
    """The same weights as clsight opens them."""
    fast = FAMILIES.get(name.split()[0], UNKNOWN).fast
    model = AutoModelForSequenceClassification.from_config(
        small_config(name, **changes), attn_implementation=IMPLEMENTATION if fast else "eager",
        dtype=torch.float32,
    ).eval()
    model.load_state_dict(eager.state_dict())
    classifier = Classifier.of(model.to(device, dtype).requires_grad_(False), None, MAX_LENGTH)
    if fast:
        return prepare(classifier)
    pooling = general.reading(classifier, torch.arange(5, 12, device=device)[None], 3)
    return dataclasses.replace(classifier, pooling=pooling)
