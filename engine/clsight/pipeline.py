"""A run from dataset to tables: documents, then per model attention and scores, then statistics.

Every stage commits shards under their final names and skips those that are there, so that the same
call resumes a run.
"""

import dataclasses
import itertools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsight import memory, shards, tables
from clsight import plan as plans
from clsight.dataset import Dataset, bad_documents, refuse_bad_documents, write_documents
from clsight.errors import UsageError, listed
from clsight.plan import DatasetPlan, ModelPlan, Plan
from clsight.statistics import Options

if TYPE_CHECKING:
    import polars

    from clsight.clock import Clock

log = logging.getLogger("clsight")

Progress = Callable[[str, int, int], None]
"""progress(stage, documents done since the last call, documents in all)"""

_RESERVED = {"documents", "log"}


@dataclass(frozen=True)
class Run:
    """A run folder, open for reading."""

    folder: Path
    plan: Plan

    def sql(self, query: str, **parameters: Any) -> "polars.DataFrame":
        """Answer a named query, a relation's name or a SELECT statement as a Polars frame.

        >>> clsight.open("RUN").sql("examples", form="yet", model="roberta")  # doctest: +SKIP
        """
        import polars

        from clsight import database

        given = {name: str(value) for name, value in parameters.items()}
        with database.connect(self.folder) as connection:
            frame = polars.from_arrow(database.query(connection, query, given).read_all())
        assert isinstance(frame, polars.DataFrame)
        return frame


def open_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises:
        UsageError: it is not one.
    """
    return Run(Path(folder), plans.load(Path(folder)))


def run(
    data: str,
    *,
    text: str,
    label: str,
    models: Mapping[str, str],
    output: str | Path,
    id: str | None = None,
    text_pair: str | None = None,
    split: str | None = None,
    group_by: str | None = None,
    on_bad_row: str = "error",
    layers: str = "last",
    scores: str = "default",
    target: str = "predicted",
    dtype: str = "auto",
    device: str = "auto",
    tokens_per_batch: int | None = None,
    shard_size: int = 4096,
    options: Options | None = None,
    progress: Progress = lambda *_: None,
    clock: "Clock | None" = None,
) -> Run:
    """Extract, score and test a dataset with several classifiers; resumes where it was stopped.

    Args:
        data: a .parquet, .csv, .tsv, .jsonl or .ndjson file, a folder written by
            `datasets.save_to_disk`, or a dataset's name on the Hugging Face Hub.
        text: column of the texts.
        label: column of the gold labels: class numbers from 0, or the models' label names.
        models: name in the run -> checkpoint folder, or name on the Hugging Face Hub.
        output: the run folder; made if missing.
        id: column of document ids; by default the row, from 0.
        text_pair: column of the second texts, for classifiers of pairs.
        split: which split of a Hugging Face dataset.
        group_by: column within whose values words are tested as well, such as a source; documents
            are then compared within those values alone.
        on_bad_row: "error" refuses a dataset with unusable documents, naming them; "skip" leaves
            them out and lists them in `bad_documents`.
        layers: layers whose attention rows are stored: "last", "all", or a list ("-1,-2", "0-5").
        scores: "default" (uniform, classifier, projected, contribution), "all", or a list; see
            `tables.SCORES`. uniform and contribution are always there.
        target: the class that scores explain: "predicted", "gold", or a label.
        dtype: "auto" (bfloat16 where the hardware has it), "float32", "bfloat16" or "float16".
        device: "auto", "cpu" or "cuda".
        tokens_per_batch: pieces per batch; by default what suits the device.
        shard_size: documents per shard, the unit of work and of resume.
        options: how words are tested.
        progress: called as documents are done.
        clock: counts where time goes.

    Raises:
        ClsightError: with a sentence that says what is wrong, where, and how to mend it.
    """
    memory.bound()
    from clsight.clock import Clock

    options, clock = options or Options(), clock or Clock()
    folder, dataset = Path(output), Dataset(
        data, text, label, id, split, text_pair, group_by)
    _refuse_bad_names(models)
    _refuse_foreign_folder(folder)
    inspected, chosen = _inspected(models, layers, scores, dataset)
    _refuse_unknown_target(target, inspected)
    plan = _planned(folder, Plan(
        dataset=_dataset_plan(dataset, on_bad_row), models=inspected, dtype=_dtype(dtype, device),
        scores=chosen, target=target, shard_size=shard_size,
    ))
    with _log_file(folder / "log" / "run.log"):
        with clock.stage("documents"):
            plan = _documents(folder, plan, dataset, progress)
        _complete(folder, plan, device, tokens_per_batch, options, progress, clock)
    return Run(folder, plan)


def _complete(
    folder: Path, plan: Plan, device: str, tokens_per_batch: int | None, options: Options,
    progress: Progress, clock: "Clock",
) -> None:
    """Do what is missing after the documents."""
    pending = pending_shards(folder, plan)
    if not any(pending.values()) and _is_built(folder, plan, options):
        log.info("nothing to do: %s is complete", folder)
        return
    if any(pending.values()):
        _extract_and_score(folder, plan, pending, device, tokens_per_batch, progress, clock)
        memory.release()
    with clock.stage("statistics"):
        _build(folder, plan, options, progress)
    log.info("%s is complete", folder)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Append the package's log to a file of the run."""
    path.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    except Exception as error:
        log.error("stopped: %s", error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def status(run: Run) -> list[str]:
    """How far a run is, as lines for the screen."""
    plan, folder = run.plan, run.folder
    lines = [f"{folder}  fingerprint {plan.fingerprint[:12]}  {plan.dtype}"]
    if plan.n_rows is None:
        return [*lines, "documents: not complete; run the same command to go on"]
    bad = bad_documents(folder / "documents").num_rows
    lines.append(f"documents: {plan.n_rows:,} rows in {plan.n_shards} shards, {bad:,} left out")
    for model in plan.models:
        stages = [f"{stage} {len(shards.done(folder / model / stage))}/{plan.n_shards}"
                  for stage in ("attention", "scores")]
        lines.append(f"{model}: {', '.join(stages)} shards")
    from clsight.database import FILE

    built = (folder / FILE).exists() and not any(pending_shards(folder, plan).values())
    lines.append("complete" if built else "not complete; run the same command to go on")
    return lines


def pending_shards(folder: Path, plan: Plan) -> dict[str, list[str]]:
    """Model -> shards that are not scored yet."""
    done = {
        model: set.intersection(*(shards.done(folder / model / made) for made in shards.SCORED))
        for model in plan.models
    }
    return {model: [name for name in plan.shard_names() if name not in done[model]]
            for model in plan.models}


def _planned(folder: Path, plan: Plan) -> Plan:
    """The plan, written into its folder; refuses a folder that was made by another one."""
    if (folder / "plan.json").exists():
        old = plans.load(folder)
        # Before the documents are complete nothing depends on the old plan yet.
        if old.n_rows is not None:
            plans.refuse_other_plan(old, plan, folder)
            plan = dataclasses.replace(plan, n_rows=old.n_rows)
    folder.mkdir(parents=True, exist_ok=True)
    plan.save(folder)
    return plan


def _dataset_plan(dataset: Dataset, on_bad_row: str) -> DatasetPlan:
    return DatasetPlan(
        path=dataset.path, text=dataset.text, text_pair=dataset.text_pair, label=dataset.label,
        id=dataset.id, split=dataset.split, group_by=dataset.group_by, id_type=str(dataset.id_type),
        label_type=str(dataset.label_type), sha256=dataset.sha256, on_bad_row=on_bad_row,
    )


def _inspected(
    models: Mapping[str, str], layers: str, scores: str, dataset: Dataset
) -> tuple[dict[str, ModelPlan], tuple[str, ...]]:
    """Each model's plan, and the scores that all of them get."""
    from clsight.models import inspect, unavailable_scores

    seen = dataset.labels()
    inspected = {name: inspect(name, path, layers, seen) for name, path in models.items()}
    unavailable = {name: unavailable_scores(path) for name, path in models.items()}
    depths = {name: model.layers[-1] + 1 for name, model in inspected.items()}
    chosen = plans.chosen_scores(scores, unavailable, depths)
    # The rows of uniform_N are those of layer N.
    named = [tables.score_layer(s) for s in chosen if tables.base(s) in tables.FROM_ROWS]
    rows = {layer for layer in named if layer is not None}
    return {
        name: dataclasses.replace(model, layers=tuple(sorted({*model.layers, *rows})))
        for name, model in inspected.items()
    }, chosen


def _refuse_unknown_target(target: str, models: dict[str, ModelPlan]) -> None:
    for name, model in models.items():
        labels = [str(label) for label in model.labels]
        if target not in ("predicted", "gold", *labels):
            raise UsageError(f"--target {target}: {name} knows the labels {listed(labels)}; "
                             "write predicted, gold, or one of them")


def _dtype(dtype: str, device: str) -> str:
    from clsight.extractor import best_dtype, devices

    kind, _, _ = devices(device)[0].partition(":")
    return best_dtype(kind) if dtype == "auto" else dtype


def _documents(folder: Path, plan: Plan, dataset: Dataset, progress: Progress) -> Plan:
    """Write the document shards, unless they are complete; the plan then knows their number."""
    if plan.n_rows is None:
        shutil.rmtree(folder / "documents", ignore_errors=True)
        labels = {name: list(model.labels) for name, model in plan.models.items()}
        n_rows = write_documents(
            dataset, labels, folder / "documents", plan.shard_size,
            lambda n: progress("documents", n, 0),
        )
        if plan.dataset.on_bad_row == "error":
            refuse_bad_documents(folder / "documents")
        plan = dataclasses.replace(plan, n_rows=n_rows)
        plan.save(folder)
    if bad := bad_documents(folder / "documents").num_rows:
        log.warning("%d of %d documents cannot be used and are left out; see bad_documents",
                    bad, plan.n_rows)
    return plan


def _extract_and_score(
    folder: Path, plan: Plan, pending: dict[str, list[str]], device: str,
    tokens_per_batch: int | None, progress: Progress, clock: "Clock",
) -> None:
    """Extract the shards that are missing, and score each as soon as it is committed."""
    from clsight.extract import extract_on
    from clsight.extractor import devices
    from clsight.scores import score_shard

    jobs = [(model, name) for model, names in pending.items() for name in names]
    extracted = {(m, name) for m in pending for name in shards.done(folder / m / "attention")}
    missing = [job for job in jobs if job not in extracted]
    chosen = devices(device)
    log.info("%d shards to extract in %s on %s", len(missing), plan.dtype, ", ".join(chosen))
    n_rows = plan.n_rows or 0
    n_documents = n_rows - bad_documents(folder / "documents").num_rows
    ahead = {model: max(0, n_documents - min(n_rows, len(names) * plan.shard_size))
             for model, names in pending.items()}

    def batch_done(model: str, n: int) -> None:
        progress(model, n + ahead.pop(model, 0), n_documents)

    def score(model: str, name: str) -> None:
        with clock.stage("score"):
            score_shard(folder, plan, model, name)

    with ThreadPoolExecutor(1) as scorer:
        committed = itertools.chain(
            (job for job in jobs if job in extracted),
            extract_on(chosen, folder, plan, missing, tokens_per_batch, batch_done, clock),
        )
        for scored in [scorer.submit(score, *job) for job in committed]:
            scored.result()


def _is_built(folder: Path, plan: Plan, options: Options) -> bool:
    from clsight import build

    return build.is_built(folder, plan, options)


def _build(folder: Path, plan: Plan, options: Options, progress: Progress) -> None:
    from clsight import build, database

    build.build(folder, plan, options, lambda n, total: progress("statistics", n, total))
    with database.connect(folder) as connection:
        for check, count in database.failed_checks(connection).items():
            log.warning("check %s: %d rows; see them with: clsight query %s %s",
                        check, count, folder, check)


def _refuse_bad_names(models: Mapping[str, str]) -> None:
    if not models:
        raise UsageError("name at least one model: --model NAME=PATH")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in _RESERVED:
            raise UsageError(f"{name!r} cannot be a model's name: use letters, digits, '_', '-', "
                             f"'.', and none of {', '.join(sorted(_RESERVED))}")


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give an output folder")
    if folder.is_dir() and not (folder / "plan.json").is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not a clsight run and not empty; give another output folder")
