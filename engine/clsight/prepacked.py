"""Linear layers whose weights lie as the processor multiplies them.

torch brings the weights of a linear layer into the order of the matrix product anew in every call.
Done once, the product runs at 440 instead of 405 GFLOP/s in bfloat16, and at 205 instead of 170 in
float32 (2 cores with bfloat16 units, 512 to 4,096 rows of BERT-base), so a whole pass is 1.15 times
as fast. The operators are those that `torch.compile` uses, without its half a minute at the start;
fusing GELU into them as it does gained nothing.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

ROWS = 4096
"""Rows of a product for which oneDNN chooses the order; it serves any number of rows."""


class Prepacked(torch.nn.Module):
    """A frozen linear layer on the CPU."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Keep the weights as they are, and once more in the order of the product."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = _packed(linear.weight)

    @cached_property
    def transposed(self) -> Tensor:
        """W^T in the order of the product; made where a graph is first followed backward."""
        return _packed(self.weight.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        if x.requires_grad:
            product: Tensor = _Linear.apply(x, self)  # type: ignore[no-untyped-call]
            return product
        return _product(x, self.packed, self.bias)


class _Linear(torch.autograd.Function):
    """The same in a graph, whose backward needs no gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Prepacked) -> Tensor:
        ctx.layer = layer
        return _product(x, layer.packed, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _product(grad, ctx.layer.transposed, None), None


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


def prepacked(linear: torch.nn.Linear) -> torch.nn.Module:
    """The layer with prepacked weights, or as it is where that gains nothing."""
    return Prepacked(linear) if _gains(linear.weight) else linear


def prepack(layers: list[Any]) -> None:
    """Replace the linear layers within encoder layers."""
    for layer in layers:
        for module in list(layer.modules()):
            for name, child in module.named_children():
                if type(child) is torch.nn.Linear:
                    setattr(module, name, prepacked(child))


def _gains(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.float32:
        return True
    operators = torch.ops.mkldnn
    if weight.dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float16 and bool(operators._is_mkldnn_fp16_supported())
