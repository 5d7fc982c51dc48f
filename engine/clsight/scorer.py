"""A model of a run, opened once more: any of its scores for a sample, and answers to changed texts.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from clsight import calibrate, scores, shards, tables
from clsight.attention import Wanted
from clsight.batches import Integers, gather
from clsight.errors import ClsightError
from clsight.extractor import Documents, Extractor, open_extractor
from clsight.models import unavailable_scores
from clsight.perturb import Booleans, Floats, Parts, parts_of, perturbed, stand_in
from clsight.plan import Plan
from clsight.scores import Words
from clsight.weights import from_table

COPIES = 4096
"""Changed documents that go through a model at a time."""
ROUNDS = 2
"""Times that scoring is timed; the fastest counts. The first also makes code for its shapes."""

Answers = npt.NDArray[np.float64]
"""[.., 3] probability of the class that scores explain, class predicted, margin of the former."""
Progress = Callable[[int], None]
"""progress(documents done since the last call)"""


@dataclass(frozen=True)
class Sample:
    """n documents that a model answers, and what it says of them."""

    documents: Documents
    words: Words
    """Those that the model sees: none behind its maximum."""
    parts: Parts
    target: Integers
    """[n] index of the class that scores explain."""
    answers: Answers
    """[n, 3]"""
    scores: Floats
    """[scores, words] of all scores that the model can have."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.target)


@dataclass(frozen=True)
class Scorer:
    """A model of a run, and the scores that it can have; use `open_scorer`."""

    extractor: Extractor
    names: tuple[str, ...]
    head_weights: npt.NDArray[np.float64]
    """See `weights.head_weights`."""

    def sample(self, path: Path, progress: Progress) -> Sample:
        """The documents of a shard, as far as the model answers them.

        Raises:
            ClsightError: it answers none.
        """
        documents, shard = self.extractor.read(path), shards.read(path, ["start", "end"])
        offsets, start = scores.lists(shard["start"])
        words = Words(offsets, start, scores.lists(shard["end"])[1])
        words = _some_words(words, parts_of(documents.pieces, words).word)
        table = self.table(self.names, documents, progress)
        answered = table["problem"].is_null().to_numpy()
        kept = np.flatnonzero(answered & (np.diff(words.offsets) > 0))
        if not len(kept):
            raise ClsightError(f"{self.extractor.name} has no answer for any of the "
                               f"{len(table):,} documents drawn; draw more with --sample")
        table, documents = table.take(pa.array(kept)).combine_chunks(), documents.only(kept)
        words, target = _of_documents(words, kept), self._targets(table)
        return Sample(
            dataclasses.replace(documents, target=target), words,
            parts_of(documents.pieces, words), target, self._answers(table),
            self.word_scores(self.names, table, words),
        )

    def table(self, names: tuple[str, ...], documents: Documents, progress: Progress) -> pa.Table:
        """The attention table of documents, with what these word scores need."""
        extractor = _wanting(self.extractor, tables.piece_scores(names))
        return extractor.table(documents, extractor.attend(documents, progress))

    def word_scores(self, names: tuple[str, ...], table: pa.Table, words: Words) -> Floats:
        """[names, words] of the documents of a table."""
        return scores.word_scores(table, names, self.extractor.plan, self.head_weights, words)

    def seconds(self, names: tuple[str, ...], sample: Sample, progress: Progress) -> float:
        """How long it takes to score a sample by these scores; by none, its forward pass."""
        taken = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            table = self.table(names, sample.documents, progress)
            if names:
                self.word_scores(names, table, sample.words)
            taken.append(time.perf_counter() - started)
        return min(taken)

    def answers(self, documents: Documents) -> Answers:
        """[n, 3] of changed documents.

        Raises:
            ClsightError: there is none for one of them, with the reason.
        """
        with torch.no_grad():  # the general path would make a graph for each batch
            table = self.table((), documents, lambda _: None)
        if table["problem"].null_count < len(table):
            reason = pc.drop_null(table["problem"])[0]
            raise ClsightError(f"{self.extractor.name} has no answer for a changed document "
                               f"({reason}); leave this model out, or draw others with --seed")
        return self._answers(table)

    def _answers(self, table: pa.Table) -> Answers:
        logits = scores.lists(table["logits"])[1].astype(np.float64).reshape(len(table), -1)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        own = np.take_along_axis(weights, self._targets(table)[:, None], 1)[:, 0]
        margin = table["target_margin"].to_numpy()
        return np.stack([own / weights.sum(1), logits.argmax(1), margin], axis=1)

    def _targets(self, table: pa.Table) -> Integers:
        known = pa.array(self.extractor.plan.labels, table.schema.field("target").type)
        targets: Integers = pc.index_in(table["target"], known).to_numpy().astype(np.int64)
        return targets


def open_scorer(run: Path, plan: Plan, name: str, device: str) -> Scorer:
    """Open a model for all scores that it can have, whichever its run has.

    Raises:
        ClsightError: it cannot be opened, or does not fit.
    """
    model = plan.models[name]
    lacking = unavailable_scores(model.path)
    names = tuple(score for score in tables.SCORES if score not in lacking)
    last = dataclasses.replace(model, layers=model.layers[-1:])
    wide = dataclasses.replace(plan, models={name: last}, piece_scores=tables.piece_scores(names))
    extractor = open_extractor(name, wide, run, device)
    return Scorer(extractor, names, from_table(shards.read(run / name / "head_weights.parquet")))


def _wanting(extractor: Extractor, piece_scores: tuple[str, ...]) -> Extractor:
    """The same for other scores, and so what it falls back on in float32."""
    wanted, exact = Wanted(extractor.wanted.layers, piece_scores), extractor.exact
    at_once = calibrate.default(extractor.classifier.device.type, wanted.graph_from is not None)
    return dataclasses.replace(
        extractor, wanted=wanted, tokens_per_batch=at_once,
        exact=None if exact is None else lambda: _wanting(exact(), piece_scores),
    )


def _some_words(words: Words, chosen: Integers) -> Words:
    """Some of the words, by index."""
    kept = np.unique(chosen)
    offsets = np.searchsorted(kept, words.offsets).astype(np.int32)
    return Words(offsets, words.start[kept], words.end[kept])


def _of_documents(words: Words, documents: Integers) -> Words:
    """The words of some documents, each of which has any."""
    index, _ = gather(words.offsets.astype(np.int64), documents)
    n_words = np.diff(words.offsets)[documents]
    offsets = np.concatenate([[0], np.cumsum(n_words)]).astype(np.int32)
    return Words(offsets, words.start[index], words.end[index])


class Changed:
    """What a model says of a sample when words are changed; it is asked once for each text.

    Scores often agree on the highest words, so that many changed documents are the same.
    """

    def __init__(self, scorer: Scorer, sample: Sample, remove: bool) -> None:
        """Nothing was asked yet; words are removed, or masked."""
        self.scorer, self.sample, self.remove = scorer, sample, remove
        self.mask = stand_in(scorer.extractor.classifier)
        # A set of pieces is known by the exclusive or of their random numbers (Zobrist hashing):
        # that two of a million sets have the same has a chance of one in 37 million.
        numbers = np.random.default_rng(0).integers(
            0, np.iinfo(np.uint64).max, len(sample) + len(sample.documents.pieces.ids), np.uint64)
        self._of_document, self._of_piece = np.split(numbers, [len(sample)])
        self._keys = np.empty(0, np.uint64)
        self._answers = np.empty((0, 3))

    def __call__(self, words: Booleans) -> Answers:
        """[sets, n, 3] answers for sets of changed words [sets, words]."""
        hit = self.sample.parts.hit(words, len(self._of_piece))
        keys = np.stack([self._keys_of(own) for own in hit])
        distinct, first = np.unique(keys, return_index=True)
        new = ~np.isin(distinct, self._keys)
        sets, documents = np.divmod(first[new], len(self.sample))
        parts = np.split(np.arange(len(sets)), np.arange(COPIES, len(sets), COPIES))
        asked = [self._ask(hit, sets[part], documents[part]) for part in parts if len(part)]
        known = np.concatenate([self._keys, distinct[new]])
        order = np.argsort(known)
        self._keys, self._answers = known[order], np.concatenate([self._answers, *asked])[order]
        return self._answers[np.searchsorted(self._keys, keys)]

    def _keys_of(self, hit: Booleans) -> npt.NDArray[np.uint64]:
        """[n] keys of the documents in which the pieces [T] are changed that are hit."""
        numbers = np.where(hit, self._of_piece, np.uint64(0))
        begin = self.sample.documents.pieces.offsets[:-1]
        keys: npt.NDArray[np.uint64] = np.bitwise_xor.reduceat(numbers, begin) ^ self._of_document
        return keys

    def _ask(self, hit: Booleans, sets: Integers, documents: Integers) -> Answers:
        """[m, 3] answers for copies of documents, each with a set of pieces changed."""
        own = self.sample.documents
        index, _ = gather(own.pieces.offsets, documents)
        of_copies = hit[np.repeat(sets, own.pieces.lengths[documents]), index]
        pieces = perturbed(own.pieces, documents, of_copies, self.mask, self.remove)
        rows = own.rows.take(pa.array(documents))
        return self.scorer.answers(Documents(rows, pieces, self.sample.target[documents]))
