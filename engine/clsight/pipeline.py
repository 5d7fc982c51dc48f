"""A run from dataset to tables: documents, then per model attention and scores, then statistics.

Every stage commits shards under their final names and skips those that are there, so that the same
call resumes a run.
"""

import dataclasses
import errno
import glob
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clsight import __version__, events, executors, lease, lock, memory, shards, store, tables
from clsight import plan as plans
from clsight.dataset import Dataset, bad_documents, refuse_bad_documents, write_documents
from clsight.errors import ClsightError, UsageError, listed
from clsight.events import event
from clsight.parts import Part
from clsight.plan import DatasetPlan, ModelPlan, Plan
from clsight.run_folder import Run
from clsight.statistics import Options

if TYPE_CHECKING:
    from clsight.clock import Clock
    from clsight.executors.jobs import Executor

Progress = Callable[[str, int, int], None]
"""progress(stage, documents done since the last call, documents in all)"""


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
    streaming: bool = False,
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
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    part: Part | None = None,
    progress: Progress = lambda *_: None,
    clock: "Clock | None" = None,
) -> Run:
    """Extract, score and test a dataset with several classifiers; resumes where it was stopped.

    Args:
        data: .parquet, .csv, .tsv, .jsonl or .ndjson files (with .gz, unless Parquet): one, a
            pattern, or a folder, whose folders NAME=VALUE are columns; here or as a URL; read in
            the order of their names. Or a folder written by `datasets.save_to_disk`, or a
            dataset's name on the Hugging Face Hub.
        text: column of the texts.
        label: column of the gold labels: class numbers from 0, or the models' label names.
        models: name in the run -> checkpoint folder, or name on the Hugging Face Hub.
        output: the run folder, a path or a URL; made if missing.
        id: column of document ids; by default the row, from 0.
        text_pair: column of the second texts, for classifiers of pairs.
        split: which split of a Hugging Face dataset.
        streaming: read one from the Hub row by row, without storing it here.
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
        executor: where shards are extracted, scored and summed, and words tested: "local" (this
            machine: one process for each card, or `workers` of them) or "ray" (a cluster, whose
            nodes all see the dataset's models and the run folder).
        workers: how many; by default one for each card, and without one a single one here, and on
            a cluster as many as have room.
        ray_address: of the cluster; by default that of RAY_ADDRESS, or one of this machine alone.
        part: only these shards, up to their scores; other processes have the others, and `merge`
            makes the tables. Whichever comes first reads the dataset.
        progress: called as documents are done.
        clock: counts where time goes.

    Raises:
        ClsightError: with a sentence that says what is wrong, where, and how to mend it.
    """
    memory.bound()
    from clsight.clock import Clock

    options, clock = options or Options(), clock or Clock()
    folder, dataset = store.folder(output), Dataset(
        data, text, label, id, split, text_pair, group_by, streaming)
    plans.refuse_bad_names(models)
    _refuse_foreign_folder(folder)
    with events.kept() as noticed:
        inspected, chosen = _inspected(models, layers, scores, dataset)
    _refuse_unknown_target(target, inspected)
    progress = _observed(folder, progress)
    with executors.opened(executor, device, workers, ray_address) as where:
        plan = Plan(
            dataset=_dataset_plan(dataset, on_bad_row), models=inspected,
            dtype=where.best_dtype() if dtype == "auto" else dtype,
            scores=chosen, piece_scores=tables.piece_scores(chosen), target=target,
            shard_size=shard_size, options=dataclasses.asdict(options),
        )
        with _at_work(folder, noticed, part):
            if part is None:
                shards.sweep(folder)
                plan = _begun(folder, plan, dataset)
                with clock.stage("documents"):
                    plan = _documents(folder, plan, dataset, progress)
                _complete(folder, plan, where, tokens_per_batch, options, progress, clock)
            else:
                with lock.turn(folder), clock.stage("documents"):
                    plan = _begun_for_parts(folder, plan, dataset)
                    plan = _documents(folder, plan, dataset, progress)
                pending = {model: [name for name in part.own(plan.shard_names()) if name in names]
                           for model, names in pending_shards(folder, plan).items()}
                _extract_and_score(folder, plan, pending, where, tokens_per_batch, progress, clock)
                event("part complete", f"{folder}: part {part} is complete; once all are: clsight "
                      f"merge {folder}", part=str(part))
    return Run(folder, plan)


def merge(
    folder: Path, *, executor: str = "local", workers: int | None = None,
    ray_address: str | None = None, progress: Progress = lambda *_: None,
    clock: "Clock | None" = None,
) -> Run:
    """Make the tables of a run whose shards were extracted and scored in parts.

    Args:
        folder: the run folder.
        executor: where sums and tests are made; see `run`.
        workers: how many.
        ray_address: of the cluster.
        progress: called as documents are done.
        clock: counts where time goes.

    Raises:
        ClsightError: shards are missing; names them.
    """
    from clsight.clock import Clock

    plan, clock = plans.load(folder), clock or Clock()
    progress = _observed(folder, progress)
    with executors.opened(executor, "cpu", workers, ray_address) as where, _at_work(folder, []):
        shards.sweep(folder)
        _say_started(plan, folder)
        _refuse_missing(folder, plan)
        _complete(folder, plan, where, None, Options(**plan.options), progress, clock)
    return Run(folder, plan)


def _refuse_missing(folder: Path, plan: Plan) -> None:
    if plan.n_rows is None:
        raise ClsightError(f"{folder}: the documents are not complete; run its parts first")
    lacking = [f"{model} lacks {len(names)} of {plan.n_shards} shards ({listed(names, 3)})"
               for model, names in pending_shards(folder, plan).items() if names]
    if lacking:
        raise ClsightError(f"{folder} cannot be merged yet: {'; '.join(lacking)}; run the parts "
                           "that have them: --shards I/N has those whose number leaves I when "
                           "divided by N")


def _complete(
    folder: Path, plan: Plan, executor: "Executor", tokens_per_batch: int | None,
    options: Options, progress: Progress, clock: "Clock",
) -> None:
    """Do what is missing after the documents."""
    pending = pending_shards(folder, plan)
    if not any(pending.values()) and _is_built(folder, plan, options):
        event("complete", f"nothing to do: {folder} is complete")
        return
    # Its relations read the shards that change now: no database is better than a mixed one.
    shards.remove([folder / tables.DATABASE])
    if any(pending.values()):
        _extract_and_score(folder, plan, pending, executor, tokens_per_batch, progress, clock)
        memory.release()
        shards.sweep(folder)  # of workers that were killed
    _make_tables(folder, plan, executor, options, progress, clock)


def _make_tables(
    folder: Path, plan: Plan, executor: "Executor", options: Options, progress: Progress,
    clock: "Clock",
) -> None:
    _write_head_weights(folder, plan)
    with clock.stage("statistics"):
        _build(folder, plan, executor, options, progress)
    event("complete", f"{folder} is complete")


def _observed(folder: Path, progress: Progress) -> Progress:
    """The same, which also leaves signs of life, and ends where the run is another's by now."""
    heartbeat = events.Heartbeat()

    def observed(stage: str, documents: int, total: int) -> None:
        lease.refuse_lost(folder)
        heartbeat(stage, documents, total)
        progress(stage, documents, total)

    return observed


@contextmanager
def _at_work(
    folder: Path, noticed: list[logging.LogRecord], part: Part | None = None
) -> Iterator[None]:
    """Hold a run's lock, and log what happens; failures are named in the log and outside of it."""
    with _failures_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.held(folder) if part is None else lock.part_held(folder, part)
        logged = events.logged(folder, noticed, None if part is None else str(part))
        with held, logged, _failures_named(folder):
            yield


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """What the machine lacks is a sentence with what to do."""
    kept = "what is complete is kept"
    try:
        yield
    except MemoryError as error:
        raise ClsightError(f"{folder}: there is not enough memory ({error}); {kept}: free some, "
                           "and the same command goes on") from error
    except OSError as error:
        # NumPy says how much it wrote, and no number.
        if error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ClsightError(f"{folder}: the disk is full ({error}); {kept}: make room, and the same "
                           "command goes on") from error


def pending_shards(folder: Path, plan: Plan) -> dict[str, list[str]]:
    """Model -> shards that are not extracted and scored yet."""
    done = {
        model: set.intersection(*(shards.done(folder / model / made) for made in shards.MADE))
        for model in plan.models
    }
    return {model: [name for name in plan.shard_names() if name not in done[model]]
            for model in plan.models}


def _begun(folder: Path, plan: Plan, dataset: Dataset) -> Plan:
    """The plan, written into its folder; refuses a folder that was made by another one."""
    if any(store.exists(folder / name) for name in plans.FILES):
        old = plans.load(folder)
        # Before the documents are complete nothing depends on the old plan yet.
        if old.n_rows is not None:
            plan = plans.continued(old, _read_before(plan, old, dataset), folder)
            _remove_other_scores(folder, old, plan)
    plan.save(folder)
    _say_started(plan, folder)
    return plan


def _read_before(plan: Plan, old: Plan, dataset: Dataset) -> Plan:
    """The plan with the fingerprint of a dataset that was read; read again only where it must be.

    That is where another dataset, or one whose files have other times, may have the same content.
    """
    before, now = old.dataset, plan.dataset
    sha256 = before.sha256
    if now.version is None and before.version is None and now.path == before.path:
        event("not read", f"{now.path}: whether a stream is the same as before cannot be known "
              "without reading it; taken to be", logging.WARNING, path=now.path)
    elif now.version != before.version:
        event("reading", f"reading {now.path}, which may have changed", path=now.path)
        sha256 = dataset.sha256()
    return dataclasses.replace(plan, dataset=dataclasses.replace(now, sha256=sha256))


def _say_started(plan: Plan, folder: Path) -> None:
    event("started", f"{folder}: {', '.join(plan.models)} in {plan.dtype}", logging.DEBUG,
          **lock.me(), clsight=__version__, fingerprint=plan.fingerprint, libraries=plan.libraries)


def _begun_for_parts(folder: Path, plan: Plan, dataset: Dataset) -> Plan:
    """The plan that all parts have: that of the first, which others must have been given as well.

    Raises:
        UsageError: with what is not the same.
    """
    if not any(store.exists(folder / name) for name in plans.FILES) or (
        (old := plans.load(folder)).n_rows is None
    ):
        return _begun(folder, plan, dataset)
    new = plans.continued(old, _read_before(plan, old, dataset), folder)
    for what, before, now in (("models", [*old.models], [*new.models]),
                              ("scores", old.scores, new.scores),
                              ("options", old.options, new.options)):
        if before != now:
            raise UsageError(f"{folder} was begun with the {what} {before}, and now they are "
                             f"{now}: give all parts the same, or run it without --shards")
    _say_started(old, folder)
    return old


def _remove_other_scores(folder: Path, old: Plan, plan: Plan) -> None:
    """Other scores from the same attention: only scoring and what follows is made again."""
    if plan.scores == old.scores:
        return
    event("rescored", f"scores were {listed(old.scores)} and are now {listed(plan.scores)}; "
          "attention is kept")
    shards.remove([folder / tables.DATABASE,
                   *(folder / model / made for model in old.models for made in shards.SCORED)])


def _dataset_plan(dataset: Dataset, on_bad_row: str) -> DatasetPlan:
    return DatasetPlan(
        path=_absolute(dataset.path), text=dataset.text, text_pair=dataset.text_pair,
        label=dataset.label, id=dataset.id, split=dataset.split, group_by=dataset.group_by,
        id_type=str(dataset.id_type), label_type=str(dataset.label_type), on_bad_row=on_bad_row,
        streaming=dataset.streaming, version=dataset.source.version(),
    )


def _absolute(path: str) -> str:
    """A path or pattern here so that it holds from any folder; a URL or Hub name as it is."""
    is_here = "://" not in path and (Path(path).exists() or glob.has_magic(path))
    return os.path.abspath(path) if is_here else path


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
        name: dataclasses.replace(model, path=_absolute(model.path),
                                  layers=tuple(sorted({*model.layers, *rows})))
        for name, model in inspected.items()
    }, chosen


def _refuse_unknown_target(target: str, models: dict[str, ModelPlan]) -> None:
    for name, model in models.items():
        labels = [str(label) for label in model.labels]
        if target not in ("predicted", "gold", *labels):
            raise UsageError(f"--target {target}: {name} knows the labels {listed(labels)}; "
                             "write predicted, gold, or one of them")


def _documents(folder: Path, plan: Plan, dataset: Dataset, progress: Progress) -> Plan:
    """Write the document shards that are missing; the plan then knows the number of rows."""
    path = folder / "documents"
    labels = {name: list(model.labels) for name, model in plan.models.items()}

    def written(n: int) -> None:
        progress("documents", n, 0)

    if plan.n_rows is None:
        shards.remove([path])
        read = write_documents(dataset, labels, path, plan.shard_size, written)
        if plan.dataset.on_bad_row == "error":
            refuse_bad_documents(path)
        known = dataclasses.replace(plan.dataset, sha256=read.sha256)
        plan = dataclasses.replace(plan, n_rows=read.n_rows, dataset=known)
        plan.save(folder)
    elif missing := set(plan.shard_names()) - shards.done(path):
        write_documents(dataset, labels, path, plan.shard_size, written, only=missing,
                        expected=plan.dataset.sha256)
    n_bad = bad_documents(path).num_rows
    event("documents", f"{n_bad:,} of {plan.n_rows:,} documents cannot be used and are left out; "
          "see bad_documents", logging.WARNING if n_bad else logging.DEBUG, n_rows=plan.n_rows,
          n_bad=n_bad)
    return plan


def _write_head_weights(folder: Path, plan: Plan) -> None:
    """Make head weights that are lost; otherwise they are written where a model is opened."""
    from clsight.extractor import open_extractor

    for model in plan.models:
        made = shards.done(folder / model / "attention")
        if made and not store.exists(folder / model / "head_weights.parquet"):
            open_extractor(model, plan, folder, "cpu")


def _extract_and_score(
    folder: Path, plan: Plan, pending: dict[str, list[str]], executor: "Executor",
    tokens_per_batch: int | None, progress: Progress, clock: "Clock",
) -> None:
    """Extract and score the shards that are missing."""
    from clsight.executors.jobs import Job
    from clsight.extract import Worker

    _write_head_weights(folder, plan)
    jobs = [Job(model, name) for model, names in pending.items() for name in names]
    event("extraction", f"{len(jobs)} shards to extract and score in {plan.dtype} {executor}",
          n_shards=len(jobs), executor=str(executor))
    n_rows = plan.n_rows or 0
    n_documents = n_rows - bad_documents(folder / "documents").num_rows
    ahead = {model: max(0, n_documents - min(n_rows, len(names) * plan.shard_size))
             for model, names in pending.items()}

    def report(model: str, n: int) -> None:
        progress(model, n + ahead.pop(model, 0), n_documents)

    n_jobs = {model: -(-len(names) // executor.n_workers) for model, names in pending.items()}
    make = partial(Worker, store.place(folder.resolve()), plan, n_jobs, tokens_per_batch)
    for _ in executor.run(make, jobs, report, clock):
        pass


def _is_built(folder: Path, plan: Plan, options: Options) -> bool:
    from clsight import build

    return build.is_built(folder, plan, options)


def _build(
    folder: Path, plan: Plan, executor: "Executor", options: Options, progress: Progress
) -> None:
    from clsight import build, database

    build.build(folder, plan, options, lambda n, total: progress("statistics", n, total),
                executor.without_cards())
    with database.connect(folder) as connection:
        for check, count in database.failed_checks(connection).items():
            event("check", f"check {check}: {count} rows; see them with: clsight query {folder} "
                  f"{check}", logging.WARNING, check=check, rows=count)


def _refuse_foreign_folder(folder: Path) -> None:
    """Refuse what is no run; a run that was stopped at its very beginning has no plan yet."""
    plans.refuse_bad_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give an output folder")
    there = store.names(folder)
    if there.intersection(plans.FILES):
        return
    ours = (lock.FILE, "log", shards.PARTIAL)
    if any(not name.startswith(ours) for name in there):
        raise UsageError(f"{folder} is not a clsight run and not empty; give another output folder")
