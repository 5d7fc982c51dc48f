"""Three ways to send a margin back through one graph: gradient, conserving share, difference.

The conserving rule (Ali et al. 2022, "XAI for Transformers: Better Explanations through
Conservative Propagation") holds constant what only scales: attention weights, the 1 / std of a
normalisation, and activation(x) / x. What remains is linear, so x . dm/dx is handed down from layer
to layer without loss (but for what biases take).

The difference rule is DeepLIFT (Shrikumar et al. 2017): beside each document runs a reference, x0
for x, and each operation y = f(x) gets multipliers M with M (x - x0) = y - y0 exactly. They chain,
so that what the words give adds up to m(document) - m(reference), to the last digit:

    f of one number   (f(x) - f(x0)) / (x - x0)
    x y               the means of both ends: (x + x0)/2 and (y + y0)/2
    layer_norm        1 / std and x - mean(x) as such a product, and 1 / std as a function of x
    softmax a         L_j (delta_jk - L_k / sum L), L the logarithmic mean of a and a0,
                      (a - a0) / (ln a - ln a0): for a_j - a0_j = L_j (ln a_j - ln a0_j), and that
                      both sum to 1 fixes how the normaliser's logarithm moves

While `Rules` is active, operations build graphs that know all three; `rule` says which one a
backward follows. No module is changed, so it serves every family.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers.activations import FastGELUActivation, NewGELUActivation

CHUNK = 1 << 17
"""Elements of an activation that are worked on at a time: what fits into a core's cache."""
Rule = Literal["gradient", "conserving", "difference"]
Counterpart = Callable[[Tensor], Callable[[], Tensor]]
"""counterpart(x)() is what x is in the reference documents, in the shape of x."""
Share = Literal["ratio", "constant", "gradient"]
"""What the conserving rule takes y = f(x) for: x times the constant y / x, a constant, or f."""

ACTIVATIONS = {F.gelu, F.silu, F.relu, torch.relu, torch.Tensor.relu, torch.tanh, torch.Tensor.tanh}
SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}
SCALES = {torch.rsqrt, torch.Tensor.rsqrt, torch.sqrt, torch.Tensor.sqrt, torch.sigmoid,
          torch.Tensor.sigmoid}
"""1 / std, std, and the gate in x * sigmoid(x): constant under the conserving rule."""
SECANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, x0: -(x * x0).rsqrt() / (x.sqrt() + x0.sqrt()),
    "sqrt": lambda x, x0: 1 / (x.sqrt() + x0.sqrt()),
    "reciprocal": lambda x, x0: -1 / (x * x0),
    "square": lambda x, x0: x + x0,
}
"""(f(x) - f(x0)) / (x - x0) without a difference of like numbers."""
PRODUCTS = {"mul", "__mul__", "__rmul__", "multiply", "matmul", "__matmul__", "bmm", "einsum"}
QUOTIENTS = {"div", "__truediv__", "true_divide", "divide"}
POWERS = {"pow", "__pow__", "square"}
NAMED = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu",
         "swish", "tanh"}
"""Activations, as configurations name them, that the rules know."""


class Rules(TorchFunctionMode):
    """While active, graphs can be followed backward by any rule."""

    def __init__(self) -> None:
        """Start with the gradient."""
        super().__init__()
        self.rule: Rule = "gradient"
        self.gated = False
        """In feed-forwards of the form activation(gate) * value the conserving rule holds the gate
        constant."""
        self.counterpart: Counterpart | None = None
        """Set where the difference rule will be asked for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute as ever; let what is not linear know of all rules."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return output
        if func in SOFTMAX:
            return _apply(_Softmax, output, self, _dimension(*args, **kwargs))
        if func is F.layer_norm:
            return _apply(_Normalised, output, self, *_layer_norm(*args, **kwargs))
        if func in SCALES:
            return self._of_one(partial(func, *args[1:], **kwargs), func.__name__, "constant",
                                args[0], output)
        if func in ACTIVATIONS:
            function = _of_first(func, args[1:], kwargs)
            return self._of_one(function, func.__name__, "constant" if self.gated else "ratio",
                                args[0], output)
        return output if self.counterpart is None else self._difference(func, args, kwargs, output)

    def _of_one(
        self, function: Any, name: str, share: Share, x: Tensor, output: Tensor
    ) -> Tensor:
        return _apply(_OfOne, x, output, self, function, SECANTS.get(name), share)

    def _difference(
        self, func: Any, args: Any, kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Products and powers, which only the difference rule takes for other than they are."""
        name = getattr(func, "__name__", "")
        if name in POWERS and args[0].requires_grad:
            if name != "square" and args[1] != 2:
                return self._of_one(_of_first(func, args[1:], kwargs), name, "gradient", args[0],
                                    output)
            return self._of_one(torch.square, "square", "gradient", args[0], output)
        graphs = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
        if name in QUOTIENTS and 1 in graphs:
            divisor = args[1].reciprocal()
            inverse = self._of_one(torch.reciprocal, "reciprocal", "gradient", args[1], divisor)
            return args[0] * inverse if 0 not in graphs else _apply(
                _Product, args[0], inverse, args[0] * inverse, self, torch.mul)
        if name in PRODUCTS and len(graphs) == 2:
            function = partial(func, *args[: graphs[0]])
            return _apply(_Product, args[graphs[0]], args[graphs[1]], output, self, function)
        return output


def _of_first(func: Any, rest: Any, kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: func(x, *rest, **kwargs)


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


def _dimension(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> int:
    return dim


class _OfOne(torch.autograd.Function):
    """y = f(x), element by element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, rules: Rules, function: Any, secant: Any, share: Share
    ) -> Tensor:
        ctx.rules, ctx.function, ctx.secant, ctx.share = rules, function, secant, share
        ctx.counterpart = rules.counterpart and rules.counterpart(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 4
        if grad is None:
            return None, None, *nothing
        x, y = ctx.saved_tensors
        if ctx.rules.rule == "difference":
            slope = ctx.secant or partial(secant, ctx.function)
            return _multiplied(grad, slope, x, ctx.counterpart()), None, *nothing
        if ctx.rules.rule == "gradient" or ctx.share == "gradient":
            return None, grad, *nothing
        if ctx.share == "constant":
            return None, None, *nothing
        return grad * torch.where(x == 0, 0, y / x), None, *nothing


class _Softmax(torch.autograd.Function):
    """a = softmax(s); the conserving rule takes it as a constant."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, rules: Rules, dim: int) -> Tensor:
        ctx.rules, ctx.dim = rules, dim
        ctx.counterpart = rules.counterpart and rules.counterpart(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a)
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad is None or ctx.rules.rule == "conserving":
            return None, None, None
        if ctx.rules.rule == "gradient":
            return grad, None, None
        # The softmax's own gradient comes behind this: G - sum a G, times a. So that it ends as the
        # secant, what it gets is L (G - sum L G / sum L) / a, whose sum with a is 0.
        (a,) = ctx.saved_tensors
        a, a0 = exact(a), exact(ctx.counterpart())
        given = softmax_difference(exact(grad), a, a0, a.log(), a0.log(), ctx.dim)
        return torch.where(a == 0, 0, given / a).to(grad.dtype), None, None


class _Normalised(torch.autograd.Function):
    """y = layer_norm(x): the conserving rule takes 1 / std as a constant."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, rules: Rules, x: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        ctx.rules, ctx.weight, ctx.eps = rules, weight, eps
        ctx.counterpart = rules.counterpart and rules.counterpart(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return y.view_as(y)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        if grad is None or ctx.rules.rule == "gradient":
            return grad, None, None, None, None
        (x,) = ctx.saved_tensors
        scaled = exact(grad) if ctx.weight is None else exact(grad) * exact(ctx.weight)
        if ctx.rules.rule == "difference":
            scaled = norm_difference(scaled, exact(x), exact(ctx.counterpart()), ctx.eps)
        else:
            variance = exact(x).var(-1, correction=0, keepdim=True)
            scaled = scaled * torch.rsqrt(variance + ctx.eps)
        return None, None, (scaled - scaled.mean(-1, keepdim=True)).to(x.dtype), None, None


class _Product(torch.autograd.Function):
    """A function that is linear in x and in y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, output: Tensor, rules: Rules, function: Any) -> Any:
        ctx.rules, ctx.function = rules, function
        assert rules.counterpart is not None
        ctx.counterparts = rules.counterpart(x), rules.counterpart(y)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or ctx.rules.rule != "difference":
            return None, None, grad, None, None
        with torch.enable_grad():
            means = [((x + x0()) / 2).detach().requires_grad_()
                     for x, x0 in zip(ctx.saved_tensors, ctx.counterparts, strict=True)]
            given = torch.autograd.grad(ctx.function(*means), means, grad)
        return *given, None, None, None


def _multiplied(
    grad: Tensor, slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, x0: Tensor
) -> Tensor:
    """grad * slope(x, x0), some rows at a time."""
    product = torch.empty_like(grad)
    parts = zip(*(one.flatten(0, -2).split(max(1, CHUNK // x.shape[-1]))
                  for one in (product, grad, x, x0)), strict=True)
    for given, upward, one, other in parts:
        torch.mul(upward, slope(exact(one), exact(other)), out=given)
    return product


def exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def secant(function: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> Tensor:
    """(f(x) - f(x0)) / (x - x0) of an activation; where x is near x0, over a step half way.

    Over a step h, rounding costs eps / h and the curvature h^2 / 24 |f'''|: the least step that is
    taken is where these meet.
    """
    width = (x - x0).abs_().clamp_(min=(24 * torch.finfo(x.dtype).eps) ** (1 / 3))
    middle = torch.lerp(x, x0, 0.5)
    high, low = middle.add(width, alpha=0.5), middle.sub_(width, alpha=0.5)
    slope: Tensor = function(high).sub_(function(low)).div_(high.sub_(low))
    return slope


def softmax_difference(
    grad: Tensor, a: Tensor, a0: Tensor, logs: Tensor, logs0: Tensor, dim: int = -1
) -> Tensor:
    """Multipliers of logits from those of a = softmax(logits): L (grad - sum L grad / sum L).

    L, the logarithmic mean, is the larger of a and a0 times (1 - e^-d) / d, d the distance of their
    logarithms, `logs` and `logs0`.
    """
    near = (logs - logs0).nan_to_num_(0).abs_().neg_().sub_(torch.finfo(logs.dtype).tiny)
    mean = near.expm1().div_(near).mul_(torch.maximum(a, a0))
    average = (mean * grad).sum(dim, keepdim=True) / mean.sum(dim, keepdim=True)
    return mean.mul_(grad - average)


def norm_difference(grad: Tensor, x: Tensor, x0: Tensor, eps: float) -> Tensor:
    """Multipliers of x - mean(x) through (x - mean(x)) / std, on the last axis.

    r = 1 / std is a function of the variance, with the secant -r r0 / (1 / r + 1 / r0), and the
    variance's multiplier of a centred c is (c + c0) / n.
    """
    c, c0 = (one - one.mean(-1, keepdim=True) for one in (x, x0))
    r, r0 = ((one.square().mean(-1, keepdim=True) + eps).rsqrt() for one in (c, c0))
    both = c + c0
    of_r = (grad * both).sum(-1, keepdim=True) / 2
    return grad * ((r + r0) / 2) - both * (of_r * r * r0 / (1 / r + 1 / r0) / x.shape[-1])
