"""Independent references: eager models in float64, one document at a time, and plain NumPy."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.activations import GELUActivation, NewGELUActivation


class Eager:
    """A checkpoint as transformers runs it, in float64 with eager attention and autograd."""

    def __init__(self, path):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float64
        ).eval()
        differentiable(self.model)

    def __call__(self, text, max_length=None):
        """Logits [C], rows [layers, heads, pieces] and contribution [heads, pieces] of a text."""
        encoded = self.tokenizer(
            text, return_tensors="pt", truncation=max_length is not None, max_length=max_length
        )
        return eager_results(self.model, **encoded)


def differentiable(model):
    """Let autograd start at the embeddings instead of at every parameter, which is slow."""
    model.requires_grad_(False)
    start = getattr(model.base_model, "embeddings", None) or model.get_input_embeddings()
    start.register_forward_hook(lambda *args: args[2].requires_grad_())


def eager_results(model, **inputs):
    """The same for tensors of one document: contribution is a * dm/da by autograd."""
    answer = attended(model, inputs)
    rows = torch.stack([layer[0, :, 0] for layer in answer.attentions])
    last = answer.attentions[-1]
    contribution = (last * last.grad)[0, :, 0]
    return tuple(x.detach().numpy() for x in (answer.logits[0], rows, contribution))


def attended(model, inputs, target=None):
    """An eager model's answer for one document, its attentions [1, heads, L, L] with gradients."""
    seen, softmax = [], functional.softmax

    def kept(*args, dtype=None, **kwargs):  # always in the scores' own precision
        seen.append(softmax(*args, **kwargs))
        seen[-1].retain_grad()
        return seen[-1]

    with mock.patch.object(functional, "softmax", kept):
        answer = model(**inputs, output_attentions=True)
    # XLNet hands out copies that are not on the way to its logits.
    for own, given in zip(seen, answer.attentions, strict=True):
        assert torch.equal(own, given)
    answer.attentions = seen
    margin_of(answer.logits, target).backward(retain_graph=True)
    return answer


def margin_of(logits, target=None):
    """The margin of a class (by default the predicted one); one logit x stands for (0, x)."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    target = int(logits[0].argmax()) if target is None else target
    return logits[0, target] - torch.cat([logits[0, :target], logits[0, target + 1 :]]).max()


def piece_scores(model, output_projection, read, inputs, target=None):
    """All piece scores of one document but `conservative`, by full matrices and autograd.

    `read` [L] is how much of each piece's output the head reads; `output_projection` the module
    W_o of the last layer (None: no `norm`).
    """
    seen = []
    projection = output_projection or torch.nn.Identity()
    hook = projection.register_forward_hook(lambda *args: seen.append(args[2]))
    answer = attended(model, inputs, target)
    hook.remove()
    attention = [layer[0].detach() for layer in answer.attentions]
    weighted = [(layer * layer.grad)[0].detach() for layer in answer.attentions]
    queries = read if read.max() == 1 else torch.ones_like(read)
    scores = {f"contribution_{i}": torch.einsum("q,hqk->k", queries, w)
              for i, w in enumerate(weighted)}
    scores["contribution"] = scores[f"contribution_{len(weighted) - 1}"]
    one = torch.eye(len(read), dtype=read.dtype)
    rollout = relevance = one
    for a, w in zip(attention, weighted, strict=True):
        rollout = (a.mean(0) + one) / 2 @ rollout
        relevance = relevance + w.clamp(min=0).mean(0) @ relevance
    scores["rollout"], scores["relevance"] = read @ rollout, read @ relevance
    scores["rows"] = torch.stack([torch.einsum("q,hqk->hk", read, a) for a in attention])
    scores["logits"] = answer.logits[0]
    if not seen:
        return {name: x.detach().numpy() for name, x in scores.items()}
    # The output of W_o is linear in the weights: its Jacobian gives v W_o of every head and piece.
    last, seen = answer.attentions[-1], seen[-1].flatten(0, -2)
    along = []
    for k in range(seen.shape[1]):
        (jacobian,) = torch.autograd.grad((read @ seen)[k], last, retain_graph=True)
        along.append((last * jacobian)[0].sum((0, 1)))
    scores["norm"] = torch.stack(along).norm(dim=0)
    return {name: x.detach().numpy() for name, x in scores.items()}


def conservative(model, start, gates, inputs, target=None):
    """embedding . dm/d embedding, with what only scales detached; see `held`.

    `start` is the first layer, whose input is taken as the embedding, or the embedding itself;
    `gates` the activation modules whose output multiplies another branch.
    """
    entered = []

    def leaf(_, given):
        if entered:  # a later use of a layer that is shared
            return given
        entered.append(given[0].detach().requires_grad_())
        return entered[0], *given[1:]

    if isinstance(start, torch.nn.Embedding):
        hooks = [start.register_forward_hook(lambda *args: leaf(None, args[2:])[0])]
    else:
        hooks = [start.register_forward_pre_hook(leaf)]
    hooks += [gate.register_forward_hook(lambda *args: args[2].detach()) for gate in gates]
    with held():
        margin_of(model(**inputs).logits, target).backward()
    for hook in hooks:
        hook.remove()
    # XLNet puts the pieces first.
    return (entered[0] * entered[0].grad).flatten(0, 1).sum(-1).detach().numpy()


@contextmanager
def held():
    """Functions whose scaling part is detached, in the place of torch's own."""
    tanh, gelu, softmax = torch.tanh, functional.gelu, functional.softmax
    rsqrt, sqrt = torch.rsqrt, torch.sqrt
    gelu_module, new_gelu = GELUActivation.forward, NewGELUActivation.forward

    def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (x.var(-1, correction=0, keepdim=True) + eps).sqrt().detach()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def constant_ratio(function):
        return lambda x, *args, **kwargs: x * (function(x, *args, **kwargs) / x).detach()

    def of_module(function):
        return lambda module, x: x * (function(module, x) / x).detach()

    with (
        mock.patch.object(GELUActivation, "forward", of_module(gelu_module)),
        mock.patch.object(NewGELUActivation, "forward", of_module(new_gelu)),
        mock.patch.object(functional, "layer_norm", layer_norm),
        mock.patch.object(functional, "gelu", constant_ratio(gelu)),
        mock.patch.object(torch, "tanh", constant_ratio(tanh)),
        mock.patch.object(functional, "softmax", lambda *a, **k: softmax(*a, **k).detach()),
        mock.patch.object(torch, "rsqrt", lambda x: rsqrt(x).detach()),
        mock.patch.object(torch, "sqrt", lambda x: sqrt(x).detach()),
    ):
        yield


def statistic(x, error, stratum):
    """T and V of the stratified test, from the formula, over all documents."""
    t = v = 0.0
    for s in np.unique(stratum):
        inside = stratum == s
        n, k = inside.sum(), error[inside].sum()
        t += x[inside & error].sum() - k * x[inside].sum() / n
        if n > 1:
            v += k * (n - k) / n * x[inside].var(ddof=1)
    return t, v


def permuted(error, stratum, rng):
    """Errors shuffled within strata."""
    shuffled = error.copy()
    for s in np.unique(stratum):
        inside = np.flatnonzero(stratum == s)
        shuffled[inside] = error[rng.permutation(inside)]
    return shuffled
