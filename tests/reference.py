"""Independent references: eager models in float64, one document at a time, and plain NumPy."""

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


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
    model.base_model.embeddings.register_forward_hook(lambda *args: args[2].requires_grad_())


def eager_results(model, **inputs):
    """The same for tensors of one document: contribution is a * dm/da by autograd."""
    answer = model(**inputs, output_attentions=True)
    last = answer.attentions[-1]
    last.retain_grad()
    ranked = answer.logits[0].sort(descending=True).values
    (ranked[0] - ranked[1]).backward()
    rows = torch.stack([layer[0, :, 0] for layer in answer.attentions])
    contribution = (last * last.grad)[0, :, 0]
    return tuple(x.detach().numpy() for x in (answer.logits[0], rows, contribution))


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
