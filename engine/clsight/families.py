"""What each family of encoders looks like: where its parts are, and how they follow each other.

Families of the fast path go through transformers' attention registry, so that one function sees
every layer's queries, keys and values. What follows the last attention is called here part by part,
because it runs for the rows that the head reads and no others. Families of the general path keep
their own attention; for them only the head's place is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """A family of encoders; `model` is a transformers model with a classification head."""

    dense: str | None
    """The head's first dense layer, as a dotted path; None where there is none."""
    out: str | None
    """The head's output layer: one row of weights per class."""
    layers: Callable[[Any], list[Any]]
    """model -> its encoder layers by depth; a layer that is used twice is there twice."""
    output: str
    """W_o, the output projection of attention, as a dotted path in a layer."""
    query: str | None = None
    """The layer of queries, as a dotted path in a layer; None where it is one with others."""
    rest: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    """(layer, z [n, heads * size], hidden [n, width]) -> the layer's output for these rows; None on
    the general path."""
    head: Callable[[Any, Tensor], Tensor] = lambda model, hidden: hidden
    """(model, pooled [n, width]) -> logits [n, classes]"""
    final: Callable[[Any, Tensor], Tensor] = lambda model, hidden: hidden
    """What the encoder does to its last layer's output, row by row."""
    pooling: Callable[[Any], str] = lambda config: "first"
    """configuration -> what the head reads: "first" (the [CLS] piece), "mean" (of all pieces) or
    "late" (the mean of every piece's logits)."""
    embeddings: tuple[str, ...] = ("embeddings",)
    """Modules of the base model that run before its layers."""
    positions_after_padding: bool = False
    """Positions count from padding_idx + 1 instead of 0."""
    gated: bool = False
    """Feed-forward of the form activation(gate) * value."""

    @property
    def fast(self) -> bool:
        """True where the family runs packed, through the attention registry."""
        return self.rest is not None


def _encoder(model: Any) -> list[Any]:
    return list(model.base_model.encoder.layer)


def _bert_rest(layer: Any, z: Tensor, hidden: Tensor) -> Tensor:
    attended = layer.attention.output(z, hidden)
    rest: Tensor = layer.output(layer.intermediate(attended), attended)
    return rest


def _bert_head(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.bert.pooler(pooled[:, None]))
    return logits


def _roberta_head(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(pooled[:, None])
    return logits


def _roberta(**differences: Any) -> Family:
    return Family(
        dense="classifier.dense", out="classifier.out_proj", layers=_encoder,
        output="attention.output.dense", query="attention.self.query", rest=_bert_rest,
        head=_roberta_head, **differences,
    )


def _distilbert_rest(layer: Any, z: Tensor, hidden: Tensor) -> Tensor:
    attended = layer.sa_layer_norm(layer.attention.out_lin(z) + hidden)
    rest: Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
    return rest


def _distilbert_head(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(torch.relu(model.pre_classifier(pooled)))
    return logits


def _albert_layers(model: Any) -> list[Any]:
    encoder, config = model.base_model.encoder, model.config
    group = config.num_hidden_layers / config.num_hidden_groups
    return [
        layer for i in range(config.num_hidden_layers)
        for layer in encoder.albert_layer_groups[int(i / group)].albert_layers
    ]


def _albert_rest(layer: Any, z: Tensor, hidden: Tensor) -> Tensor:
    attended = layer.attention.LayerNorm(layer.attention.dense(z) + hidden)
    rest: Tensor = layer.full_layer_layer_norm(layer.ff_chunk(attended) + attended)
    return rest


def _albert_head(model: Any, pooled: Tensor) -> Tensor:
    base = model.albert
    logits: Tensor = model.classifier(base.pooler_activation(base.pooler(pooled)))
    return logits


def _modernbert_rest(layer: Any, z: Tensor, hidden: Tensor) -> Tensor:
    attended = hidden + layer.attn.Wo(z)
    rest: Tensor = attended + layer.mlp(layer.mlp_norm(attended))
    return rest


def _eurobert_rest(layer: Any, z: Tensor, hidden: Tensor) -> Tensor:
    attended = hidden + layer.self_attn.o_proj(z)
    rest: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
    return rest


def _eurobert_head(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.activation(model.dense(pooled)))
    return logits


def _general(dense: str, out: str, output: str, **differences: Any) -> Family:
    return Family(dense=dense, out=out, layers=_encoder, output=output, **differences)


FAMILIES = {
    "bert": Family(
        dense="bert.pooler.dense", out="classifier", layers=_encoder,
        output="attention.output.dense", query="attention.self.query", rest=_bert_rest,
        head=_bert_head,
    ),
    "roberta": _roberta(positions_after_padding=True),
    "xlm-roberta": _roberta(positions_after_padding=True),
    "camembert": _roberta(positions_after_padding=True),
    "electra": _roberta(embeddings=("embeddings", "embeddings_project")),
    "distilbert": Family(
        dense="pre_classifier", out="classifier",
        layers=lambda model: list(model.distilbert.transformer.layer),
        output="attention.out_lin", query="attention.q_lin", rest=_distilbert_rest,
        head=_distilbert_head,
    ),
    "albert": Family(
        dense="albert.pooler", out="classifier", layers=_albert_layers,
        output="attention.dense", query="attention.query", rest=_albert_rest, head=_albert_head,
        embeddings=("embeddings", "encoder.embedding_hidden_mapping_in"),
    ),
    "modernbert": Family(
        dense="head.dense", out="classifier", layers=lambda model: list(model.model.layers),
        output="attn.Wo", rest=_modernbert_rest,
        head=lambda model, pooled: model.classifier(model.head(pooled)),
        final=lambda model, hidden: model.model.final_norm(hidden),
        pooling=lambda config: {"cls": "first", "mean": "mean"}[config.classifier_pooling],
        gated=True,
    ),
    "eurobert": Family(
        dense="dense", out="classifier", layers=lambda model: list(model.model.layers),
        output="self_attn.o_proj", query="self_attn.q_proj", rest=_eurobert_rest,
        head=_eurobert_head,
        final=lambda model, hidden: model.model.norm(hidden),
        pooling=lambda config: {"bos": "first"}.get(config.classifier_pooling,
                                                    config.classifier_pooling),
        embeddings=("embed_tokens",), gated=True,
    ),
    "deberta": _general("pooler.dense", "classifier", "attention.output.dense"),
    "deberta-v2": _general("pooler.dense", "classifier", "attention.output.dense"),
    "mpnet": _general("classifier.dense", "classifier.out_proj", "attention.attn.o",
                      positions_after_padding=True),
    "big_bird": _general("classifier.dense", "classifier.out_proj", "attention.output.dense"),
}
"""model_type of a configuration -> its family."""

UNKNOWN = Family(dense=None, out=None, layers=lambda model: [], output="")
"""Any other sequence classifier: general path, without the scores that need its head's weights."""

REFUSED = {
    "longformer": "it attends by windows, and from [CLS] by a second attention of its own, so that "
                  "no one row says where [CLS] looks",
}
"""model_type -> why it is not supported. Others that attend in a form of their own are found out
when they are opened; see `general.reading`."""
