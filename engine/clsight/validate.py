"""How faithful the scores of a run are to its models, measured on the run's own documents.

A seeded sample of documents goes through each model as in the run. Every score that the model can
have, and each of the `baselines`, then says which words matter most; these are masked, or taken
out, and the changed documents go through the model again. `faithfulness` has the measures.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clsight import build, events, faithfulness, lock, memory, shards
from clsight import plan as plans
from clsight.baselines import BASELINES, captum, open_baselines
from clsight.document_view import SIGNED
from clsight.errors import UsageError
from clsight.events import event
from clsight.extractor import devices
from clsight.faithfulness import FRACTIONS, PERTURBATIONS, TENTHS, Measured
from clsight.models import refuse_changed
from clsight.perturb import Floats, ranks, top
from clsight.plan import Plan
from clsight.run_folder import refuse_unknown
from clsight.scorer import ROUNDS, Changed, Sample, Scorer, open_scorer
from clsight.statistics import Options

TOPS = tuple(sorted({*FRACTIONS, *TENTHS}))
SIGNED_BASELINES = BASELINES[1:]

Progress = Callable[[str, int, int], None]
"""progress(stage, documents done since the last call, documents in all)"""


def validate(
    run: Path, *, sample: int = 500, seed: int = 0, models: tuple[str, ...] = (), steps: int = 50,
    device: str = "auto", progress: Progress = lambda *_: None,
) -> None:
    """Measure how faithful each score is; fills the relation `faithfulness`, model by model.

    Args:
        run: the folder of a complete run.
        sample: documents that are drawn.
        seed: of the sample, of random scores and of resamples.
        models: some of the run's models; by default all.
        steps: of integrated gradients.
        device: "auto", "cpu" or "cuda".
        progress: called as documents are done.

    Raises:
        UsageError: the run is not complete, has no such model, or Captum is not installed.
        ClsightError: a model cannot be run.
    """
    plan = plans.load(run)
    refuse_unknown("model", models, plan.models, run)
    captum()
    memory.bound()
    with lock.held(run), events.logged(run), _drawn(run, plan, sample, seed) as path:
        for name in models or plan.models:
            refuse_changed(plan.models[name])
            scorer = open_scorer(run, plan, name, devices(device)[0])
            measured = measure(scorer, path, seed, steps, progress)
            faithfulness.write(run, plan, name, faithfulness.table(measured, seed, steps))
            build.renew_faithfulness(run, plan)
            event("validated", f"{name}: its scores are validated", model=name, seed=seed,
                  n_documents=measured.effects.shape[-1])


@contextmanager
def _drawn(run: Path, plan: Plan, n: int, seed: int) -> Iterator[Path]:
    """A shard of the documents that are drawn, for as long as it is needed.

    Raises:
        UsageError: the run is not complete.
    """
    if not build.is_built(run, plan, Options(**plan.options)):
        raise UsageError(f"{run} is not complete, or was made by another version: let the same "
                         "clsight run finish first")
    shards.sweep(run)
    with TemporaryDirectory(dir=run, prefix=f"{shards.PARTIAL}sample-") as folder:
        path = Path(folder) / shards.name(0)
        shards.write(draw(run, plan, n, seed), path)
        yield path


def draw(run: Path, plan: Plan, n: int, seed: int) -> pa.Table:
    """n usable documents of a run (or all), whatever its shards; in order of rows.

    Raises:
        UsageError: there are none.
    """
    files = [run / "documents" / name for name in plan.shard_names()]
    usable = [_usable(path, ["row"])["row"].to_numpy() for path in files]
    rows = np.concatenate([np.empty(0, np.int64), *usable])
    if not len(rows):
        raise UsageError(f"{run} has no usable documents; see bad_documents")
    chosen = np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False)
    holding = [path for path, own in zip(files, usable, strict=True) if np.isin(own, chosen).any()]
    of_shards = (_usable(path) for path in holding)
    drawn = [table.filter(pc.is_in(table["row"], pa.array(chosen))) for table in of_shards]
    return pa.concat_tables(drawn).combine_chunks()


def _usable(path: Path, columns: list[str] | None = None) -> pa.Table:
    table = shards.read(path, columns and [*columns, "reason"])
    return table.filter(table["reason"].is_null())


def measure(scorer: Scorer, path: Path, seed: int, steps: int, progress: Progress) -> Measured:
    """What one model does when words are changed that scores and baselines name.

    Args:
        scorer: the model.
        path: a shard of documents.
        seed: of random scores.
        steps: of integrated gradients.
        progress: called as documents are done.
    """
    name, names = scorer.extractor.name, scorer.names
    total = (1 + ROUNDS * (1 + len(names))) * pq.read_metadata(path).num_rows
    shown = partial(_shown, progress, f"{name} scores", total)
    sample = scorer.sample(path, shown)
    forward, *seconds = (scorer.seconds(some, sample, shown)
                         for some in [(), *((one,) for one in names)])
    shown = partial(_shown, progress, f"{name} baselines", (len(BASELINES) - 1) * len(sample))
    others, others_seconds = _baselines(scorer, sample, seed, steps, shown)
    words = np.concatenate([sample.scores, others])
    total = len(words) * len(PERTURBATIONS) * (len(TOPS) + len(FRACTIONS)) * len(sample)
    shown = partial(_shown, progress, f"{name} changed", total)
    changed = [Changed(scorer, sample, remove) for remove in (False, True)]
    effects = np.array([[_effects(own, sample, ask, shown) for ask in changed] for own in words])
    masked = changed[0](np.ones((1, len(sample.words.start)), np.bool_))[0, :, 2]
    return Measured(
        name, names, BASELINES, effects, _reconstructions(names, words, sample, masked),
        np.array([*seconds, *others_seconds]), forward,
    )


def _shown(progress: Progress, stage: str, total: int, done: int) -> None:
    progress(stage, done, total)


def _baselines(
    scorer: Scorer, sample: Sample, seed: int, steps: int, progress: Callable[[int], None]
) -> tuple[Floats, list[float]]:
    """Word scores [baselines, words], and the seconds that each took."""
    baselines = open_baselines(scorer.extractor.plan, str(scorer.extractor.classifier.device))
    found, seconds = [], []
    for name in BASELINES:
        started = time.perf_counter()
        found.append(baselines.word_scores(
            name, sample.documents.pieces, sample.words, sample.target, steps=steps, seed=seed,
            progress=progress))
        seconds.append(time.perf_counter() - started)
    return np.stack(found), seconds


def _effects(
    scores: Floats, sample: Sample, ask: Changed, progress: Callable[[int], None]
) -> npt.NDArray[np.float64]:
    """[measure, n] of scores [words], in the order of `faithfulness.MEASURES`."""
    rank = ranks(scores, sample.words)
    highest = np.stack([top(rank, sample.words, fraction) for fraction in TOPS])
    fractions, tenths = ([TOPS.index(f) for f in some] for some in (FRACTIONS, TENTHS))
    answers = ask(np.concatenate([highest, ~highest[fractions]]))
    progress(answers.shape[0] * answers.shape[1])
    fall = sample.answers[:, 0] - answers[:, :, 0]
    flips = answers[fractions, :, 1] != sample.answers[:, 1]
    return np.stack([part.mean(0) for part in (
        fall[fractions], fall[len(TOPS) :], fall[tenths], flips)])


def _reconstructions(
    names: tuple[str, ...], scores: Floats, sample: Sample, masked: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[scores and baselines] how well each adds up to what its words do; NaN without a sign.

    `masked` [n] are the margins with all words masked.
    """
    sums = np.add.reduceat(scores, sample.words.offsets[:-1], axis=1, dtype=np.float64)
    return np.array([
        faithfulness.reconstruction(own, sample.answers[:, 2], masked)
        if name in (*SIGNED, *SIGNED_BASELINES) else np.nan
        for name, own in zip((*names, *BASELINES), sums, strict=True)
    ])
