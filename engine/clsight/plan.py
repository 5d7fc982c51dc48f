"""The frozen plan of a run: what goes in, what is kept, and the fingerprint behind resume."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from clsight import shards, store, tables
from clsight.errors import UsageError, listed, said

FORMAT = 5
FILES = ("plan.json", "log/plan.json")
"""Where the plan is, and a copy of it: without a plan, nothing says what a run is made of."""
LIBRARIES = ("torch", "transformers", "tokenizers", "polars")
"""Whose major versions must stay the same in a run: they decide its numbers."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names of models are names of folders, and stand in SQL."""
RESERVED = ("documents", "log", "statistics")
_ARROW = {"int64": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class DatasetPlan:
    """The dataset of a run; `id_type` and `label_type` are "int64" or "string"."""

    path: str
    text: str
    text_pair: str | None
    label: str
    id: str | None
    split: str | None
    id_type: str
    label_type: str
    on_bad_row: str
    group_by: str | None = None
    streaming: bool = False
    version: str | None = None
    """What tells without reading that the content is the same; see `sources.Source`."""
    sha256: str | None = None
    """Of the content (`dataset.Fingerprint`); None until it was read."""


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
    piece_scores: tuple[str, ...]
    """Scores of pieces that are stored beside attention rows: at least those that `scores` need."""
    target: str
    """The class that scores explain: "predicted", "gold", or a label."""
    shard_size: int
    options: dict[str, Any] = field(default_factory=dict)
    """How words are tested (`statistics.Options`); no part of the fingerprint."""
    libraries: dict[str, str] = field(default_factory=lambda: _versions())
    """Versions of `LIBRARIES` when the run was begun."""
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

    @property
    def labels(self) -> list[int | str]:
        """Labels of all models, each once, in the models' order."""
        return [*dict.fromkeys(label for model in self.models.values() for label in model.labels)]

    def shard_names(self) -> list[str]:
        """File names of all shards, in order of their documents."""
        return [shards.name(shard) for shard in range(self.n_shards)]

    def save(self, run: Path) -> None:
        """Write the plan and its copy, each whole or not at all."""
        content = dataclasses.asdict(self)
        text = json.dumps({"sha256": _sha256(content), **content}, indent=2) + "\n"
        for name in FILES:
            with shards.replaced(run / name, _read) as path:
                path.write_text(text)


def _versions() -> dict[str, str]:
    """Of those that are there: extraction needs no Polars."""
    found = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def chosen_scores(
    wanted: str, unavailable: dict[str, dict[str, str]], depths: dict[str, int]
) -> tuple[str, ...]:
    """The word scores of a run, in the order of `tables.SCORES`.

    >>> chosen_scores("conservative,contribution_1", {}, {"bert": 3})
    ('uniform', 'contribution', 'contribution_1', 'conservative')
    >>> chosen_scores("default,deeplift", {}, {"bert": 3})
    ('uniform', 'classifier', 'projected', 'contribution', 'deeplift')

    Args:
        wanted: "default", "all" (that every model has), or names with commas between them, of
            which one may be "default".
        unavailable: model -> score -> why it cannot have it.
        depths: model -> number of its layers.

    Raises:
        UsageError: a score is not known, or a model cannot have it.
    """
    lacking = {score for reasons in unavailable.values() for score in reasons}
    default = [name for name in tables.DEFAULT if name not in lacking]
    if wanted == "all":
        return tuple(name for name in tables.SCORES if name not in lacking)
    named = [name.strip() for name in wanted.split(",")]
    if "default" in named:
        named = [*default, *(name for name in named if name != "default")]
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
    """The plan of a run folder, from its copy where `plan.json` is damaged.

    Raises:
        UsageError: the folder is missing or holds no plan that this version can read.
    """
    path, copy = (run / name for name in FILES)
    if not store.fetched(path).is_file() and not store.fetched(copy).is_file():
        what = "is not a clsight run (it has no plan.json)" if run.exists() else "does not exist"
        raise UsageError(f"{run} {what}")
    try:
        return _read(path)
    except UsageError:
        if not store.fetched(copy).is_file():
            raise
        return _read(copy)


def damaged(run: Path) -> dict[str, str]:
    """Files of the plan that cannot be read -> why; another copy may be sound."""
    reasons = {}
    for name in FILES:
        try:
            _read(store.fetched(run / name))
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


def _read(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        UsageError: it is missing, of another format, or not as it was written.
    """
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise UsageError(f"{path} has format {stored['format']}; this version reads {FORMAT}")
        if stored.pop("sha256") != _sha256(stored):
            raise UsageError(f"{path} is not as it was written (its checksum differs)")
        return _plan(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read as a plan ({said(error)}); start a new run"
                         ) from error


def _plan(stored: dict[str, Any]) -> Plan:
    """The plan in parsed JSON.

    Raises:
        UsageError: a model's name could not have been given; it would be a path, or SQL.
    """
    refuse_bad_names(stored["models"])
    models = {
        name: ModelPlan(
            **{**model, "labels": tuple(model["labels"]), "layers": tuple(model["layers"])}
        )
        for name, model in stored["models"].items()
    }
    scores = {name: tuple(stored[name]) for name in ("scores", "piece_scores")}
    if unknown := [name for name in scores["scores"] if tables.base(name) not in tables.SCORES]:
        raise UsageError(f"there is no score {listed(unknown)}")
    return Plan(**{**stored, **scores, "models": models,
                   "dataset": DatasetPlan(**stored["dataset"])})


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_bad_names(models: Mapping[str, object]) -> None:
    """Raise `UsageError` where a model's name cannot be a folder's."""
    for name in models:
        if not MODEL_NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(f"{name!r} cannot be a model's name: use letters, digits, '_', '-', "
                             f"'.', and none of {', '.join(RESERVED)}")


def refuse_bad_folder(run: Path) -> None:
    """Raise `UsageError` where DuckDB could not find a run's files: it parts paths at commas."""
    if "," in str(run.resolve()):
        raise UsageError(f"{run.resolve()}: the path of a run must have no comma; move it, or give "
                         "another folder")


def continued(old: Plan, new: Plan, run: Path) -> Plan:
    """The plan under which a run goes on: what is asked for now, on what is there already.

    Scores that can be made from what is stored, and further models, do not touch what is there;
    everything else would.

    Raises:
        UsageError: with both values of all that changed and would need another run.
    """
    models = {
        name: dataclasses.replace(new.models[name], layers=model.layers)
        if name in new.models and set(new.models[name].layers) <= set(model.layers)
        else new.models.get(name)
        for name, model in old.models.items()
    }
    stored = set(new.piece_scores) <= set(old.piece_scores)
    kept = dataclasses.replace(
        new, models={name: model for name, model in models.items() if model is not None},
        piece_scores=old.piece_scores if stored else new.piece_scores,
    )
    _refuse_changes(old, kept, run)
    added = {name: model for name, model in new.models.items() if name not in old.models}
    _refuse_other_labels(old, added, run)
    return dataclasses.replace(kept, models=kept.models | added, n_rows=old.n_rows,
                               libraries=old.libraries)


def _refuse_changes(old: Plan, new: Plan, run: Path) -> None:
    before, after = dict(_identity(old)), dict(_identity(new))
    changes = [
        f"{key} was {_named(before.get(key))} and is now {_named(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "scores"
    ]
    if changes:
        raise UsageError(
            f"{run} was made by another plan: {'; '.join(changes)}; "
            "give the same input and options, or another output folder"
        )


def _refuse_other_labels(old: Plan, added: dict[str, ModelPlan], run: Path) -> None:
    """A model that lacks a label of the documents would make some of them unusable."""
    known = set.intersection(*(set(model.labels) for model in old.models.values()))
    for name, model in added.items():
        if lacking := sorted(known - set(model.labels)):
            raise UsageError(f"{run} holds documents with the label {listed(lacking)}, which "
                             f"{name} does not know; give another output folder")


def _named(value: Any) -> str:
    return "absent" if value is None else str(value)


def _identity(plan: Plan) -> Iterator[tuple[str, Any]]:
    stored = dataclasses.asdict(plan)
    yield from ((key, stored[key]) for key in ("format", "dtype", "target", "shard_size"))
    yield from ((key, list(stored[key])) for key in ("scores", "piece_scores"))
    yield from ((f"dataset {k}", v) for k, v in stored["dataset"].items()
                if k not in ("path", "version", "streaming"))
    yield from ((f"{k} (major version)", v.split(".")[0]) for k, v in plan.libraries.items())
    for name, model in stored["models"].items():
        for key, value in model.items():
            if key != "path":
                yield f"model {name} {key}", list(value) if isinstance(value, tuple) else value
