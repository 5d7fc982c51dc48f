"""A checkpoint's files, read with distrust: do they agree, before anything is made of them?

None of their code runs. What the configuration says is held against the headers of the weights with
a model that has no memory behind it, and what the tokenizer says against both.
"""

import json
import logging
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from clsight.errors import UsageError, listed, said
from clsight.events import event
from clsight.families import FAMILIES, UNKNOWN, Family

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_hidden_groups",
                     "inner_group_num", "num_attention_heads", "n_heads", "n_head"), 1000),
    "num_labels": 10_000,
}
"""Numbers of a configuration, by any family's name, that Python loops over -> most that is allowed.
A loop over 10^9 layers would end with the machine."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Kinds of weights that can be read as numbers; others are quantised, and mean nothing alone."""
ABSURD_LENGTH = 1_000_000
"""Tokenizers without a maximum report 10^30; from here on it is taken as none."""
UNLIMITED = 4096
"""Most pieces of a document for models without a maximum of their own (XLNet)."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files agree."""

    weights: list[Path]
    """The files that hold weights."""
    config: Any
    tokenizer: Any
    family: Family
    max_length: int
    """Most pieces of a document, special ones included."""

    @property
    def depth(self) -> int:
        """Number of layers."""
        config = self.config
        return int(config.num_hidden_layers) * int(getattr(config, "inner_group_num", 1))


def read(name: str, path: str) -> Checkpoint:
    """Read a checkpoint's files, all but the weights themselves.

    Args:
        name: the model's name in the run.
        path: a folder, or a model's name on the Hugging Face Hub.

    Raises:
        UsageError: a file is missing or damaged, or two of them do not agree.
    """
    folder = local_folder(path)
    weights = _weights(folder, path)
    shapes = _shapes(weights, path)
    config = configuration(path)
    words, family = tokenizer(path), FAMILIES.get(config.model_type, UNKNOWN)
    _refuse_other_head(shapes, config, family, path)
    outline = _outline(config, path)
    _refuse_other_weights(outline, shapes, path)
    max_length = _max_length(config, words, family, path)
    _refuse_unknown_pieces(outline, words, path)
    _warn(name, path, config, words)
    return Checkpoint(weights, config, words, family, max_length)


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
        raise UsageError(f"{path} is neither a folder here nor a model on the Hub: {said(error)}"
                         ) from error


def configuration(path: str) -> Any:
    """The configuration of a checkpoint; its numbers are looked at before it is made.

    Raises:
        UsageError: it cannot be read, or says what cannot be.
    """
    folder = local_folder(path)
    stated = _json(folder / "config.json", path)
    _refuse_numbers(stated, path)
    _refuse_labels(stated, path)
    if stated.get("quantization_config") is not None:
        raise UsageError(f"{path} holds quantised weights (quantization_config in config.json), "
                         "which clsight does not read; take the model as it was before")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each family checks its own numbers in its own way
        raise UsageError(f"{path}: the configuration cannot be read: {said(error)}") from error
    kind = type(config)
    for number in ("num_hidden_layers", "num_attention_heads"):
        computed = isinstance(getattr(kind, number, None), property)
        if not computed and not {number, kind.attribute_map.get(number)} & stated.keys():
            raise UsageError(f"{path}: config.json does not say {number}; take it from where the "
                             "model was trained")
    return config


def tokenizer(path: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        UsageError: it cannot be read, or does not know where in the text a piece comes from.
    """
    try:
        found = AutoTokenizer.from_pretrained(local_folder(path), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UsageError(f"{path}: the tokenizer cannot be read: {said(error)}") from error
    if not found.is_fast:
        raise UsageError(f"{path}: only fast tokenizers know where in the text a piece comes from; "
                         "save the model with a tokenizer.json")
    return found


def _json(file: Path, path: str) -> dict[str, Any]:
    """The object in a JSON file."""
    if not file.is_file():
        raise UsageError(f"{path} has no {file.name}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {file.name} cannot be read: {said(error)}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {file.name} holds a {type(found).__name__}, not an object")
    return found


def _refuse_numbers(stated: dict[str, Any], path: str) -> None:
    if not isinstance(stated.get("model_type"), str):
        raise UsageError(f"{path}: config.json does not say model_type, the family of the model")
    for name, most in MOST.items():
        value = stated.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise UsageError(f"{path}: config.json says that {name} is {reprlib.repr(value)}; it "
                             f"must be a whole number from 1 to {most:,}")


def _refuse_labels(stated: dict[str, Any], path: str) -> None:
    """Classes must be numbered from 0, as the rows of the head are."""
    names = stated.get("id2label")
    if names is None:
        return
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UsageError(f"{path}: id2label in config.json must map class numbers to names, and is "
                         f"{reprlib.repr(names)}")
    if names.keys() != {str(index) for index in range(len(names))} or not names:
        raise UsageError(f"{path}: id2label in config.json numbers the classes {listed([*names])}; "
                         f"number them from 0 to {max(len(names) - 1, 1)}, as the head's rows are")
    if stated.get("num_labels") not in (None, len(names)):
        raise UsageError(f"{path}: config.json says that num_labels is {stated['num_labels']}, and "
                         f"id2label names {len(names)}; correct one of them")


def _weights(folder: Path, path: str) -> list[Path]:
    """The files of weights that transformers would read: a single one, or those of the index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder, path)
    others = [file for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind)]
    if others:
        raise UsageError(f"{path} holds its weights only as a pickle ({others[0].name}), which "
                         "can run code when it is opened; save it again as safetensors")
    if others := sorted(folder.glob("*.safetensors")):
        raise UsageError(f"{path} holds {listed([file.name for file in others], 3)}, and neither "
                         f"{SINGLE} nor {INDEX}, so it is no whole model; save it again")
    raise UsageError(f"{path} holds no weights ({SINGLE})")


def _indexed(folder: Path, path: str) -> list[Path]:
    shards = _json(folder / INDEX, path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UsageError(f"{path}: {INDEX} names no files of weights; save the model again")
    names = sorted({str(name) for name in shards.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise UsageError(f"{path}: {INDEX} names {listed(outside, 3)}, which is not in the folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UsageError(f"{path} lacks {listed(missing, 3)}, which {INDEX} names; copy or "
                         "download it again")
    return [folder / name for name in names]


def _shapes(files: list[Path], path: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all weights, from the headers, which must cover their file to the byte."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                kinds = {name: part.get_dtype() for name, part in parts.items()}
                shapes |= {name: tuple(part.get_shape()) for name, part in parts.items()}
        except Exception as error:  # safetensors raises its own bare SafetensorError
            raise UsageError(f"{file} cannot be read as safetensors: {said(error)}; copy or "
                             "download it again") from error
        if quantised := [name for name, kind in kinds.items()
                         if name.endswith("weight") and kind not in FLOATS]:
            raise UsageError(f"{path}: the weights {listed(quantised, 3)} are stored as "
                             f"{kinds[quantised[0]]}; clsight reads {', '.join(sorted(FLOATS))}")
    return shapes


def _refuse_other_head(
    shapes: dict[str, tuple[int, ...]], config: Any, family: Family, path: str
) -> None:
    missing = [f"{part}.weight" for part in (family.dense, family.out)
               if part is not None and f"{part}.weight" not in shapes]
    if missing:
        raise UsageError(f"{path} has no classification head (it lacks {listed(missing)}), so its "
                         "predictions would be random; fine-tune it for classification first")
    if family.out is not None:
        rows = shapes[f"{family.out}.weight"][0]
        if rows != config.num_labels:
            raise UsageError(f"{path}: config.json has {config.num_labels} classes (id2label), the "
                             f"head's weights ({family.out}.weight) have {rows}; correct id2label")


def _outline(config: Any, path: str) -> Any:
    """The model that a configuration describes, with no memory behind its weights."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=False, attn_implementation="eager")
    except Exception as error:  # whatever a family does with numbers that it did not expect
        raise UsageError(f"{path}: there is no classifier that config.json describes: "
                         f"{said(error)}") from error


def _refuse_other_weights(
    outline: Any, shapes: dict[str, tuple[int, ...]], path: str
) -> None:
    """Shapes, by name where names are the same; and as many weights as are described.

    Old checkpoints name some weights otherwise, so that names alone cannot say what is missing.
    """
    described = {name: tuple(weight.shape) for name, weight in outline.named_parameters()}
    for name, shape in described.items():
        if shapes.get(name, shape) != shape:
            there, by_config = (" x ".join(map(str, s)) for s in (shapes[name], shape))
            raise UsageError(f"{path}: {name} is {there} in the weights and {by_config} by "
                             "config.json; they are not of one model")
    needed, held = (sum(map(math.prod, sizes.values())) for sizes in (described, shapes))
    if needed > held:
        missing = sorted(described.keys() - shapes.keys())
        raise UsageError(f"{path} lacks the weights {listed(missing, 4)}, which would be random "
                         f"(config.json describes {needed:,} numbers, the files hold {held:,}); "
                         "fine-tune the model for classification first, or copy it again")


def _refuse_unknown_pieces(outline: Any, words: Any, path: str) -> None:
    try:
        rows = len(outline.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):
        return
    largest = max([*words.get_vocab().values(), *words("a")["input_ids"]])
    if largest >= rows:
        raise UsageError(f"{path}: the tokenizer gives pieces numbers up to {largest:,}, and the "
                         f"embeddings have the rows 0 to {rows - 1:,}; they are not of one model")


def _max_length(config: Any, words: Any, family: Family, path: str) -> int:
    """Most pieces of a document: by the model's positions and by its tokenizer.

    A limit of 0 pieces or less, or of 10^30, is none.
    """
    positions = getattr(config, "max_position_embeddings", None) or ABSURD_LENGTH
    limits = {"max_position_embeddings": positions, "model_max_length": words.model_max_length}
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise UsageError(f"{path}: {name} is {reprlib.repr(limit)}, not a number")
    known = {name: limit for name, limit in limits.items() if 0 < limit < ABSURD_LENGTH}
    if "max_position_embeddings" in known:
        known["max_position_embeddings"] -= first_position(config, family, path)
    most = int(min(known.values(), default=UNLIMITED))
    special = words.num_special_tokens_to_add(pair=False)
    if most <= special:
        raise UsageError(f"{path}: a document may have {most} pieces ({listed(sorted(known))}), of "
                         f"which {special} are special ones, so that no text is left; correct it")
    return most


def first_position(config: Any, family: Family, path: str) -> int:
    """Position id of the first piece.

    Raises:
        UsageError: it depends on the padding piece, and that is not known.
    """
    if not family.positions_after_padding:
        return 0
    if type(config.pad_token_id) is not int or config.pad_token_id < 0:
        raise UsageError(f"{path}: config.json says that pad_token_id is {config.pad_token_id}; "
                         f"{config.model_type} models count positions from it")
    return int(config.pad_token_id) + 1


def _warn(name: str, path: str, config: Any, words: Any) -> None:
    """Say what is odd and yet can be analysed."""
    own, other = words.pad_token_id, config.pad_token_id
    if own is not None and other is not None and own != other:
        event("warning", f"{name}: pad_token_id is {own} by the tokenizer and {other} by "
              "config.json; nothing is padded here, but the model may have been trained so",
              logging.WARNING, model=name)
    if getattr(config, "auto_map", None):
        event("warning", f"{name}: {path} comes with code of its own, which is not run; it is read "
              f"as the {config.model_type} model that transformers knows", logging.WARNING,
              model=name)
