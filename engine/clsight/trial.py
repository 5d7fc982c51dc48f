"""A model's trial on one short text: are its logits finite, and does clsight compute the same?"""

import dataclasses
import threading

import torch
from torch import Tensor

from clsight import attention, general
from clsight.attention import Wanted, prepare
from clsight.errors import ClsightError, UsageError, listed, said
from clsight.models import (
    IMPLEMENTATION,
    Classifier,
    NotEnoughMemoryError,
    is_out_of_memory,
    load,
    two_classes,
)
from clsight.plan import ModelPlan

TEXT = "a look at one short text"
ALONE = threading.Lock()
"""For one forward pass at a time: two would need twice the memory, and `general` changes functions
of transformers on the way. Models run in the main thread, in the one that opens them, and in the
one that writes shards, which runs some documents again."""


def opened(name: str, plan: ModelPlan, dtype: torch.dtype, device: str) -> Classifier:
    """The classifier of a plan, made ready after its trial.

    On the fast path what follows the last attention is called part by part: here its logits for one
    short text are compared with those of the model itself.

    Raises:
        UsageError: its logits are not finite, with what is to blame.
        ClsightError: it cannot be loaded, or attends in a form that is not known, or clsight does
            not compute what it does.
    """
    classifier = load(plan, dtype, device)
    ids, expected = _answer(classifier)
    if not expected.isfinite().all():
        raise UsageError(f"{name}: its logits for a short text are not finite"
                         f"{_to_blame(classifier, plan, dtype, device)}")
    if classifier.family.fast:
        return _compared(classifier, ids, expected)
    n_layers = classifier.model.config.num_hidden_layers
    with ALONE:
        pooling = general.reading(classifier, ids[None], n_layers)
    return dataclasses.replace(classifier, pooling=pooling)


def _answer(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """The pieces [L] of the short text, and the model's own logits [1, classes] for it.

    Raises:
        UsageError: the model cannot be run.
    """
    encoded = classifier.tokenizer(TEXT, truncation=True, max_length=classifier.max_length)
    ids = torch.tensor(encoded["input_ids"], device=classifier.device)
    model, fast = classifier.model, classifier.family.fast
    if fast:
        model.set_attn_implementation("sdpa")
    try:
        with ALONE, torch.no_grad():
            logits = two_classes(model(input_ids=ids[None]).logits.float())
    except Exception as error:  # a model's own code, on numbers of a stranger
        if is_out_of_memory(error):
            raise NotEnoughMemoryError(
                f"not enough memory on {classifier.device} for the model") from error
        raise UsageError(f"{model.config.name_or_path} cannot be run on a short text: "
                         f"{said(error)}") from error
    if fast:
        model.set_attn_implementation(IMPLEMENTATION)
    return ids, logits


def _to_blame(
    classifier: Classifier, plan: ModelPlan, dtype: torch.dtype, device: str
) -> str:
    """Whether the precision is, or the weights are; the end of a sentence."""
    if dtype != torch.float32:
        classifier = load(plan, torch.float32, device)
        if _answer(classifier)[1].isfinite().all():
            precision = str(dtype).removeprefix("torch.")
            return f" in {precision}, and are in float32: pass --dtype float32"
    broken = [name for name, weight in classifier.model.named_parameters()
              if not weight.isfinite().all()]
    if broken:
        return (f", for weights of {plan.path} are not (in {listed(broken, 3)}): take an earlier "
                "checkpoint, or train it again")
    return f", not even in float32, for the weights of {plan.path} are too large: train it again"


def refuse_pairs(name: str, classifier: Classifier) -> None:
    """Raise `UsageError` where the second text of a pair has a token type without an embedding."""
    known = getattr(classifier.model.config, "type_vocab_size", None)
    tokenizer = classifier.tokenizer
    if not known or "token_type_ids" not in tokenizer.model_input_names:
        return
    largest = max(tokenizer("a", "b")["token_type_ids"])
    if largest >= known:
        raise UsageError(f"{name} has {known} token type{'s' * (known > 1)}, too few for a second "
                         "text: it was not trained on pairs; leave out --text-pair")


def _compared(classifier: Classifier, ids: Tensor, expected: Tensor) -> Classifier:
    """The classifier made ready.

    Raises:
        ClsightError: its logits then differ from those of the model itself.
    """
    ready = prepare(classifier)
    groups, positions = ((0, 1, len(ids)),), torch.arange(len(ids), device=ids.device)
    with ALONE:
        got = attention.forward(ready, ids, positions, groups, Wanted((), ())).logits
    tolerance = 1e-3 if classifier.dtype == torch.float32 else 0.1
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        raise ClsightError(
            f"{type(classifier.model).__name__} gives the logits {expected[0].tolist()} for a "
            f"short text, clsight {got[0].tolist()}: this variant of the family is not supported"
        )
    return ready
