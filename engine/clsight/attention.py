"""The [CLS] attention rows and the exact contribution of every piece, at the cost of inference.

A function registered with transformers stands in for attention. In every layer it runs fused
attention; in the layers asked for it computes one query row beside it, softmax(q_cls K^T), in
float32. In the last layer nothing but the [CLS] row is needed, so nothing else is computed: its
z = sum_j a_j v_j becomes a leaf of autograd, everything behind it runs for the [CLS] rows alone in
float32, and one small backward gives g = dm/dz of the margin m.

No L x L attention is ever held, and no parameter has a gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from clsight.models import Classifier

IMPLEMENTATION = "clsight_sdpa"
"""Name in transformers' registry; "sdpa" in it makes models that would never call it raise."""


@dataclass
class Capture:
    """What a forward pass over one packed batch of n documents and T pieces leaves behind."""

    groups: tuple[tuple[int, int, int], ...]
    """(first piece, documents, pieces per document), as in `batches.Batch`."""
    cls: Tensor
    """[n] index of each document's [CLS] piece."""
    layers: tuple[int, ...]
    last: int
    rows: dict[int, Tensor] = field(default_factory=dict)
    """layer -> [heads, T] float32 attention from [CLS] to each piece of its document."""
    z: Tensor | None = None
    """[n, heads, head size] float32, last layer; the leaf of autograd."""
    values: Tensor | None = None
    """[heads, T, head size] value vectors of the last layer."""

    def grouped(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Views [heads, documents, pieces, size] of x [heads, T, size], one per length."""
        for first, documents, length in self.groups:
            pieces = slice(first, first + documents * length)
            yield pieces, x[:, pieces].unflatten(1, (documents, length))


@dataclass(frozen=True)
class Attended:
    """The result for a packed batch of n documents and T pieces, all float32."""

    logits: Tensor
    """[n, classes]"""
    rows: Tensor
    """[layers, heads, T]; each head's values of a document sum to 1."""
    contribution: Tensor
    """[heads, T] a * (v . g): exact first-order share of the margin, in logits."""
    z_dot_g: Tensor
    """[n, heads] what `contribution` sums to over a document's pieces."""


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, scaling: float, capture: Capture, **_: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' registry; query, key, value are [1, heads, T, head size].

    Returns the attention output [1, T, heads, head size]. In the last layer it is a place-holder:
    what follows takes `capture.z` instead.
    """
    if attention_mask is not None:
        raise ValueError("packed batches are not padded, so no mask is expected")
    q, k, v = query[0], key[0], value[0]
    layer = module.layer_idx
    if layer in capture.layers or layer == capture.last:
        capture.rows[layer] = _cls_rows(q, k, scaling, capture)
    if layer == capture.last:
        capture.values = v
        capture.z = _weighted_values(capture.rows[layer], v, capture).requires_grad_()
        return value.transpose(1, 2), None
    output = torch.empty_like(value.transpose(1, 2), memory_format=torch.contiguous_format)
    grouped = zip(capture.grouped(q), capture.grouped(k), capture.grouped(v), strict=True)
    for (pieces, qg), (_p, kg), (_q, vg) in grouped:
        attended = scaled_dot_product_attention(
            qg.transpose(0, 1), kg.transpose(0, 1), vg.transpose(0, 1), scale=scaling
        )
        output[0, pieces].unflatten(0, qg.shape[1:3]).copy_(attended.transpose(1, 2))
    return output, None


AttentionInterface.register(IMPLEMENTATION, attend)


def forward(
    classifier: Classifier, ids: Tensor, positions: Tensor,
    groups: tuple[tuple[int, int, int], ...], layers: tuple[int, ...],
) -> Attended:
    """Run a packed batch; `ids` and `positions` are [T], `positions` from 0 in each document.

    The classifier must have been opened with `IMPLEMENTATION` and passed through `prepare`.
    """
    capture = Capture(groups, torch.nonzero(positions == 0).squeeze(1), layers,
                      classifier.n_layers - 1)
    with _cls_only(classifier, capture):
        logits: Tensor = classifier.model(
            input_ids=ids[None],
            token_type_ids=torch.zeros_like(ids)[None],
            position_ids=positions[None] + classifier.first_position,
            capture=capture,
        ).logits
    if capture.z is None or capture.values is None:
        raise RuntimeError(f"{type(classifier.model).__name__} did not call its attention")
    top = logits.detach().topk(2, dim=1).indices
    margin = logits.gather(1, top)
    (g,) = torch.autograd.grad((margin[:, 0] - margin[:, 1]).sum(), capture.z)
    return Attended(
        logits=logits.detach(),
        rows=torch.stack([capture.rows[layer] for layer in layers]),
        contribution=capture.rows[capture.last] * _dot(capture.values, g, capture),
        z_dot_g=(capture.z.detach() * g).sum(-1),
    )


def prepare(classifier: Classifier) -> Classifier:
    """Keep in float32 what is cheap and counts: embeddings, and all that runs for [CLS] rows alone.

    Measured in bfloat16 on 1,024 reviews with minilm-rt: float32 embeddings bring the largest error
    of a first-layer attention value from 0.0135 to 0.0055 and of the last layer's mean over heads
    from 0.0049 to 0.0037, in the same time. A float32 residual stream throughout costs half as much
    time again and leaves the last layer where it is.
    """
    layers: Any = classifier.model.get_submodule(classifier.family.layers)
    dtype = next(layers[0].parameters()).dtype
    last: Any = classifier.last_layer
    tail = [last.attention.output, last.intermediate, last.output]
    head = [classifier.model.get_submodule(name) for name in classifier.family.head]
    for module in [classifier.model.base_model.embeddings, *tail, *head]:
        module.float()

    def enter(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0].to(dtype), *inputs[1:]

    layers[0].register_forward_pre_hook(enter)
    return classifier


@contextmanager
def _cls_only(classifier: Classifier, capture: Capture) -> Iterator[None]:
    """Let everything behind the last attention see the [CLS] rows alone.

    Behind the layer documents become the batch dimension, [n, 1, size], so that heads, which read
    position 0, work unchanged.
    """

    def narrow(_: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if capture.z is None:
            raise RuntimeError(f"{type(classifier.model).__name__} did not call its attention")
        return capture.z.flatten(1)[None], inputs[1][:, capture.cls].float()

    def widen(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.transpose(0, 1)

    last: Any = classifier.last_layer
    hooks = [last.attention.output.register_forward_pre_hook(narrow),
             last.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cls_rows(query: Tensor, key: Tensor, scaling: float, capture: Capture) -> Tensor:
    """[heads, T] softmax over each document's pieces of its [CLS] query, in float32."""
    rows = torch.empty(key.shape[:2], dtype=torch.float32, device=key.device)
    for (pieces, qg), (_, kg) in zip(capture.grouped(query), capture.grouped(key), strict=True):
        scores = (qg[:, :, :1].float() * scaling) @ kg.float().transpose(2, 3)
        rows[:, pieces] = scores.softmax(-1).flatten(1)
    return rows


def _weighted_values(rows: Tensor, value: Tensor, capture: Capture) -> Tensor:
    """[n, heads, head size] z = sum_j a_j v_j per document."""
    parts = [
        torch.einsum("hns,hnsd->nhd", rows[:, pieces].unflatten(1, vg.shape[1:3]), vg.float())
        for pieces, vg in capture.grouped(value)
    ]
    return torch.cat(parts)


def _dot(value: Tensor, g: Tensor, capture: Capture) -> Tensor:
    """[heads, T] v_j . g of the document that holds piece j."""
    parts, done = [], 0
    for _, vg in capture.grouped(value):
        gg = g[done : done + vg.shape[1]]
        parts.append(torch.einsum("nhd,hnsd->hns", gg, vg.float()).flatten(1))
        done += vg.shape[1]
    return torch.cat(parts, dim=1)
