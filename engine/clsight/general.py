"""The general path: any sequence classifier whose attention is a softmax over pieces.

For families that never call a registered attention function. The model runs as it is, with eager
attention, on documents of one length at a time, so that nothing is padded. Every softmax on the way
is an attention matrix, taken where it is used: autograd then gives dm/dA of the margin m, and with
it all scores that need no value vectors. Exact, but each layer's matrices are in memory for a block
of documents, and contributions cost a backward: some 2 to 4 times the fast path.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from clsight import tables
from clsight.attention import Attended, Wanted, margins
from clsight.clock import Clock
from clsight.errors import ClsightError
from clsight.heads import BLOCK, Groups
from clsight.models import Classifier, two_classes
from clsight.references import References
from clsight.rules import SOFTMAX, Counterpart, Rules, fused_gelus


class Softmaxes(Rules):
    """While active, keeps every softmax of a forward pass."""

    def __init__(self, counterpart: Counterpart | None = None) -> None:
        """Nothing is kept yet."""
        super().__init__()
        self.seen: list[Tensor] = []
        self.counterpart = counterpart

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute by `Rules`; keep what a softmax gives."""
        output = super().__torch_function__(func, types, args, kwargs)
        if func in SOFTMAX:
            self.seen.append(output)
        return output


class InOrder:
    """What operations see in a pass over references, found again in the pass over documents.

    A model does the same to both, in the same order and shapes, whatever these are.
    """

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._seen: deque[Tensor] = deque()

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        """The counterpart in the first pass."""
        self._seen.append(x.detach())
        return x.detach

    def find(self, x: Tensor) -> Callable[[], Tensor]:
        """The counterpart in the second pass."""
        del x
        return self._seen.popleft().detach


@dataclass(frozen=True)
class Answer:
    """What a forward pass over d documents of L pieces leaves behind."""

    logits: Tensor
    """[d, classes]"""
    attention: list[Tensor]
    """Per layer [d, heads, L, L], in the graph."""
    entered: Tensor
    """[d, L, width] what enters the first layer, or the embeddings where layers are not known; here
    the graph starts."""
    rules: Rules


def forward(
    classifier: Classifier, ids: Tensor, positions: Tensor, groups: Groups, wanted: Wanted,
    segments: Tensor | None = None, target: Tensor | None = None, clock: Clock | None = None,
    references: References | None = None,
) -> Attended:
    """Run a batch; the same arguments and result as `attention.forward`.

    Raises:
        ClsightError: the model's attention has another form, with what was found.
    """
    del positions, clock  # the model counts positions itself, and its passes are not told apart
    parts: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for pieces, documents, length in _chunks(groups, classifier):
        types = None if segments is None else segments[pieces].view(-1, length)
        seen, entered = InOrder(), None
        if references is not None:
            place = references.pieces_of(documents, length)
            other = None if types is None else references.segments[place]
            entered = ask(classifier, references.ids[place], other, seen.keep).entered.detach()
        counterpart = None if references is None else seen.find
        answer = ask(classifier, ids[pieces].view(-1, length), types, counterpart)
        chosen = None if target is None else target[documents]
        parts.append(_results(answer, classifier.pooling, wanted, chosen, entered))
    logits, rows, scores = zip(*parts, strict=True)
    return Attended(
        torch.cat(logits), torch.cat(rows, -1),
        {name: torch.cat([one[name] for one in scores], -1) for name in wanted.scores},
    )


def ask(
    classifier: Classifier, ids: Tensor, types: Tensor | None,
    counterpart: Counterpart | None = None,
) -> Answer:
    """One forward pass over ids [d, L], its attention matrices in the graph."""
    model, taken = classifier.model, signature(classifier.model.forward).parameters
    inputs: dict[str, Tensor] = {"input_ids": ids}
    if types is not None and "token_type_ids" in taken:
        inputs["token_type_ids"] = types
    entered: list[Tensor] = []

    def start(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if not entered:
            entered.append(given[0].detach().requires_grad_())
            return entered[0], *given[1:]
        return given

    rules = Softmaxes(counterpart)
    with ExitStack() as stack:
        if classifier.layers:
            stack.callback(classifier.layers[0].register_forward_pre_hook(start).remove)
        else:
            entered.append(model.get_input_embeddings()(inputs.pop("input_ids")).requires_grad_())
            inputs["inputs_embeds"] = entered[0]
        stack.enter_context(fused_gelus())
        stack.enter_context(rules)
        logits = model(**inputs).logits
    # The graph holds the rules: with what they saw in them, neither would ever be freed.
    attention, rules.seen = rules.seen, []
    return Answer(two_classes(logits.float()), attention, entered[0], rules)


def reading(classifier: Classifier, ids: Tensor, n_layers: int) -> str:
    """Which queries of the last layer the head reads: "first", "last" or "mean".

    Found out on one document ids [1, L] of three or more pieces: dm/dA is 0 for a query that nobody
    reads.

    Raises:
        ClsightError: the attention has another form, with what was found.
    """
    kind = classifier.model.config.model_type
    try:
        # Twice the same: some decoders cannot take more than one text without a padding piece.
        answer = ask(classifier, ids.expand(2, -1), None)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ClsightError(f"{kind} models cannot be run from embeddings alone: {error}") from error
    length = ids.shape[1]
    shapes = {tuple(a.shape[-2:]) for a in answer.attention}
    if len(answer.attention) != n_layers or shapes != {(length, length)}:
        found = f"{len(answer.attention)} of shape {sorted(shapes)}"
        raise ClsightError(
            f"{kind} models do not attend by one softmax a layer over all pieces (for {length} "
            f"pieces and {n_layers} layers: {found}), so they have no [CLS] row to read"
        )
    margin = margins(answer.logits, None)
    (grad,) = torch.autograd.grad(margin.sum(), answer.attention[-1])
    read = grad[0].abs().amax((0, 2)) > 0
    for name, pattern in (("first", read[0] and not read[1:].any()),
                          ("last", read[-1] and not read[:-1].any()), ("mean", read.all())):
        if pattern:
            return name
    raise ClsightError(f"{kind}: the head reads the pieces {read.nonzero().flatten().tolist()} of "
                       f"{length}; clsight knows heads that read the first, the last or all")


def _chunks(groups: Groups, classifier: Classifier) -> Iterator[tuple[slice, slice, int]]:
    """(pieces, documents, length) of as many documents as keep all layers' matrices small."""
    config, done = classifier.model.config, 0
    for first, documents, length in groups:
        square = config.num_attention_heads * config.num_hidden_layers * length * length
        step = max(1, 4 * BLOCK // square)
        for start in range(0, documents, step):
            stop = min(start + step, documents)
            yield (slice(first + start * length, first + stop * length),
                   slice(done + start, done + stop), length)
        done += documents


def _results(
    answer: Answer, pooling: str, wanted: Wanted, target: Tensor | None,
    references: Tensor | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, rows [layers, heads, d * L] and scores of some documents.

    `references` [d, L, width] is what enters the first layer of theirs.
    """
    margin = margins(answer.logits, target).sum()
    attention = [a.detach().float() for a in answer.attention]
    documents, _, length, _ = attention[0].shape
    read = torch.zeros(length, dtype=torch.float32, device=margin.device)
    if pooling == "mean":
        read += 1 / length
    else:
        read[0 if pooling == "first" else -1] = 1
    weighted = _weighted(answer, margin, wanted)
    scores = {}
    for score in wanted.scores:
        if tables.base(score) == "contribution":
            named = tables.score_layer(score)
            layer = len(attention) - 1 if named is None else named
            queries = weighted[layer] if pooling == "mean" else weighted[layer] * read[:, None]
            scores[score] = _flat(queries.sum(2))
    if "rollout" in wanted.scores:
        row = read.expand(documents, length)
        for a in reversed(attention):
            row = (torch.einsum("nq,nhqk->nk", row, a) / a.shape[1] + row) / 2
        scores["rollout"] = _flat(row[:, None])
    if "relevance" in wanted.scores:
        row = read.expand(documents, length)
        for layer in reversed(range(len(attention))):
            row = row + torch.einsum("nq,nhqk->nk", row, weighted[layer].clamp(min=0)) / (
                weighted[layer].shape[1]
            )
        scores["relevance"] = _flat(row[:, None])
    entered = answer.entered.detach().float()
    if "conservative" in wanted.scores:
        answer.rules.rule = "conserving"
        (grad,) = torch.autograd.grad(margin, answer.entered, retain_graph=True)
        scores["conservative"] = _flat((entered * grad.float()).sum(-1)[:, None])
    if "deeplift" in wanted.scores:
        assert references is not None
        answer.rules.rule = "difference"
        (multipliers,) = torch.autograd.grad(margin, answer.entered)
        step = entered - references.float()
        scores["deeplift"] = _flat((step * multipliers.float()).sum(-1)[:, None])
    rows = [_flat(torch.einsum("q,nhqk->nhk", read, attention[i])) for i in wanted.layers]
    return answer.logits.detach(), torch.stack(rows), scores


def _weighted(
    answer: Answer, margin: Tensor, wanted: Wanted
) -> dict[int, Tensor]:
    """layer -> A * dm/dA [d, heads, L, L], for the layers that scores need."""
    last = len(answer.attention) - 1
    layers = {*wanted.contribution_layers} | ({last} if "contribution" in wanted.scores else set())
    if "relevance" in wanted.scores:
        layers = set(range(last + 1))
    chosen = sorted(layers)
    if not chosen:
        return {}
    attention = [answer.attention[layer] for layer in chosen]
    grads = torch.autograd.grad(margin, attention, retain_graph=True)
    return {layer: a.detach().float() * g.float()
            for layer, a, g in zip(chosen, attention, grads, strict=True)}


def _flat(x: Tensor) -> Tensor:
    """[d, heads, L] -> [heads, d * L], as packed batches lie."""
    return x.transpose(0, 1).flatten(1)
