"""A model that is ready to take the shards of a run, batch by batch, on its device."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from clsight import attention, calibrate, general, shards, tables, weights
from clsight.attention import Wanted, prepare
from clsight.batches import (
    Batch,
    Integers,
    Pieces,
    batch_of,
    gather,
    pack,
    tokenise,
    tokenise_in_worker,
)
from clsight.clock import Clock
from clsight.errors import ClsightError, UsageError
from clsight.models import IMPLEMENTATION, Classifier, load, local_folder, two_classes
from clsight.plan import ModelPlan, Plan
from clsight.prepacked import Prepacked
from clsight.results import Result, collect, leave, predictions

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

    def read(self, path: Path, workers: ProcessPoolExecutor | None = None) -> Documents:
        """The usable documents of a shard: their rows, and the pieces of their texts."""
        columns = ["row", "text", "text_pair", "label", "reason"]
        table = pq.read_table(path, columns=columns)
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
        """Run a batch; where memory runs out, its halves.

        Raises:
            ClsightError: it runs out for one document alone.
        """
        try:
            return [self.run(batch, documents)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        n = len(batch.documents)
        if n == 1:
            raise ClsightError(
                f"{self.name}: there is not enough memory on {self.classifier.device} for row "
                f"{documents.rows[int(batch.documents[0])]} of {batch.n_pieces} pieces; leave the "
                "document out, or ask for fewer scores and layers"
            )
        if self.stream is not None:
            torch.cuda.empty_cache()
        return [
            result for half in (batch.documents[: n // 2], batch.documents[n // 2 :])
            for result in self._fitting(batch_of(half, documents.pieces.lengths), documents)
        ]

    def run(self, batch: Batch, documents: Documents) -> Result:
        """Run one batch, and send what it gives to the host."""
        pieces, target = documents.pieces, documents.target
        forward = attention.forward if self.classifier.family.fast else general.forward
        with self.clock.stage("forward"):
            index, position = gather(pieces.offsets, batch.documents)
            attended = forward(
                self.classifier,
                self._on_device(pieces.ids[index]),
                self._on_device(position),
                batch.groups,
                self.wanted,
                self._on_device(pieces.segments[index]),
                None if target is None else self._on_device(target[batch.documents]),
                self.clock,
            )
            return leave(attended, batch, self.half, self.stream)

    def _on_device(self, values: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        host = torch.from_numpy(values.astype(np.int64))
        if self.stream is None:
            return host
        # From pinned memory, for a copy from any other waits until the card is idle.
        return host.pin_memory().to(self.classifier.device, non_blocking=True)

    def table(self, documents: Documents, results: list[Result]) -> pa.Table:
        """The attention table of documents, in their order; see `tables.attention`."""
        rows, pieces = documents.rows, documents.pieces
        lists = collect(results, ("logits", "attention", *self.wanted.scores))
        logits = lists["logits"].flatten().to_numpy().reshape(len(rows), len(self.plan.labels))
        offsets = pa.array(pieces.offsets, pa.int32())
        columns = {
            "model": pa.repeat(self.name, len(rows)),
            "row": rows,
            **predictions(logits.astype(np.float64), self.plan.labels, documents.target),
            "n_pieces": pa.array(pieces.lengths, pa.int32()),
            "truncated": pa.array(pieces.truncated),
            "start": pa.ListArray.from_arrays(offsets, pieces.start),
            "end": pa.ListArray.from_arrays(offsets, pieces.end),
            **lists,
        }
        schema = tables.attention(columns["predicted"].type, self.wanted.scores)
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _is_out_of_memory(error: BaseException) -> bool:
    """On the CPU torch raises a plain RuntimeError, known by its words alone."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def open_extractor(
    name: str, plan: Plan, run: Path, device: str, tokens_per_batch: int | None = None,
    clock: Clock | None = None,
) -> Extractor:
    """Load a model of a plan onto a device, and write its head weights into the run."""
    dtype, clock = getattr(torch, plan.dtype), clock or Clock()
    with clock.stage("load"):
        classifier = load(plan.models[name], dtype, device)
        shards.write(weights.table(name, weights.head_weights(classifier)),
                     run / name / "head_weights.parquet")
        wanted = Wanted(plan.models[name].layers, tables.piece_scores(plan.scores))
        ready = _checked(classifier)
    if clock.detailed:
        count_operations(ready, clock)
    return Extractor(
        name, plan.models[name], ready, wanted, plan.target, plan.dataset.text_pair is not None,
        dtype != torch.float32, clock, tokens_per_batch,
        None if device == "cpu" else torch.cuda.Stream(device),
    )


def count_operations(classifier: Classifier, clock: Clock) -> None:
    """Let every linear layer count two operations a weight and row."""
    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        clock.count(2 * output.numel() * layer.in_features)

    parts = (part for part in (classifier.model, classifier.tail) if part is not None)
    for module in {module for part in parts for module in part.modules()}:
        if isinstance(module, (torch.nn.Linear, Prepacked)):
            module.register_forward_hook(count)


def _checked(classifier: Classifier) -> Classifier:
    """The classifier made ready, after a look at whether clsight computes what the model does.

    On the fast path what follows the last attention is called part by part: here its logits for one
    short text are compared with those of the model itself.

    Raises:
        ClsightError: they differ, or the model attends in a form that is not known.
    """
    encoded = classifier.tokenizer("a look at one short text", truncation=True,
                                   max_length=classifier.max_length)["input_ids"]
    ids = torch.tensor(encoded, device=classifier.device)
    if not classifier.family.fast:
        n_layers = classifier.model.config.num_hidden_layers
        pooling = general.reading(classifier, ids[None], n_layers)
        return dataclasses.replace(classifier, pooling=pooling)
    model = classifier.model
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = two_classes(model(input_ids=ids[None]).logits.float())
    model.set_attn_implementation(IMPLEMENTATION)
    ready = prepare(classifier)
    groups, positions = ((0, 1, len(ids)),), torch.arange(len(ids), device=ids.device)
    got = attention.forward(ready, ids, positions, groups, Wanted((), ())).logits
    tolerance = 1e-3 if classifier.dtype == torch.float32 else 0.1
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        raise ClsightError(
            f"{type(model).__name__} gives the logits {expected[0].tolist()} for a short text, "
            f"clsight {got[0].tolist()}: this variant of the family is not supported"
        )
    return ready
