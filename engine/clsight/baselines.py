"""What others explain a classifier with: the yardsticks of `validate`.

Nothing of `attention` is in them but the margin m that all explain: the model runs as transformers
has it, in float32, on documents of equal length, so that nothing is padded.

    random                seeded uniform numbers
    leave_one_out         m(document) - m(document with that word masked)
    gradient_x_input      x . dm/dx, x the embedding of a piece
    integrated_gradients  the same, averaged from the document with all words masked to the document
                          (Sundararajan et al. 2017), by Captum

The embedding is what enters the first layer; where layers are not known, that of the input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clsight import calibrate
from clsight.attention import margins
from clsight.batches import Integers, Pieces, gather, pack
from clsight.errors import UsageError
from clsight.families import FAMILIES, UNKNOWN
from clsight.models import Classifier, load, two_classes
from clsight.perturb import Floats, Parts, parts_of, perturbed, stand_in
from clsight.plan import ModelPlan
from clsight.scores import Words

BASELINES = ("random", "leave_one_out", "gradient_x_input", "integrated_gradients")
AT_ONCE = 1 << 18
"""Pieces of copies that leave-one-out makes at a time."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Alike:
    """Some documents of one length, on the model's device."""

    documents: Integers
    """[d] which ones."""
    index: Integers
    """[d * L] where their pieces lie."""
    ids: Tensor
    """[d, L]"""
    types: Tensor
    """[d, L]"""
    special: Tensor
    """[d, L] pieces that belong to no word."""
    target: Tensor
    """[d]"""


@dataclass(frozen=True)
class Baselines:
    """The yardsticks of one classifier; use `open_baselines`."""

    classifier: Classifier
    at_once: int
    """Pieces that go through the model at a time."""

    def word_scores(
        self, name: str, pieces: Pieces, words: Words, target: Integers, *, steps: int = 50,
        seed: int = 0, progress: Progress = lambda _: None,
    ) -> Floats:
        """[words] scores of the documents' words; those made for pieces are summed over a word's.

        Args:
            name: one of `BASELINES`.
            pieces: of n documents.
            words: of the same documents.
            target: [n] index of the class whose margin is explained.
            steps: forward and backward passes of integrated gradients.
            seed: of random scores.
            progress: called with the number of documents that are done.

        Raises:
            UsageError: Captum is needed and not installed, or the tokenizer has no piece that could
                stand for a word.
        """
        if name == "random":
            return np.random.default_rng(seed).random(len(words.start), dtype=np.float32)
        parts = parts_of(pieces, words)
        if name == "leave_one_out":
            return self._leave_one_out(pieces, words, parts, target, progress)
        values = self.piece_scores(name, pieces, target, steps=steps, progress=progress)
        return parts.summed(values, len(words.start))

    def piece_scores(
        self, name: str, pieces: Pieces, target: Integers, *, steps: int = 50, seed: int = 0,
        progress: Progress = lambda _: None,
    ) -> Floats:
        """[T] scores of the documents' pieces; see `word_scores`.

        For gradient_x_input and integrated_gradients, and random numbers; leaving one out is for
        words alone.
        """
        scores = np.empty(len(pieces.ids), np.float32)
        if name == "random":
            return np.random.default_rng(seed).random(len(scores), dtype=np.float32)
        for some in self._alike(pieces, target):
            if name == "gradient_x_input":
                values = self._gradient_x_input(some)
            elif name == "integrated_gradients":
                values = self._integrated_gradients(some, steps)
            else:
                raise ValueError(f"there is no score of pieces {name!r}")
            scores[some.index] = values.flatten().cpu().numpy()
            progress(len(some.documents))
        return scores

    def margins(self, pieces: Pieces, target: Integers) -> Floats:
        """[n] margins of documents, one forward pass."""
        found = np.empty(len(target), np.float32)
        for some in self._alike(pieces, target):
            with torch.no_grad():
                found[some.documents] = self._margin(None, some.ids, some.types, some.target).cpu()
        return found

    def _leave_one_out(
        self, pieces: Pieces, words: Words, parts: Parts, target: Integers, progress: Progress
    ) -> Floats:
        """One forward pass for each word; a document's copies lie side by side, one a word."""
        n_words = np.diff(words.offsets)
        of_word = np.repeat(np.arange(len(n_words)), n_words)
        scores = self.margins(pieces, target)[of_word]
        for first, last in _ranges(n_words * pieces.lengths):
            some = slice(words.offsets[first], words.offsets[last])
            hit = parts.each(pieces, words, first, last)
            copies = perturbed(pieces, of_word[some], hit, stand_in(self.classifier))
            scores[some] -= self.margins(copies, target[of_word[some]])
            progress(last - first)
        return scores

    def _gradient_x_input(self, some: Alike) -> Tensor:
        embedded = self._embedded(some.ids, some.types).requires_grad_()
        margin = self._margin(embedded, some.ids, some.types, some.target)
        (grad,) = torch.autograd.grad(margin.sum(), embedded)
        return (embedded.detach() * grad).sum(-1)

    def _integrated_gradients(self, some: Alike, steps: int) -> Tensor:
        masked = some.ids.masked_fill(~some.special, stand_in(self.classifier))
        n, length = some.ids.shape
        attributed: Tensor = captum().IntegratedGradients(self._margin).attribute(
            self._embedded(some.ids, some.types), self._embedded(masked, some.types),
            additional_forward_args=(some.ids, some.types, some.target), n_steps=steps,
            internal_batch_size=max(n, self.at_once // length),
        )
        return attributed.sum(-1)

    def _embedded(self, ids: Tensor, types: Tensor) -> Tensor:
        """[d, L, width] embeddings of documents ids [d, L]."""
        with torch.no_grad():
            _, embedded = self._answer(None, ids, types)
        return embedded.detach()

    def _margin(
        self, embedded: Tensor | None, ids: Tensor, types: Tensor, target: Tensor
    ) -> Tensor:
        """[d] margins of documents ids [d, L], with these embeddings in the place of their own."""
        logits, _ = self._answer(embedded, ids, types)
        return margins(two_classes(logits.float()), target)

    def _answer(
        self, embedded: Tensor | None, ids: Tensor, types: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [d, classes], and the embeddings [d, L, width] that they come from."""
        model, layers = self.classifier.model, self.classifier.layers
        used: list[Tensor] = []
        inputs: dict[str, Any] = {"input_ids": ids}
        if "token_type_ids" in signature(model.forward).parameters:
            inputs["token_type_ids"] = types

        def enter(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if used:  # a later use of a layer that is shared
                return None
            used.append(given[0] if embedded is None else embedded)
            return used[0], *given[1:]

        if not layers:
            del inputs["input_ids"]
            used.append(model.get_input_embeddings()(ids) if embedded is None else embedded)
            return model(inputs_embeds=used[0], **inputs).logits, used[0]
        hook = layers[0].register_forward_pre_hook(enter)
        try:
            return model(**inputs).logits, used[0]
        finally:
            hook.remove()

    def _alike(self, pieces: Pieces, target: Integers) -> Iterator[Alike]:
        """All documents, those of one length together as far as they go through at a time."""
        device = self.classifier.device

        def put(values: Any, length: int) -> Tensor:
            return torch.from_numpy(values).to(device).view(-1, length)

        for batch in pack(pieces.lengths, self.at_once):
            done = 0
            for _, n, length in batch.groups:
                documents = batch.documents[done : done + n]
                index, _ = gather(pieces.offsets, documents)
                special = pieces.start[index] == pieces.end[index]
                yield Alike(
                    documents, index, put(pieces.ids[index].astype(np.int64), length),
                    put(pieces.segments[index].astype(np.int64), length), put(special, length),
                    put(target[documents], 1)[:, 0],
                )
                done += n


def _ranges(sizes: Integers) -> Iterator[tuple[int, int]]:
    """Ranges of documents, of about `AT_ONCE` in size each; a larger document has its own."""
    ends = np.cumsum(sizes)
    cuts = np.unique(np.searchsorted(ends, np.arange(AT_ONCE, ends[-1], AT_ONCE), side="right"))
    yield from pairwise(np.unique([0, *cuts, len(sizes)]).tolist())


def captum() -> Any:
    """Captum's attributions, whose import takes seconds.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise UsageError('integrated gradients need Captum: pip install "clsight[validate]"'
                         ) from error


def open_baselines(plan: ModelPlan, device: str) -> Baselines:
    """Open the classifier of a plan as transformers has it, in float32.

    Args:
        plan: which one.
        device: where to, such as "cpu" or "cuda:0".

    Raises:
        UsageError: it cannot be opened.
        NotEnoughMemoryError: it does not fit.
    """
    fast = FAMILIES.get(plan.model_type, UNKNOWN).fast
    classifier = load(plan, torch.float32, device, "sdpa" if fast else "eager")
    return Baselines(classifier, calibrate.default(classifier.device.type, graph=True))
