"""Open a fine-tuned classifier safely, and know what its family looks like.

Safetensors only, no remote code, no invented weights: what cannot be analysed exactly is refused
with the reason before any work starts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification
from transformers.activations import FastGELUActivation, NewGELUActivation

from clsight import checkpoints, rules
from clsight.checkpoints import local_folder
from clsight.dataset import file_sha256
from clsight.errors import ClsightError, UsageError, listed, said
from clsight.families import FAMILIES, REFUSED, UNKNOWN, Family
from clsight.plan import ModelPlan
from clsight.references import mask_piece

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation")
"""Names that families give to the activation of their feed-forward, in their configurations."""
IMPLEMENTATION = "clsight_sdpa"
"""Name of clsight's attention function in transformers' registry; "sdpa" in it makes models that
would never call it raise."""


class NotEnoughMemoryError(ClsightError):
    """A model does not fit onto its device."""


@dataclass(frozen=True)
class Classifier:
    """A classifier in memory, frozen and in evaluation mode."""

    model: Any
    tokenizer: Any
    family: Family
    max_length: int
    layers: list[Any]
    """Encoder layers by depth."""
    tail: Any
    """The last layer, in the precision in which what follows its attention runs."""
    pooling: str
    """What the head reads: "first", "mean", "late" (see `Family.pooling`), or "last"."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, max_length: int) -> "Classifier":
        """A transformers model in memory, with what is known of its family.

        GELUs that are spelled out in Python are replaced by the fused function of the same formula,
        which is faster, and known to `rules`.
        """
        for module in list(model.modules()):
            for child_name, child in module.named_children():
                if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                    setattr(module, child_name, torch.nn.GELU(approximate="tanh"))
        family = FAMILIES.get(model.config.model_type, UNKNOWN)
        layers = family.layers(model)
        return cls(model, tokenizer, family, max_length, layers, layers[-1] if layers else None,
                   family.pooling(model.config))

    @property
    def n_layers(self) -> int:
        """Number of encoder layers."""
        return len(self.layers)

    @property
    def first_position(self) -> int:
        """Position id of the first piece."""
        config = self.model.config
        return checkpoints.first_position(config, self.family, config.name_or_path)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the encoder layers."""
        dtype: torch.dtype = next(self.layers[0].parameters()).dtype
        return dtype

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Which of token types and positions the encoder takes, beside the pieces' ids."""
        taken = signature(self.model.base_model.forward).parameters
        return tuple(name for name in ("token_type_ids", "position_ids") if name in taken)

    @property
    def output_projection(self) -> torch.Tensor:
        """[width, heads * size] W_o of the last layer."""
        projection: torch.Tensor = self.tail.get_submodule(self.family.output).weight
        return projection

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """[n, classes] of what the head reads [n, width]."""
        return two_classes(self.family.head(self.model, pooled))


def two_classes(logits: torch.Tensor) -> torch.Tensor:
    """A single logit x [n, 1] as the logits (0, x), whose softmax is (1 - sigmoid, sigmoid)."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def inspect(name: str, path: str, layers: str, seen_labels: list[int | str]) -> ModelPlan:
    """What a run needs to know of a checkpoint before any work starts; loads no weights.

    Args:
        name: the model's name in the run.
        path: a checkpoint folder, or a model's name on the Hugging Face Hub.
        layers: "last", "all", or a list such as "-1,-2" or "0-5".
        seen_labels: labels from the dataset, which decide how classes are spelled.

    Raises:
        UsageError: the checkpoint cannot be analysed, with the reason.
    """
    config = checkpoints.configuration(path)
    if config.model_type in REFUSED:
        raise UsageError(f"{path} is a {config.model_type} model: {REFUSED[config.model_type]}")
    found = checkpoints.read(name, path)
    return ModelPlan(
        path=path,
        sha256=_sha256(path, found.weights),
        model_type=config.model_type,
        labels=class_labels(name, config, seen_labels),
        n_heads=config.num_attention_heads,
        layers=chosen_layers(layers, found.depth),
        max_length=found.max_length,
    )


def refuse_changed(plan: ModelPlan) -> None:
    """Raise `UsageError` where a checkpoint's files are no more those that a run was made with."""
    if _sha256(plan.path, checkpoints.read(plan.path, plan.path).weights) != plan.sha256:
        raise UsageError(f"{plan.path} has changed since the run was made; put the checkpoint of "
                         "then there, or make a new run")


def _sha256(path: str, weights: Iterable[Path]) -> str:
    """Of all files that determine what a checkpoint answers."""
    folder = local_folder(path)
    return file_sha256(sorted({*weights, *folder.glob("*.json"), *folder.glob("*.txt")}))


def unavailable_scores(path: str) -> dict[str, str]:
    """Scores that a checkpoint cannot have -> the reason."""
    reasons = unavailable_to(checkpoints.configuration(path))
    if mask_piece(checkpoints.tokenizer(path)) is None:
        reasons["deeplift"] = "its tokenizer has no piece that could stand for a word"
    return reasons


def unavailable_to(config: Any) -> dict[str, str]:
    """Scores that a model of some configuration cannot have -> the reason."""
    kind, family = config.model_type, FAMILIES.get(config.model_type, UNKNOWN)
    reasons: dict[str, str] = {}
    if family.dense is None:
        unknown = f"how the head of {kind} models reads attention heads is not known to clsight"
        reasons |= {"classifier": unknown, "projected": unknown}
    if not family.fast:
        reasons["norm"] = f"value vectors of {kind} models are out of reach on the general path"
    named = (getattr(config, name, None) for name in _ACTIVATIONS)
    activation = next((name for name in named if name), "gelu")
    if activation not in rules.NAMED:
        unruled = f"it has no rule for the activation {activation}"
        reasons |= {"conservative": unruled, "deeplift": unruled}
    return reasons


def load(
    plan: ModelPlan, dtype: torch.dtype, device: str, attention: str | None = None
) -> Classifier:
    """Open the classifier of a plan: frozen, in evaluation mode.

    Args:
        plan: which one.
        dtype: precision.
        device: where to.
        attention: transformers' name of an attention function; None for clsight's own where the
            family calls it, else eager attention.

    Raises:
        UsageError: weights are missing from the checkpoint, or damaged.
        NotEnoughMemoryError: it does not fit.
    """
    folder = local_folder(plan.path)
    family = FAMILIES.get(plan.model_type, UNKNOWN)
    full = {"attention_type": "original_full"} if plan.model_type == "big_bird" else {}
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            attn_implementation=attention or (IMPLEMENTATION if family.fast else "eager"),
            dtype=torch.float32, **full,
        )
        _cast(model.requires_grad_(False).eval(), dtype)
        model.to(device)
    except Exception as error:  # what is wrong with weights has many names
        if is_out_of_memory(error):
            raise NotEnoughMemoryError(f"not enough memory on {device} for the model") from error
        raise UsageError(f"{plan.path} cannot be opened: {said(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{plan.path} lacks the weights {listed(missing, 4)}, which would be "
                         "random; fine-tune the model for classification first")
    return Classifier.of(model, checkpoints.tokenizer(plan.path), plan.max_length)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Round parameters; buffers, such as the angles of rotary positions, stay in float32.

    To open a model in half precision, transformers sets torch's default for the whole process
    meanwhile: tensors that another thread makes at that moment would be in half precision too. It
    also leaves DeBERTa's and XLNet's own parameters in float32, which then meet halves.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def class_labels(name: str, config: Any, seen: list[int | str]) -> tuple[int | str, ...]:
    """The model's classes in order, as the dataset spells them: numbers, or the model's names.

    Raises:
        UsageError: the model does not classify into two or more exclusive classes, or none of
            its names occurs among the dataset's labels.
    """
    n_classes = max(2, config.num_labels)
    if config.problem_type == "regression" or (
        config.problem_type == "multi_label_classification" and config.num_labels > 1
    ):
        raise UsageError(f"{name}: {config.problem_type} heads are not supported; clsight explains "
                         "why a model chose one class and not another")
    names = [config.id2label[index] for index in range(config.num_labels)]
    if all(isinstance(label, int) for label in seen):
        return tuple(range(n_classes))
    if not set(seen) & set(names) and all(str(label).isdecimal() for label in seen):
        return tuple(str(index) for index in range(n_classes))
    if config.num_labels == 1:
        raise UsageError(f"{name} has one logit (sigmoid), the dataset has the labels "
                         f"{listed(seen)}; number them 0 and 1, 1 for the class that it stands for")
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UsageError(f"{name} names several classes {listed(twice)}; give each its own name in "
                         "id2label of config.json, or number the dataset's labels from 0")
    if not set(seen) & set(names):
        raise UsageError(f"{name} knows the labels {listed(names)}, the dataset has "
                         f"{listed(seen)}; spell them alike, or number the classes from 0")
    return tuple(names)


def chosen_layers(wanted: str, n_layers: int) -> tuple[int, ...]:
    """Layer indices of "last", "all" or a list such as "-1,-2" or "0-5"; the last one always.

    >>> chosen_layers("0-2,-2", 12)
    (0, 1, 2, 10, 11)
    """
    if wanted == "all":
        return tuple(range(n_layers))
    chosen = {n_layers - 1}
    for part in [] if wanted == "last" else wanted.split(","):
        match = re.fullmatch(r" *(?:(-?\d+)|(\d+)-(\d+)) *", part)
        if not match:
            raise UsageError(f"--layers {wanted}: write last, all, or a list such as -1,-2 or 0-5")
        span = range(int(match[1] or match[2]), int(match[1] or match[3]) + 1)
        if any(not -n_layers <= layer < n_layers for layer in span):
            raise UsageError(f"--layers {wanted}: the model has layers 0 to {n_layers - 1}")
        chosen |= {layer % n_layers for layer in span}
    return tuple(sorted(chosen))


def is_out_of_memory(error: BaseException) -> bool:
    """Of torch's errors some are plain RuntimeErrors, known by their words alone."""
    said = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said))
