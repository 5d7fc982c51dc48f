"""A seeded run folder of any size, without models: what `queries.py` measures on.

Schemas, writer, shard size and database are the package's own; the numbers are drawn. Words follow
the frequencies of the real texts in ../shared/data, or Zipf's law where these are not here.
Documents have 5 to 35 words (20 on average); two models err in 15 % of them, often in the same
ones, and less confidently than they are right. One document in 10,000 is unusable. Attention rows
are short, one head and four pieces a document, for no relation reads them.

Each shard is drawn from (seed, shard): a larger run begins with the smaller one, and generating
again goes on where it was stopped.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import special

from clsight import block_tests, profiles, shards, statistics, tables, weights
from clsight import build as stage
from clsight.bootstrap import Resampled
from clsight.plan import DatasetPlan, ModelPlan, Plan
from clsight.words import segment

TEXTS = Path(__file__).parents[2] / "shared" / "data" / "rotten_tomatoes" / "data.parquet"
MODELS = ("bert", "roberta")
SCORES = (*tables.FROM_ROWS, "contribution")
MEAN_WORDS, PIECES, HEADS, LAYER = 20, 4, 12, 11
SEED = 7


@dataclass(frozen=True)
class Vocabulary:
    """Forms, most frequent first."""

    form: pa.Array
    length: np.ndarray
    """In characters."""
    cumulated: np.ndarray
    """Share of a text's words up to and including this form."""


def vocabulary():
    """That of the real texts, else 20,000 forms by Zipf's law."""
    if TEXTS.exists():
        words = segment(pq.read_table(TEXTS)["text"].combine_chunks()).form.flatten()
        counted = words.value_counts()
        order = pc.sort_indices(counted.field("counts"), [("", "descending")])
        form, frequency = counted.field("values").take(order), counted.field("counts").take(order)
    else:
        form = pa.array([f"w{i}" for i in range(20_000)])
        frequency = 1 / np.arange(1, 20_001)
    cumulated = np.cumsum(np.asarray(frequency, np.float64))
    return Vocabulary(form, pc.utf8_length(form).to_numpy(), cumulated / cumulated[-1])


def generate(run, n_words, shard_size=4096):
    """Write the folder of a run of about `n_words` (model, document, word) rows; goes on."""
    run.mkdir(parents=True, exist_ok=True)
    plan = planned(int(n_words) // (len(MODELS) * MEAN_WORDS), shard_size)
    plan.save(run)
    random = np.random.default_rng(SEED)
    for model in MODELS:
        drawn = random.random((len(weights.WEIGHTINGS), 2, 2, HEADS))
        shards.write(weights.table(model, drawn / drawn.sum(-1, keepdims=True)),
                     run / model / "head_weights.parquet")
    words = vocabulary()
    # A shard's last file is its mark.
    done = shards.done(run / MODELS[-1] / shards.SCORED[-1])
    missing = [i for i, name in enumerate(plan.shard_names()) if name not in done]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda shard: write_shard(run, plan, words, shard), missing))
    return plan


def planned(n_documents, shard_size):
    dataset = DatasetPlan(
        path="generated", sha256="", text="text", text_pair=None, label="label", id=None,
        split=None, id_type="int64", label_type="int64", on_bad_row="skip",
    )
    model = ModelPlan(path="none", sha256="", model_type="bert", labels=(0, 1), n_heads=HEADS,
                      layers=(LAYER,), max_length=512)
    return Plan(dataset=dataset, models=dict.fromkeys(MODELS, model), dtype="float32",
                scores=SCORES, piece_scores=tables.piece_scores(SCORES), target="predicted",
                shard_size=shard_size, n_rows=n_documents)


def write_shard(run, plan, words, shard):
    """All files of one shard."""
    random = np.random.default_rng([SEED, shard])
    first = shard * plan.shard_size
    n = min(plan.shard_size, plan.n_rows - first)
    row = np.arange(first, first + n)
    usable = random.random(n) > 1e-4
    length = random.integers(5, 2 * MEAN_WORDS - 4, n) * usable
    offsets = np.concatenate([[0], np.cumsum(length)])
    label = random.integers(0, 2, n)
    name = shards.name(shard)
    shards.write(documents(random, words, row, usable, offsets, label), run / "documents" / name)
    clarity = random.normal(2, 1.6, n)
    for model in MODELS:
        answers = predictions(random, model, row, label, clarity, length).filter(usable)
        correct = np.equal(answers["predicted"], label[usable])
        kept = pa.array(np.concatenate([[0], np.cumsum(length[usable])]), pa.int32())
        columns = {score: pa.ListArray.from_arrays(kept, values)
                   for score, values in word_scores(random, kept.to_numpy()).items()}
        made = {
            "attention": answers.cast(tables.attention(pa.int64(), SCORES)),
            "heads": heads(random, model, correct),
            "agreement": agreement(random, model, len(correct)),
            "scores": pa.table({"model": answers["model"], "row": answers["row"], **columns})
            .cast(tables.scores(SCORES)),
        }
        for folder, table in made.items():
            shards.write(table, run / model / folder / name)


def documents(random, words, row, usable, offsets, label):
    drawn = np.searchsorted(words.cumulated, random.random(offsets[-1]))
    lists = pa.array(offsets, pa.int32())
    form = pa.ListArray.from_arrays(lists, words.form.take(pa.array(drawn)))
    after = np.cumsum(words.length[drawn] + 1)
    before = np.concatenate([[0], after])[offsets[:-1]]
    end = after - 1 - np.repeat(before, np.diff(offsets))
    return pa.table({
        "row": row, "document_id": row, "text": pc.binary_join(form, " "),
        "text_pair": pa.nulls(len(row), pa.string()), "label": label,
        "slice": pa.nulls(len(row), pa.string()),
        "reason": pc.if_else(pa.array(usable), None, "text is empty"),
        "form": form,
        "start": pa.ListArray.from_arrays(lists, (end - words.length[drawn]).astype(np.int32)),
        "end": pa.ListArray.from_arrays(lists, end.astype(np.int32)),
    }).cast(tables.documents(pa.int64(), pa.int64()))


def predictions(random, model, row, label, clarity, length):
    """Rows of `tables.attention`; margins below 0 are of the gold label, so an error."""
    signed = clarity + random.normal(0, 1, len(row))
    predicted, margin = np.where(signed > 0, label, 1 - label), np.abs(signed)
    logits = np.where(predicted[:, None] == [0, 1], margin[:, None] / 2, -margin[:, None] / 2)

    def lists(values):
        ends = np.arange(len(row) + 1) * (values.size // len(row))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values.ravel())

    place = np.tile(np.array([0, 0, 2, 0], np.int32), (len(row), 1))
    return pa.table({
        "model": pa.repeat(model, len(row)), "row": row, "predicted": predicted,
        "confidence": 1 / (1 + np.exp(-margin)), "margin": margin, "target": predicted,
        "target_margin": margin, "logits": lists(logits), "n_pieces": length + 2,
        "truncated": random.random(len(row)) < 0.01, "retried": np.zeros(len(row), np.bool_),
        "problem": pa.nulls(len(row), pa.string()),
        "start": lists(place), "end": lists(place + (place > 0)),
        "attention": lists(random.random((len(row), PIECES), np.float32) / PIECES),
        "contribution": lists(random.random((len(row), PIECES), np.float32)),
    })


def word_scores(random, offsets):
    """Score -> values of all words: positive shares that sum to 0.8, and a signed score."""
    drawn = random.standard_exponential(offsets[-1], np.float32)
    total = np.add.reduceat(drawn, offsets[:-1])
    uniform = 0.8 * drawn / np.repeat(total, np.diff(offsets))
    return {
        "uniform": uniform,
        "classifier": uniform * (0.9 + 0.2 * random.random(len(drawn), np.float32)),
        "projected": uniform * (0.9 + 0.2 * random.random(len(drawn), np.float32)),
        "contribution": 0.3 * random.standard_normal(len(drawn), np.float32),
    }


def heads(random, model, correct):
    counts = np.repeat(np.bincount(correct, minlength=2), HEADS)
    return pa.table({
        "model": pa.repeat(model, 2 * HEADS), "correct": np.repeat([False, True], HEADS),
        "layer": np.full(2 * HEADS, LAYER), "head": np.tile(np.arange(HEADS), 2),
        "n_documents": counts,
        **{name: counts * random.random(2 * HEADS)
           for name in (*profiles.PROFILE, "classifier", "projected")},
    }).cast(tables.heads())


def agreement(random, model, n):
    one, other = (index.ravel() for index in np.indices((len(SCORES), len(SCORES))))
    taken = pa.array(SCORES)
    return pa.table({
        "model": pa.repeat(model, len(one)), "score": taken.take(pa.array(one)),
        "other": taken.take(pa.array(other)),
        **{name: n * random.random(len(one)) for name in
           ("n_ranked", "rank_correlation", "n_longer", "top_shared", *profiles.MOMENTS)},
    }).cast(tables.agreement())


class SeededBootstrap:
    """Stands in for `Bootstrap`: random numbers."""

    def __init__(self, strata, seed, resamples):
        self.random = np.random.default_rng(SEED)

    def resample(self, masses):
        shape = (len(masses), *masses[0].shape)
        return Resampled(self.random.random((2, *shape)), self.random.random((*shape, 4, 2)),
                         np.broadcast_to(np.eye(len(masses)), (*shape[1:], *shape[:1] * 2)))


def seeded_p(moments, mass, units, permutations, max_skewness):
    """Stands in for `statistics.one_sided`: random numbers, a strong z for one unit in 200."""
    shape = moments.z[..., units].shape
    random = np.random.default_rng([SEED, int(mass.offsets[-1])])
    z = random.normal(0, 1, shape) + 8 * (random.random(shape[-1]) < 0.005)
    return np.stack([special.ndtr(-z), special.ndtr(z)]), np.zeros(shape[-1], dtype=bool)


def build(run, plan, tested):
    """The run's database by the package's own code, with its test of words or a seeded one."""
    with ExitStack() as stack:
        if not tested:
            stack.enter_context(mock.patch.object(block_tests, "Bootstrap", SeededBootstrap))
            stack.enter_context(mock.patch.object(statistics, "one_sided", seeded_p))
        stage.build(run, plan, statistics.Options())
