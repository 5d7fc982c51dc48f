"""One shard through one model: tokenise | forward | write, overlapped.

Imports torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU machine.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clsight import shards, tables
from clsight.attention import IMPLEMENTATION, Attended, forward, prepare
from clsight.batches import Batch, Pieces, gather, pack, tokenise
from clsight.models import Classifier, load
from clsight.plan import ModelPlan, Plan

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}
"""Pieces per batch and kind of device; on 2 CPU cores 2,048 to 8,192 differ by less than 5 %."""

Floats = npt.NDArray[np.float32]
Progress = Callable[[int], None]


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

    def shards(self, run: Path, names: list[str], progress: Progress) -> Iterator[str]:
        """Extract the named document shards of a run; yields each name once it is committed.

        While one shard is in the model, the next is tokenised and the last is written; an error in
        either is raised here.
        """
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            read = reader.submit(self.read, run / "documents" / names[0])
            written: Future[str] | None = None
            for name, following in zip(names, [*names[1:], None], strict=True):
                rows, pieces = read.result()
                if following is not None:
                    read = reader.submit(self.read, run / "documents" / following)
                table = self.table(rows, pieces, progress)
                if written is not None:
                    yield written.result()
                written = writer.submit(self.commit, table, run, name)
            if written is not None:
                yield written.result()

    def commit(self, table: pa.Table, run: Path, name: str) -> str:
        """Write a shard's attention under its final name, which is returned."""
        shards.write(table, run / self.name / "attention" / name)
        return name

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
        documents = np.concatenate([batch.documents for batch in batches] or [np.empty(0, int)])
        order = np.argsort(documents)
        schema = tables.attention(pa.string())
        lists = {
            column: _lists([getattr(result, column) for result in results]).take(pa.array(order))
            for column in ("logits", "attention", "contribution")
        } if results else {c: pa.array([], tables.floats) for c in ("logits", "attention",
                                                                    "contribution")}
        logits = lists["logits"].flatten().to_numpy().reshape(len(rows), -1).astype(np.float64)
        columns = {
            "model": pa.repeat(self.name, len(rows)),
            "row": rows,
            **predictions(logits, self.plan.labels),
            "n_pieces": pa.array(pieces.lengths, pa.int32()),
            "truncated": pa.array(pieces.truncated),
            "start": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.start),
            "end": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.end),
            **lists,
        }
        return pa.table({name: columns[name] for name in schema.names})

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
    name: str, plan: Plan, device: str, tokens_per_batch: int | None = None
) -> Extractor:
    """Load a model of a plan for extraction on a device ("cpu", "cuda", "cuda:1")."""
    dtype = getattr(torch, plan.dtype)
    classifier = prepare(load(plan.models[name], dtype, device, IMPLEMENTATION))
    budget = tokens_per_batch or TOKENS_PER_BATCH[device.partition(":")[0]]
    return Extractor(name, plan.models[name], classifier, dtype != torch.float32, budget)


def predictions(
    logits: npt.NDArray[np.float64], labels: tuple[int | str, ...]
) -> dict[str, pa.Array]:
    """Columns `predicted`, `confidence` (softmax) and `margin` (to the runner-up) of logits [n, C]."""
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


def _lists(parts: list[list[Floats]]) -> Any:
    """A list array with one list per document, of arrays [documents, values]."""
    arrays = [array for part in parts for array in part]
    lengths = np.concatenate([np.full(len(array), array.shape[1]) for array in arrays])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate([array.ravel() for array in arrays])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.float32()))
