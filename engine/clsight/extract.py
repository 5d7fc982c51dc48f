"""One shard through one model: tokenise | forward | write, overlapped.

Imports torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU machine.
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from clsight import attention, general, shards, tables, weights
from clsight.attention import Attended, Wanted, prepare
from clsight.batches import Batch, Pieces, gather, pack, tokenise
from clsight.errors import ClsightError
from clsight.models import IMPLEMENTATION, Classifier, load, two_classes
from clsight.plan import ModelPlan, Plan

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}
"""Pieces per batch and kind of device; on 2 CPU cores 2,048 to 8,192 differ by less than 5 %."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_NONE = np.empty(0, dtype=np.int64)
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
    tokens_per_batch: int

    def read(self, path: Path) -> Documents:
        """The usable documents of a shard: their rows, and the pieces of their texts."""
        columns = ["row", "text", "text_pair", "label", "reason"]
        table = pq.read_table(path, columns=columns)
        usable = table.filter(table["reason"].is_null()).combine_chunks()
        pairs = usable["text_pair"].to_pylist() if self.pairs else None
        pieces = tokenise(self.classifier.tokenizer, usable["text"].to_pylist(),
                          self.classifier.max_length, pairs)
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

    def table(self, documents: Documents, progress: Progress) -> pa.Table:
        """The attention table of documents, in their order; see `tables.attention`."""
        rows, pieces = documents.rows, documents.pieces
        batches = pack(pieces.lengths, self.tokens_per_batch)
        results = [self._batch(batch, documents, progress) for batch in batches]
        order = np.argsort(np.concatenate([_NONE, *(batch.documents for batch in batches)]))
        lists = {
            column: _lists([result[column] for result in results]).take(pa.array(order))
            for column in ("logits", "attention", *self.wanted.scores)
        }
        logits = lists["logits"].flatten().to_numpy().reshape(len(rows), len(self.plan.labels))
        columns = {
            "model": pa.repeat(self.name, len(rows)),
            "row": rows,
            **predictions(logits.astype(np.float64), self.plan.labels, documents.target),
            "n_pieces": pa.array(pieces.lengths, pa.int32()),
            "truncated": pa.array(pieces.truncated),
            "start": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.start),
            "end": pa.ListArray.from_arrays(pa.array(pieces.offsets, pa.int32()), pieces.end),
            **lists,
        }
        schema = tables.attention(columns["predicted"].type, self.wanted.scores)
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def _batch(self, batch: Batch, documents: Documents, progress: Progress) -> "_Result":
        pieces, target = documents.pieces, documents.target
        index, position = gather(pieces.offsets, batch.documents)
        forward = attention.forward if self.classifier.family.fast else general.forward
        attended = forward(
            self.classifier,
            self._on_device(pieces.ids[index]),
            self._on_device(position),
            batch.groups,
            self.wanted,
            self._on_device(pieces.segments[index]),
            None if target is None else self._on_device(target[batch.documents]),
        )
        progress(len(batch.documents))
        return _result(attended, batch, self.half)

    def _on_device(self, values: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.classifier.device)


def open_extractor(
    name: str, plan: Plan, run: Path, device: str, tokens_per_batch: int | None = None
) -> Extractor:
    """Load a model of a plan onto a device, and write its head weights into the run."""
    dtype = getattr(torch, plan.dtype)
    classifier = load(plan.models[name], dtype, device)
    shards.write(weights.table(name, weights.head_weights(classifier)),
                 run / name / "head_weights.parquet")
    wanted = Wanted(plan.models[name].layers, tables.piece_scores(plan.scores))
    budget = tokens_per_batch or TOKENS_PER_BATCH[device.partition(":")[0]]
    if tokens_per_batch is None and wanted.graph_from is not None:
        budget //= 4  # a graph through all layers holds what each of them computed
    return Extractor(
        name, plan.models[name], _checked(classifier), wanted, plan.target,
        plan.dataset.text_pair is not None, dtype != torch.float32, budget,
    )


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
    opened: dict[str, Extractor] = {}

    def read(model: str, name: str) -> tuple[Extractor, Documents]:
        if model not in opened:
            opened.clear()
            opened[model] = open_extractor(model, plan, run, device, tokens_per_batch)
        return opened[model], opened[model].read(run / "documents" / name)

    def commit(table: pa.Table, model: str, name: str) -> tuple[str, str]:
        shards.write(table, run / model / "attention" / name)
        return model, name

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        prepared = [reader.submit(read, *job) for job in jobs[:1]]
        written: list[Future[tuple[str, str]]] = []
        for (model, name), following in zip_longest(jobs, jobs[1:]):
            extractor, documents = prepared.pop().result()
            if following is not None:
                prepared.append(reader.submit(read, *following))
            table = extractor.table(documents, partial(progress, model))
            yield from (future.result() for future in written)
            written = [writer.submit(commit, table, model, name)]
        yield from (future.result() for future in written)


def predictions(
    logits: npt.NDArray[np.float64], labels: tuple[int | str, ...], target: Integers | None = None
) -> dict[str, pa.Array]:
    """Columns that follow from logits [n, C]; `target` [n] is a class, by default the predicted.

    `confidence` is the softmax of the predicted class, `margin` its logit minus the runner-up's,
    `target_margin` the target's minus the highest other one.
    """
    ranked = np.sort(logits, axis=1)
    shifted = np.exp(logits - ranked[:, -1:])
    best = logits.argmax(1)
    target = best if target is None else target
    own = np.take_along_axis(logits, target[:, None], 1)[:, 0]
    others = np.where(target[:, None] == np.arange(logits.shape[1]), -np.inf, logits).max(1)
    return {
        "predicted": pa.array(labels).take(pa.array(best)),
        "confidence": pa.array(1 / shifted.sum(1)),
        "margin": pa.array(ranked[:, -1] - ranked[:, -2]),
        "target": pa.array(labels).take(pa.array(target)),
        "target_margin": pa.array(own - others),
    }


_Result = dict[str, list[Floats]]
"""Per column, [documents, values] arrays, one per length, in the batch's order."""


def _result(attended: Attended, batch: Batch, half: bool) -> _Result:
    def grouped(x: torch.Tensor) -> list[Floats]:
        stored = (x.half().float() if half else x).cpu()
        parts = []
        for first, documents, length in batch.groups:
            part = stored[:, first : first + documents * length].unflatten(1, (documents, length))
            parts.append(part.transpose(0, 1).reshape(documents, -1).numpy())
        return parts

    result = {"logits": [attended.logits.cpu().numpy()],
              "attention": grouped(attended.rows.flatten(0, 1))}
    return result | {name: grouped(x.sum(0)[None]) for name, x in attended.scores.items()}


def _lists(parts: list[list[Floats]]) -> pa.ListArray:
    """A list array with one list per document, of arrays [documents, values]."""
    arrays = [array for part in parts for array in part]
    lengths = [np.full(len(array), array.shape[1]) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([_NONE, *lengths]))])
    values = np.concatenate([_NONE, *(array.ravel() for array in arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.float32()))
