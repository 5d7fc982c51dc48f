"""The frozen plan of a run: what goes in, what is kept, and the fingerprint behind resume."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clsight import shards, tables
from clsight.errors import UsageError

FORMAT = 3
_ARROW = {"int64": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class DatasetPlan:
    """The dataset of a run; `id_type` and `label_type` are "int64" or "string"."""

    path: str
    sha256: str
    text: str
    text_pair: str | None
    label: str
    id: str | None
    split: str | None
    id_type: str
    label_type: str
    on_bad_row: str
    group_by: str | None = None


@dataclass(frozen=True)
class ModelPlan:
    """A model of a run; `labels` are its classes in order, spelled as in the dataset."""

    path: str
    sha256: str
    model_type: str
    labels: tuple[int | str, ...]
    n_heads: int
    layers: tuple[int, ...]
    """Layers whose attention rows are stored, ascending; the last layer is always among them."""
    max_length: int


@dataclass(frozen=True)
class Plan:
    """Everything that determines the stored numbers of a run."""

    dataset: DatasetPlan
    models: dict[str, ModelPlan]
    dtype: str
    scores: tuple[str, ...]
    """Word scores, in the order of `tables.SCORES`."""
    target: str
    """The class that scores explain: "predicted", "gold", or a label."""
    shard_size: int
    n_rows: int | None = None
    """Rows of the dataset; known, and written, once the documents stage is complete."""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines the numbers (contents and options, not paths)."""
        identity = json.dumps(dict(_identity(self)), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def n_shards(self) -> int:
        """Number of shards; 0 while the documents are not complete."""
        return -(-(self.n_rows or 0) // self.shard_size)

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of `document_id`."""
        return _ARROW[self.dataset.id_type]

    @property
    def label_type(self) -> pa.DataType:
        """Arrow type of `label` and `predicted`."""
        return _ARROW[self.dataset.label_type]

    def shard_names(self) -> list[str]:
        """File names of all shards, in order of their documents."""
        return [shards.name(shard) for shard in range(self.n_shards)]

    def save(self, run: Path) -> None:
        """Write `plan.json` whole or not at all."""
        with shards.replaced(run / "plan.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def chosen_scores(
    wanted: str, unavailable: dict[str, dict[str, str]], depths: dict[str, int]
) -> tuple[str, ...]:
    """The word scores of a run, in the order of `tables.SCORES`.

    >>> chosen_scores("conservative,contribution_1", {}, {"bert": 3})
    ('uniform', 'contribution', 'contribution_1', 'conservative')

    Args:
        wanted: "default", "all" (that every model has), or names with commas between them.
        unavailable: model -> score -> why it cannot have it.
        depths: model -> number of its layers.

    Raises:
        UsageError: a score is not known, or a model cannot have it.
    """
    lacking = {score for reasons in unavailable.values() for score in reasons}
    if wanted in ("default", "all"):
        names = tables.SCORES if wanted == "all" else (*tables.FROM_ROWS, "contribution")
        return tuple(name for name in names if name not in lacking)
    named = [name.strip() for name in wanted.split(",")]
    for name in named:
        if not re.fullmatch(r"[a-z]+|(?:uniform|contribution)_\d+", name) or (
            tables.base(name) not in tables.SCORES
        ):
            raise UsageError(f"--scores {wanted}: there is no score {name!r}; there are "
                             f"{', '.join(tables.SCORES)}, and uniform_N and contribution_N for "
                             "layer N")
        layer = tables.score_layer(name)
        for model, depth in depths.items():
            if layer is not None and layer >= depth:
                raise UsageError(f"--scores {name}: {model} has the layers 0 to {depth - 1}")
            if reason := unavailable.get(model, {}).get(name):
                raise UsageError(f"--scores {name}: not for {model}: {reason}")
    order = [*tables.SCORES]
    return tuple(sorted({*tables.ALWAYS, *named}, key=lambda name: (
        order.index(tables.base(name)), tables.score_layer(name) or 0, name)))


def load(run: Path) -> Plan:
    """The plan of a run folder.

    Raises:
        UsageError: the folder is missing or holds no plan that this version can read.
    """
    path = run / "plan.json"
    if not path.is_file():
        what = "is not a clsight run (it has no plan.json)" if run.exists() else "does not exist"
        raise UsageError(f"{run} {what}")
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise UsageError(f"{path} has format {stored['format']}; this version reads {FORMAT}")
        models = {
            name: ModelPlan(
                **{**model, "labels": tuple(model["labels"]), "layers": tuple(model["layers"])}
            )
            for name, model in stored["models"].items()
        }
        stored["scores"] = tuple(stored["scores"])
        return Plan(**{**stored, "dataset": DatasetPlan(**stored["dataset"]), "models": models})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read as a plan ({error}); start a new run") from error


def refuse_other_plan(old: Plan, new: Plan, run: Path) -> None:
    """Raise `UsageError` that names both values wherever `run` was made by another plan."""
    before, after = dict(_identity(old)), dict(_identity(new))
    changes = [
        f"{key} was {before.get(key, 'absent')} and is now {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changes:
        raise UsageError(
            f"{run} was made by another plan: {'; '.join(changes)}; "
            "give the same input and options, or another output folder"
        )


def _identity(plan: Plan) -> Iterator[tuple[str, Any]]:
    stored = dataclasses.asdict(plan)
    yield from ((key, stored[key]) for key in ("format", "dtype", "target", "shard_size"))
    yield "scores", list(plan.scores)
    yield from ((f"dataset {k}", v) for k, v in stored["dataset"].items() if k != "path")
    for name, model in stored["models"].items():
        for key, value in model.items():
            if key != "path":
                yield f"model {name} {key}", list(value) if isinstance(value, tuple) else value
