"""Open a fine-tuned classifier safely, and know what its family looks like.

Safetensors only, no remote code, no invented weights: what cannot be analysed exactly is refused
with the reason before any work starts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from clsight.dataset import file_sha256
from clsight.errors import UsageError, listed
from clsight.plan import ModelPlan

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ABSURD_LENGTH = 1_000_000
"""Tokenizers without a maximum report 10^30; from here on it is taken as none."""


@dataclass(frozen=True)
class Family:
    """Where a family of encoders keeps the modules that matter, as dotted paths."""

    layers: str
    """List of encoder layers, each with `attention.output` (W_o, residual, LayerNorm)."""
    head: tuple[str, ...]
    """Modules from the encoder's output to the logits."""
    dense: str
    """The head's first dense layer, which reads the [CLS] embedding."""
    out: str
    """The head's output layer: one row of weights per class."""
    positions_after_padding: bool = False
    """Positions count from padding_idx + 1 instead of 0."""


def _roberta(base: str) -> Family:
    return Family(
        layers=f"{base}.encoder.layer",
        head=("classifier",),
        dense="classifier.dense",
        out="classifier.out_proj",
        positions_after_padding=base == "roberta",
    )


FAMILIES = {
    "bert": Family("bert.encoder.layer", ("bert.pooler", "classifier"), "bert.pooler.dense",
                   "classifier"),
    "roberta": _roberta("roberta"),
    "xlm-roberta": _roberta("roberta"),
    "camembert": _roberta("roberta"),
    "electra": _roberta("electra"),
}
"""model_type of a configuration -> its family."""


@dataclass(frozen=True)
class Classifier:
    """A classifier in memory, frozen and in evaluation mode."""

    model: Any
    tokenizer: Any
    family: Family
    max_length: int

    @property
    def n_layers(self) -> int:
        """Number of encoder layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def first_position(self) -> int:
        """Position id of the first piece."""
        return _first_position(self.model.config, self.family)

    @property
    def last_layer(self) -> torch.nn.Module:
        """The encoder layer whose [CLS] output the head reads."""
        layers = self.model.get_submodule(self.family.layers)
        last: torch.nn.Module = layers[self.n_layers - 1]
        return last

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device


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
    folder = local_folder(path)
    weights = _safetensors(folder, path)
    config, tokenizer = _config(folder, path), _tokenizer(folder, path)
    family = _family(config, path)
    _refuse_missing_head(weights, family, path)
    return ModelPlan(
        path=path,
        sha256=file_sha256(sorted({*weights, *folder.glob("*.json"), *folder.glob("*.txt")})),
        model_type=config.model_type,
        labels=class_labels(name, config, seen_labels),
        n_heads=config.num_attention_heads,
        layers=chosen_layers(layers, config.num_hidden_layers),
        max_length=_max_length(config, tokenizer, family),
    )


def load(plan: ModelPlan, dtype: torch.dtype, device: str, attention: str) -> Classifier:
    """Open the classifier of a plan: frozen, in evaluation mode, with the given attention.

    Raises:
        UsageError: weights are missing from the checkpoint.
    """
    folder = local_folder(plan.path)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        attn_implementation=attention, dtype=dtype,
    )
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{plan.path} lacks the weights {listed(missing, 4)}, which would be "
                         "random; fine-tune the model for classification first")
    model.requires_grad_(False).eval().to(device)
    tokenizer = _tokenizer(folder, plan.path)
    return Classifier(model, tokenizer, _family(model.config, plan.path), plan.max_length)


def local_folder(path: str) -> Path:
    """The checkpoint's folder; a name on the Hugging Face Hub is downloaded to the cache first."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise UsageError(f"there is no model folder at {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.txt", "*.safetensors",
                                                            "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"{path} is neither a folder here nor a model on the Hub: {reason}"
                         ) from error


def class_labels(name: str, config: Any, seen: list[int | str]) -> tuple[int | str, ...]:
    """The model's classes in order, as the dataset spells them: numbers, or the model's names.

    Raises:
        UsageError: the model does not classify into two or more exclusive classes, or none of
            its names occurs among the dataset's labels.
    """
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or "one logit"
        raise UsageError(f"{name}: {kind} heads are not supported; clsight needs a logit for each "
                         "of two or more exclusive classes")
    names = [config.id2label[index] for index in range(config.num_labels)]
    if all(isinstance(label, int) for label in seen):
        return tuple(range(config.num_labels))
    if not set(seen) & set(names) and all(str(label).isdecimal() for label in seen):
        return tuple(str(index) for index in range(config.num_labels))
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


def _safetensors(folder: Path, path: str) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    pickles = [file for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind)]
    if not files and pickles:
        raise UsageError(f"{path} holds its weights only as a pickle ({pickles[0].name}), which "
                         "can run code when it is opened; save it again as safetensors")
    if not files:
        raise UsageError(f"{path} holds no weights (*.safetensors)")
    return files


def _config(folder: Path, path: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"{path}: the configuration cannot be read: {reason}") from error


def _tokenizer(folder: Path, path: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = str(error).split("\n")[0]
        raise UsageError(f"{path}: the tokenizer cannot be read: {reason}") from error
    if not tokenizer.is_fast:
        raise UsageError(f"{path}: only fast tokenizers know where in the text a piece comes from; "
                         "save the model with a tokenizer.json")
    return tokenizer


def _family(config: Any, path: str) -> Family:
    if config.model_type not in FAMILIES:
        raise UsageError(f"{path} is a {config.model_type} model, which is not supported yet; "
                         f"supported: {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def _refuse_missing_head(weights: list[Path], family: Family, path: str) -> None:
    there: set[str] = set()
    for file in weights:
        try:
            with safe_open(file, framework="pt") as tensors:
                there |= set(tensors.keys())
        except Exception as error:  # safetensors raises its own bare SafetensorError
            raise UsageError(f"{file} cannot be read as safetensors: {error}") from error
    missing = [f"{part}.weight" for part in (family.dense, family.out)
               if f"{part}.weight" not in there]
    if missing:
        raise UsageError(f"{path} has no classification head (it lacks {listed(missing)}), so its "
                         "predictions would be random; fine-tune it for classification first")


def _first_position(config: Any, family: Family) -> int:
    return int(config.pad_token_id) + 1 if family.positions_after_padding else 0


def _max_length(config: Any, tokenizer: Any, family: Family) -> int:
    positions = config.max_position_embeddings - _first_position(config, family)
    if tokenizer.model_max_length >= ABSURD_LENGTH:
        return int(positions)
    return int(min(positions, tokenizer.model_max_length))
