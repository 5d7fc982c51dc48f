"""A model that is ready to take the shards of a run, batch by batch, on its device."""

import dataclasses
import logging
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from clsight import attention, calibrate, general, shards, tables, trial, weights
from clsight.attention import Wanted
from clsight.batches import (
    Batch,
    Integers,
    Pieces,
    batch_of,
    gather,
    pack,
    tokenise,
    tokenise_in_worker,
    without_padding,
)
from clsight.checkpoints import local_folder
from clsight.clock import Clock
from clsight.errors import UsageError, listed
from clsight.events import event
from clsight.models import Classifier, NotEnoughMemoryError, is_out_of_memory
from clsight.plan import ModelPlan, Plan
from clsight.prepacked import Prepacked
from clsight.references import References, mask_piece, references
from clsight.results import (
    Reasons,
    Result,
    collect,
    emptied,
    leave,
    left_out,
    not_finite,
    predictions,
)

IN_FLIGHT = 2
"""Batches whose results may be on their way while the next one is begun (CUDA)."""

Progress = Callable[[int], None]


def best_device() -> str:
    """CUDA where there is a card, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def devices(device: str) -> list[str]:
    """Every card for "cuda" (for "auto" where there is one), else the CPU.

    Raises:
        UsageError: a card is asked for and there is none.
    """
    if (best_device() if device == "auto" else device) == "cpu":
        return ["cpu"]
    if not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA card here; leave the option out")
    return [f"cuda:{card}" for card in range(torch.cuda.device_count())]


def best_dtype(device: str) -> str:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


@dataclass(frozen=True)
class Documents:
    """The usable documents of a shard, and their pieces."""

    rows: pa.Array
    pieces: Pieces
    target: Integers | None
    """[n] index of the class that scores explain; None for the predicted one."""

    def only(self, chosen: Integers) -> "Documents":
        """Some of the documents."""
        pieces, target = self.pieces, self.target
        index, _ = gather(pieces.offsets, chosen)
        part = Pieces(
            pieces.ids[index], pieces.start[index], pieces.end[index],
            np.concatenate([[0], np.cumsum(pieces.lengths[chosen])]), pieces.segments[index],
            pieces.truncated[chosen],
        )
        return Documents(self.rows.take(pa.array(chosen)), part,
                         None if target is None else target[chosen])


@dataclass
class Room:
    """What memory has shown to have no room for; the copies of an extractor share it."""

    too_many: float = math.inf
    """Pieces of the smallest batch of several documents that did not fit."""


@dataclass(frozen=True)
class Extractor:
    """A model ready to extract shards of a run.

    Use `open_extractor`; `classifier` is prepared, on its device, in the plan's precision.
    """

    name: str
    plan: ModelPlan
    classifier: Classifier
    wanted: Wanted
    target: str
    pairs: bool
    half: bool
    """Round stored values to float16 precision (half-precision runs)."""
    clock: Clock
    tokens_per_batch: int | None
    """None until `calibrated`."""
    stream: torch.cuda.Stream | None
    """Where results are copied beside the next batch (CUDA)."""
    exact: Callable[[], "Extractor"] | None = None
    """The same in float32, opened when it is first asked for; None where all is in float32."""
    room: Room = field(default_factory=Room)

    def read(self, path: Path, workers: ProcessPoolExecutor | None = None) -> Documents:
        """The usable documents of a shard: their rows, and the pieces of their texts."""
        columns = ["row", "text", "text_pair", "label", "reason"]
        table = shards.read(path, columns)
        usable = table.filter(table["reason"].is_null()).combine_chunks()
        texts = usable["text"].to_pylist()
        pairs = usable["text_pair"].to_pylist() if self.pairs else None
        max_length = self.classifier.max_length
        if workers is None:
            pieces = tokenise(self.classifier.tokenizer, texts, max_length, pairs)
        else:
            folder = str(local_folder(self.plan.path))
            pieces = workers.submit(tokenise_in_worker, folder, texts, max_length, pairs).result()
        return Documents(usable["row"].combine_chunks(), pieces, self._targets(usable["label"]))

    def _targets(self, labels: pa.ChunkedArray) -> Integers | None:
        if self.target == "predicted":
            return None
        known = pa.array(self.plan.labels, labels.type)
        if self.target == "gold":
            gold: Integers = pc.index_in(labels, known).to_numpy().astype(np.int64)
            return gold
        chosen = [str(label) for label in self.plan.labels].index(self.target)
        return np.full(len(labels), chosen)

    def calibrated(self, documents: Documents, n_shards: int) -> "Extractor":
        """With a number of pieces per batch; see `calibrate`."""
        if self.tokens_per_batch is not None:
            return self

        def run(batch: Batch) -> None:
            self._fitting(batch, documents)
            if self.stream is not None:
                torch.cuda.synchronize()

        lengths, graph = documents.pieces.lengths, self.wanted.graph_from is not None
        with self.clock.stage("calibrate"):
            chosen = calibrate.budget(lengths, n_shards * int(lengths.sum()),
                                      self.classifier.device.type, graph, run)
        return dataclasses.replace(self, tokens_per_batch=chosen)

    def attend(self, documents: Documents, progress: Progress) -> list[Result]:
        """Run all documents through the model, longest first."""
        assert self.tokens_per_batch is not None
        results: list[Result] = []
        for batch in pack(documents.pieces.lengths, self.tokens_per_batch):
            if len(results) > IN_FLIGHT and (ahead := results[-IN_FLIGHT].arrived) is not None:
                with self.clock.stage("wait"):
                    ahead.synchronize()
            results += self._fitting(batch, documents)
            progress(len(batch.documents))
        return results

    def _fitting(self, batch: Batch, documents: Documents) -> list[Result]:
        """Run a batch; where memory runs out, and where it is known to do so, its halves."""
        n, n_pieces = len(batch.documents), batch.n_pieces
        if n == 1 or n_pieces < self.room.too_many:
            try:
                return [self.run(batch, documents)]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._ran_out(n, n_pieces)
        if n == 1:
            reason = f"not enough memory on {self.classifier.device} for its {n_pieces} pieces"
            return [Result(batch, {}, None, reason)]
        return [
            result for half in (batch.documents[: n // 2], batch.documents[n // 2 :])
            for result in self._fitting(batch_of(half, documents.pieces.lengths), documents)
        ]

    def _ran_out(self, n: int, n_pieces: int) -> None:
        """Remember what a batch of several documents shows; one alone says nothing of others."""
        if self.stream is not None:
            torch.cuda.empty_cache()
        if n > 1:
            self.room.too_many = n_pieces
            event("split", f"{self.name}: batches of {n_pieces:,} pieces or more are split from "
                  f"here on, for want of memory on {self.classifier.device}", model=self.name,
                  n_pieces=n_pieces)

    def run(self, batch: Batch, documents: Documents) -> Result:
        """Run one batch, and send what it gives to the host."""
        pieces, target = documents.pieces, documents.target
        forward = attention.forward if self.classifier.family.fast else general.forward
        # A thread's own card is the first one, where pinned memory would open a context.
        card = nullcontext() if self.stream is None else torch.cuda.device(self.stream.device)
        with trial.ALONE, card, self.clock.stage("forward"):
            index, position = gather(pieces.offsets, batch.documents)
            if self.classifier.family.positions_after_padding:
                padding = self.classifier.model.config.pad_token_id
                position = without_padding(pieces.ids[index], position, padding)
            attended = forward(
                self.classifier,
                self._on_device(pieces.ids[index]),
                self._on_device(position),
                batch.groups,
                self.wanted,
                self._on_device(pieces.segments[index]),
                None if target is None else self._on_device(target[batch.documents]),
                self.clock,
                self._references(pieces, index, batch) if self.wanted.references else None,
            )
            return leave(attended, batch, self.half, self.stream)

    def _references(self, pieces: Pieces, index: Integers, batch: Batch) -> References:
        """The batch's references, on the device."""
        mask = mask_piece(self.classifier.tokenizer)
        assert mask is not None
        special = pieces.start[index] == pieces.end[index]
        given = references(pieces.ids[index], pieces.segments[index], special, batch.groups, mask)
        return given.to(self.classifier.device)

    def _on_device(self, values: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        host = torch.from_numpy(values.astype(np.int64))
        if self.stream is None:
            return host
        # From pinned memory, for a copy from any other waits until the card is idle.
        return host.pin_memory().to(self.classifier.device, non_blocking=True)

    def table(self, documents: Documents, results: list[Result]) -> pa.Table:
        """The attention table of documents, in their order; see `tables.attention`.

        In half precision, documents with values that are not finite are run again in float32.
        """
        table = self._table(documents, results)
        failed = table.select(["row", "problem"]).filter(table["problem"].is_valid())
        for reason in pc.unique(failed["problem"]).to_pylist():
            rows = failed.filter(pc.equal(failed["problem"], reason))["row"].to_pylist()
            event("failed", f"{self.name} has no answer for {_spoken(rows)}: {reason}",
                  logging.WARNING, model=self.name, rows=rows, reason=reason)
        return table

    def _table(self, documents: Documents, results: list[Result]) -> pa.Table:
        lists = collect(results, ("logits", "attention", *self.wanted.scores))
        wrong = not_finite(lists)
        problem = np.where(wrong.astype(bool), wrong, left_out(results, len(wrong)))
        columns = self._columns(documents, lists, problem)
        schema = tables.attention(columns["predicted"].type, self.wanted.scores)
        table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        again = np.flatnonzero(wrong)
        return self._retried(table, documents, again) if self.exact and len(again) else table

    def _columns(
        self, documents: Documents, lists: dict[str, pa.ListArray], problem: Reasons
    ) -> dict[str, pa.Array]:
        """Columns by name; what the model says is null, or empty, where there is a problem."""
        rows, pieces, failed = documents.rows, documents.pieces, problem.astype(bool)
        offsets = pa.array(pieces.offsets, pa.int32())
        lists = emptied(lists | {
            "start": pa.ListArray.from_arrays(offsets, pieces.start),
            "end": pa.ListArray.from_arrays(offsets, pieces.end),
        }, np.flatnonzero(failed))
        logits = np.zeros((len(rows), len(self.plan.labels)))
        logits[~failed] = lists["logits"].flatten().to_numpy().reshape(-1, logits.shape[1])
        return {
            "model": pa.repeat(self.name, len(rows)),
            "row": rows,
            **predictions(logits, self.plan.labels, documents.target, failed),
            "n_pieces": pa.array(pieces.lengths, pa.int32()),
            "truncated": pa.array(pieces.truncated),
            "retried": pa.repeat(False, len(rows)),
            "problem": pa.array(problem, pa.string()),
            **lists,
        }

    def _retried(self, table: pa.Table, documents: Documents, again: Integers) -> pa.Table:
        """The table with some documents as they are in float32."""
        part, before = documents.only(again), table["problem"].take(pa.array(again)).to_pylist()
        rows = part.rows.to_pylist()
        event("retried", f"{self.name}: {len(rows)} document{'s are' if len(rows) > 1 else ' is'} "
              f"computed again in float32: {_spoken(rows)}", model=self.name, rows=rows)
        assert self.exact is not None
        try:
            exact = self.exact()
        except NotEnoughMemoryError as error:
            answers, after = table.take(pa.array(again)), [str(error)] * len(rows)
        else:
            answers = exact._table(part, exact.attend(part, lambda _: None))
            after = answers["problem"].to_pylist()
        problem = [two and (f"{one}, in float32 neither" if one == two else
                            f"{one}; in float32: {two}")
                   for one, two in zip(before, after, strict=True)]
        answers = _with(answers, "problem", pa.array(problem, pa.string()))
        answers = _with(answers, "retried", answers["problem"].is_null())
        order = np.arange(len(table))
        order[again] = len(table) + np.arange(len(again))
        return pa.concat_tables([table, answers]).take(pa.array(order)).combine_chunks()


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with other values in a column."""
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def _spoken(rows: list[int]) -> str:
    """The rows, as in "row 17" and "rows 17 and 20"."""
    return f"row{'s' if len(rows) > 1 else ''} {listed(rows)}"


def open_extractor(
    name: str, plan: Plan, run: Path, device: str, tokens_per_batch: int | None = None,
    clock: Clock | None = None,
) -> Extractor:
    """Load a model of a plan onto a device, and write its head weights into the run."""
    clock = clock or Clock()
    with clock.stage("load"):
        extractor = _opened(name, plan, getattr(torch, plan.dtype), device, tokens_per_batch, clock)
        shards.write(weights.table(name, weights.head_weights(extractor.classifier)),
                     run / name / "head_weights.parquet")
    if clock.detailed:
        count_operations(extractor.classifier, clock)
    return extractor


def _opened(
    name: str, plan: Plan, dtype: torch.dtype, device: str, tokens_per_batch: int | None,
    clock: Clock,
) -> Extractor:
    """A model in a precision; in half precision with the way to what it is in float32."""
    model, half = plan.models[name], dtype != torch.float32
    wanted = Wanted(model.layers, plan.piece_scores)
    classifier = trial.opened(name, model, dtype, device)
    pairs = plan.dataset.text_pair is not None
    if pairs:
        trial.refuse_pairs(name, classifier)
    # What float32 takes is counted where it is waited for, by no clock of its own.
    usual = calibrate.default(classifier.device.type, wanted.graph_from is not None)
    exact = cache(lambda: _opened(name, plan, torch.float32, device, usual, Clock()))
    return Extractor(
        name, model, classifier, wanted, plan.target, pairs, half, clock, tokens_per_batch,
        None if device == "cpu" else torch.cuda.Stream(device), exact if half else None,
    )


def count_operations(classifier: Classifier, clock: Clock) -> None:
    """Let every linear layer count two operations a weight and row."""
    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        clock.count(2 * output.numel() * layer.in_features)

    parts = (part for part in (classifier.model, classifier.tail) if part is not None)
    for module in {module for part in parts for module in part.modules()}:
        if isinstance(module, (torch.nn.Linear, Prepacked)):
            module.register_forward_hook(count)
