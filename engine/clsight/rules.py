"""Two ways to send a margin back through one graph: the gradient, and a conserving share.

The conserving rule (Ali et al. 2022, "XAI for Transformers: Better Explanations through
Conservative Propagation") holds constant what only scales: attention weights, the 1 / std of a
normalisation, and activation(x) / x. What remains is linear, so x . dm/dx is handed down from layer
to layer without loss (but for what biases take). While `Rules` is active, these operations build
graphs that know both; `conserving` says which one a backward follows. No module is changed, so it
serves every family.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers.activations import FastGELUActivation, NewGELUActivation

ACTIVATIONS = {F.gelu, F.silu, torch.tanh, torch.Tensor.tanh}
"""y = f(x) element by element; relu(x) / x is 0 or 1, so its gradient is the conserving share."""
SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}
HELD = SOFTMAX | {torch.rsqrt, torch.Tensor.rsqrt, torch.sigmoid, torch.Tensor.sigmoid}
"""Attention weights, 1 / std, and the gate in x * sigmoid(x): constant under the conserving rule.
"""
NAMED = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu",
         "swish", "tanh"}
"""Activations, as configurations name them, that the conserving rule knows."""


class Rules(TorchFunctionMode):
    """While active, graphs can be followed backward by either rule."""

    def __init__(self) -> None:
        """Start with the gradient."""
        super().__init__()
        self.conserving = False
        self.gated = False
        """In feed-forwards of the form activation(gate) * value the gate is held constant."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute as ever; let what scales know of both rules."""
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, Tensor) or not output.requires_grad:
            return output
        if func in HELD:
            return _apply(_Held, output, self)
        if func in ACTIVATIONS and self.gated:
            return _apply(_Held, output, self)
        if func in ACTIVATIONS:
            return _apply(_Scaled, args[0], output, self)
        if func is F.layer_norm:
            return _apply(_Normalised, output, self, *_layer_norm(*args, **(kwargs or {})))
        return output


def _apply(function: Any, *args: Any) -> Tensor:
    applied: Tensor = function.apply(*args)
    return applied


@contextmanager
def fused_gelus() -> Iterator[None]:
    """Let GELUs that transformers spells out in Python be the fused function of the same formula.

    Only of that is known that it is an activation; BigBird's head makes its own as it runs.
    """
    spelled_out: tuple[Any, ...] = (NewGELUActivation, FastGELUActivation)
    own = [kind.forward for kind in spelled_out]
    for kind in spelled_out:
        kind.forward = lambda _, x: F.gelu(x, approximate="tanh")
    try:
        yield
    finally:
        for kind, forward in zip(spelled_out, own, strict=True):
            kind.forward = forward


def _layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, float]:
    return x, weight, eps


class _Held(torch.autograd.Function):
    """y, which the conserving rule takes as a constant."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rules: Rules) -> Tensor:
        ctx.rules = rules
        ctx.set_materialize_grads(False)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if ctx.rules.conserving else grad), None


class _Scaled(torch.autograd.Function):
    """y = f(x): the conserving rule takes it as x times the constant y / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rules: Rules) -> Tensor:
        ctx.rules = rules
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y)
        return y.view_as(y)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None or not ctx.rules.conserving:
            return None, grad, None
        x, y = ctx.saved_tensors
        return grad * torch.where(x == 0, 0, y / x), None, None


class _Normalised(torch.autograd.Function):
    """y = layer_norm(x): the conserving rule takes 1 / std as a constant."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, rules: Rules, x: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        ctx.rules, ctx.weight, ctx.eps = rules, weight, eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return y.view_as(y)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        if grad is None or not ctx.rules.conserving:
            return grad, None, None, None, None
        (x,) = ctx.saved_tensors
        variance = x.float().var(-1, correction=0, keepdim=True)
        scaled = grad.float() * torch.rsqrt(variance + ctx.eps)
        if ctx.weight is not None:
            scaled = scaled * ctx.weight.float()
        return None, None, (scaled - scaled.mean(-1, keepdim=True)).to(x.dtype), None, None
