"""What batches give, on its way from the device to a table of attention."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from clsight.attention import Attended
from clsight.batches import Batch, Integers

Floats = npt.NDArray[np.float32]
Reasons = npt.NDArray[np.object_]
_SPOKEN = {"logits": "logits", "attention": "attention rows"}
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Result:
    """What one batch gave, in the host's memory or on the way there."""

    batch: Batch
    columns: dict[str, Tensor]
    """`logits` [n, classes]; `attention` [layers * heads, T] and piece scores [1, T]."""
    arrived: torch.cuda.Event | None
    """What to wait for before reading; None where all is there."""
    problem: str | None = None
    """Why there is nothing in `columns`; None where there is."""

    def by_document(self, column: str) -> list[Floats]:
        """[documents, values] arrays, one per length (of logits: one), in the batch's order."""
        if self.problem is not None:
            return [np.empty((len(self.batch.documents), 0), dtype=np.float32)]
        values = self.columns[column].float()
        if column == "logits":
            return [values.numpy()]
        parts = []
        for first, documents, length in self.batch.groups:
            part = values[:, first : first + documents * length].unflatten(1, (documents, length))
            parts.append(part.transpose(0, 1).reshape(documents, -1).numpy())
        return parts


def leave(
    attended: Attended, batch: Batch, half: bool, stream: torch.cuda.Stream | None
) -> Result:
    """Send what a batch gave to the host.

    Args:
        attended: what it gave.
        batch: the batch.
        half: round stored values to float16 precision.
        stream: where copies run beside the next batch; None on the CPU.
    """
    stored = {"attention": attended.rows.flatten(0, 1)}
    stored |= {name: x.sum(0)[None] for name, x in attended.scores.items()}
    columns = {name: x.detach().half() if half else x.detach() for name, x in stored.items()}
    columns["logits"] = attended.logits
    if stream is None:
        return Result(batch, columns, None)
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        copies = {name: _pinned_copy(x, stream) for name, x in columns.items()}
        return Result(batch, copies, stream.record_event())


def _pinned_copy(x: Tensor, stream: torch.cuda.Stream) -> Tensor:
    # The allocator must not hand x's memory out again before the copy has been made.
    x.record_stream(stream)
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)


def collect(results: list[Result], names: tuple[str, ...]) -> dict[str, pa.ListArray]:
    """Per column one list per document, in the order of documents; waits for what is on its way."""
    for result in results:
        if result.arrived is not None:
            result.arrived.synchronize()
    order = np.argsort(np.concatenate([_NONE, *(result.batch.documents for result in results)]))
    return {
        name: _lists([part for result in results for part in result.by_document(name)]).take(
            pa.array(order)
        )
        for name in names
    }


def _lists(arrays: list[Floats]) -> pa.ListArray:
    """A list array with one list per document, of arrays [documents, values]."""
    lengths = [np.full(len(array), array.shape[1]) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([_NONE, *lengths]))])
    values = np.concatenate([_NONE, *(array.ravel() for array in arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.float32()))


def left_out(results: list[Result], n: int) -> Reasons:
    """[n] why batches gave nothing for a document; None where they did."""
    reasons: Reasons = np.full(n, None)
    for result in results:
        reasons[result.batch.documents] = result.problem
    return reasons


def not_finite(lists: dict[str, pa.ListArray]) -> Reasons:
    """[n] which of a document's values are not finite, in words; None where all are.

    A sum is finite only where all values are. It takes 0.4 ms for the 1.5 million values that three
    layers give of 4,096 reviews in 10 s, and nothing more is done where all is well.
    """
    reasons: Reasons = np.full(len(lists["logits"]), None)
    for name, column in reversed(lists.items()):
        values = column.flatten().to_numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):
                continue
        (wrong,) = np.nonzero(~np.isfinite(values))
        document = np.searchsorted(column.offsets.to_numpy(), wrong, side="right") - 1
        reasons[document] = f"{_SPOKEN.get(name, f'{name} scores')} are not finite"
    return reasons


def emptied(lists: dict[str, pa.ListArray], places: Integers) -> dict[str, pa.ListArray]:
    """The same lists, of which those at some places are empty."""
    if not len(places):
        return lists
    order = np.arange(len(lists["logits"]))
    order[places] = len(order)
    return {name: pa.concat_arrays([column, pa.array([[]], column.type)]).take(pa.array(order))
            for name, column in lists.items()}


def predictions(
    logits: npt.NDArray[np.float64], labels: tuple[int | str, ...], target: Integers | None = None,
    unanswered: npt.NDArray[np.bool_] | None = None,
) -> dict[str, pa.Array]:
    """Columns that follow from logits [n, C]; `target` [n] is a class, by default the predicted.

    They are null where a document is `unanswered` [n]. `confidence` is the softmax of the predicted
    class, `margin` its logit minus the runner-up's, `target_margin` the target's minus the highest
    other one.
    """
    ranked = np.sort(logits, axis=1)
    shifted = np.exp(logits - ranked[:, -1:])
    best = logits.argmax(1)
    target = best if target is None else target
    own = np.take_along_axis(logits, target[:, None], 1)[:, 0]
    others = np.where(target[:, None] == np.arange(logits.shape[1]), -np.inf, logits).max(1)
    return {
        "predicted": pa.array(labels).take(pa.array(best, mask=unanswered)),
        "confidence": pa.array(1 / shifted.sum(1), mask=unanswered),
        "margin": pa.array(ranked[:, -1] - ranked[:, -2], mask=unanswered),
        "target": pa.array(labels).take(pa.array(target, mask=unanswered)),
        "target_margin": pa.array(own - others, mask=unanswered),
    }
