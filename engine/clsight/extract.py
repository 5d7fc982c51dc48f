"""One shard through one model: tokenise | forward | write, overlapped.

Imports torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU machine.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clsight import shards, tables, weights
from clsight.attention import IMPLEMENTATION, Attended, forward, prepare
from clsight.batches import Batch, Pieces, gather, pack, tokenise
from clsight.models import Classifier, load
from clsight.plan import ModelPlan, Plan

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}
"""Pieces per batch and kind of device; on 2 CPU cores 2,048 to 8,192 differ by less than 5 %."""

Floats = npt.NDArray[np.float32]
_NONE = np.empty(0, dtype=np.int64)
Progress = Callable[[int], None]


def bound_memory() -> None:
    """Keep what libraries hoard from growing with the number of shards.

    oneDNN keeps the code that it makes for each shape, and nearly every packed batch has a shape of
    its own (the setting is read at its first use in a process); Arrow keeps a pool. Telling glibc
    to return blocks of a megabyte would save as much again, and cost a third more time.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    pa.set_memory_pool(pa.system_memory_pool())


def best_device() -> str:
    """CUDA where there is a card, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: str) -> str:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


@dataclass(frozen=True)
class Extractor:
    """A model ready to extract shards of a run.

    Use `open_extractor`; `classifier` is prepared, on its device, in the plan's precision.
    """

    name: str
    plan: ModelPlan
    classifier: Classifier
    half: bool
    """Round stored values to float16 precision (half-precision runs)."""
    tokens_per_batch: int

    def read(self, path: Path) -> tuple[pa.Array, Pieces]:
        """The usable documents of a shard: their rows, and the pieces of their texts."""
        table = pq.read_table(path, columns=["row", "text", "reason"])
        usable = table.filter(table["reason"].is_null()).combine_chunks()
        texts = usable["text"].to_pylist()
        return usable["row"].combine_chunks(), tokenise(
            self.classifier.tokenizer, texts, self.classifier.max_length
        )

    def table(self, rows: pa.Array, pieces: Pieces, progress: Progress) -> pa.Table:
        """The attention table of documents, in their order; see `tables.attention`."""
        batches = pack(pieces.lengths, self.tokens_per_batch)
        results = [self._batch(batch, pieces, progress) for batch in batches]
        order = np.argsort(np.concatenate([_NONE, *(batch.documents for batch in batches)]))
        lists = {
            column: _lists([getattr(result, column) for result in results]).take(pa.array(order))
            for column in ("logits", "attention", "contribution")
        }
        logits = lists["logits"].flatten().to_numpy().reshape(len(rows), len(self.plan.labels))
        columns = {
            "model": pa.repeat(self.name, len(rows)),
            "row": rows,
            **predictions(logits.astype(np.float64), self.plan.labels),
            "n_pieces": pa.array(pieces.lengths, pa.int32()),
            "truncated": pa.array(pieces.truncated),
            "start": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.start),
            "end": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.end),
            **lists,
        }
        schema = tables.attention(columns["predicted"].type)
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def _batch(self, batch: Batch, pieces: Pieces, progress: Progress) -> "_Result":
        index, position = gather(pieces.offsets, batch.documents)
        device = self.classifier.device
        attended = forward(
            self.classifier,
            torch.from_numpy(pieces.ids[index].astype(np.int64)).to(device),
            torch.from_numpy(position).to(device),
            batch.groups,
            self.plan.layers,
        )
        progress(len(batch.documents))
        return _result(attended, batch, self.half)


def open_extractor(
    name: str, plan: Plan, run: Path, device: str, tokens_per_batch: int | None = None
) -> Extractor:
    """Load a model of a plan onto a device, and write its head weights into the run."""
    dtype = getattr(torch, plan.dtype)
    classifier = load(plan.models[name], dtype, device, IMPLEMENTATION)
    shards.write(weights.table(name, weights.head_weights(classifier)),
                 run / name / "head_weights.parquet")
    budget = tokens_per_batch or TOKENS_PER_BATCH[device.partition(":")[0]]
    return Extractor(name, plan.models[name], prepare(classifier), dtype != torch.float32, budget)


def extract(
    run: Path, plan: Plan, jobs: list[tuple[str, str]], device: str,
    tokens_per_batch: int | None, progress: Callable[[str, int], None],
) -> Iterator[tuple[str, str]]:
    """Extract shards into `MODEL/attention`; yields each job once it is committed.

    While one shard is in the model, the next is tokenised (its model opened first, where it is
    another) and the last is written; an error in either is raised here.

    Args:
        run: the run folder.
        plan: its plan.
        jobs: (model, name of a document shard), those of one model side by side.
        device: "cpu", "cuda" or "cuda:1".
        tokens_per_batch: pieces per batch; None for what suits the device.
        progress: called with the model and the number of documents of each batch done.
    """
    bound_memory()
    opened: dict[str, Extractor] = {}

    def read(model: str, name: str) -> tuple[Extractor, pa.Array, Pieces]:
        if model not in opened:
            opened.clear()
            opened[model] = open_extractor(model, plan, run, device, tokens_per_batch)
        return opened[model], *opened[model].read(run / "documents" / name)

    def commit(table: pa.Table, model: str, name: str) -> tuple[str, str]:
        shards.write(table, run / model / "attention" / name)
        return model, name

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        prepared = [reader.submit(read, *job) for job in jobs[:1]]
        written: list[Future[tuple[str, str]]] = []
        for (model, name), following in zip_longest(jobs, jobs[1:]):
            extractor, rows, pieces = prepared.pop().result()
            if following is not None:
                prepared.append(reader.submit(read, *following))
            table = extractor.table(rows, pieces, partial(progress, model))
            yield from (future.result() for future in written)
            written = [writer.submit(commit, table, model, name)]
        yield from (future.result() for future in written)


def predictions(
    logits: npt.NDArray[np.float64], labels: tuple[int | str, ...]
) -> dict[str, pa.Array]:
    """Columns `predicted`, `confidence` (softmax), `margin` (to the runner-up) of logits [n, C]."""
    ranked = np.sort(logits, axis=1)
    shifted = np.exp(logits - ranked[:, -1:])
    return {
        "predicted": pa.array(labels).take(pa.array(logits.argmax(1))),
        "confidence": pa.array(1 / shifted.sum(1)),
        "margin": pa.array(ranked[:, -1] - ranked[:, -2]),
    }


@dataclass(frozen=True)
class _Result:
    """Per batch and column, [documents, values] arrays, one per length, in the batch's order."""

    logits: list[Floats]
    attention: list[Floats]
    contribution: list[Floats]


def _result(attended: Attended, batch: Batch, half: bool) -> _Result:
    def grouped(x: torch.Tensor) -> Iterator[Floats]:
        stored = (x.half().float() if half else x).cpu()
        for first, documents, length in batch.groups:
            part = stored[:, first : first + documents * length].unflatten(1, (documents, length))
            yield part.transpose(0, 1).reshape(documents, -1).numpy()

    return _Result(
        logits=[attended.logits.cpu().numpy()],
        attention=list(grouped(attended.rows.flatten(0, 1))),
        contribution=list(grouped(attended.contribution.sum(0)[None])),
    )


def _lists(parts: list[list[Floats]]) -> pa.ListArray:
    """A list array with one list per document, of arrays [documents, values]."""
    arrays = [array for part in parts for array in part]
    lengths = [np.full(len(array), array.shape[1]) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([_NONE, *lengths]))])
    values = np.concatenate([_NONE, *(array.ravel() for array in arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.float32()))
