"""What `deeplift` compares documents with: the same ones with all their words masked.

A reference has the special pieces of its document, and the tokenizer's mask piece in the place of
all others. Documents of one length nearly always have the same one, so a batch has few. They go
through the model behind its documents, a group of them for each group of documents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clsight.heads import Block, Groups

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class References:
    """The references of a packed batch; R pieces in all."""

    ids: Any
    """[R] vocabulary indices (an array, or a tensor on the model's device)."""
    segments: Any
    """[R] token types."""
    positions: Any
    """[R] from 0 in each reference."""
    groups: Groups
    """How they lie behind each other, as in `batches.Batch`; one group for each of the batch's."""
    of: Any
    """[n] which reference each document of the batch has."""

    @property
    def shared(self) -> bool:
        """All documents of a length have the same one."""
        return all(n == 1 for _, n, _ in self.groups)

    def to(self, device: torch.device) -> "References":
        """The same as tensors on a device; from pinned memory where that is a card."""
        def put(values: npt.NDArray[np.integer[Any]]) -> Tensor:
            host = torch.from_numpy(values.astype(np.int64))
            if device.type == "cpu":
                return host
            return host.pin_memory().to(device, non_blocking=True)

        return References(put(self.ids), put(self.segments), put(self.positions), self.groups,
                          put(self.of))

    @property
    def starts(self) -> Tensor:
        """[references] the first piece of each."""
        return torch.cat([first + length * torch.arange(n, device=self.of.device)
                          for first, n, length in self.groups])

    def pieces_of(self, documents: slice, length: int) -> Tensor:
        """[documents, L] the pieces of the references of some documents of one length."""
        begin = self.starts[self.of[documents]]
        return begin[:, None] + torch.arange(length, device=begin.device)

    def behind(self, inputs: dict[str, Tensor], groups: Groups) -> tuple[dict[str, Tensor], Groups]:
        """A batch's inputs [T] and groups, and these behind them."""
        own = {"input_ids": self.ids, "position_ids": self.positions,
               "token_type_ids": self.segments}
        first, documents, length = groups[-1]
        end = first + documents * length
        laid = tuple((end + first, n, length) for first, n, length in self.groups)
        return {name: torch.cat([x, own[name]]) for name, x in inputs.items()}, groups + laid


def references(
    ids: npt.NDArray[np.integer[Any]], segments: npt.NDArray[np.integer[Any]],
    special: npt.NDArray[np.bool_], groups: Groups, mask: int,
) -> References:
    """The references of a packed batch of T pieces.

    Args:
        ids: [T] vocabulary indices.
        segments: [T] token types.
        special: [T] which pieces belong to no word.
        groups: (first piece, documents, pieces per document) of each length.
        mask: vocabulary index of the mask piece.
    """
    masked = np.where(special, ids, mask)
    found, of, laid = [], [], []
    first_piece = first_reference = 0
    for first, documents, length in groups:
        part = slice(first, first + documents * length)
        both = np.stack([x[part].reshape(documents, length) for x in (masked, segments)], axis=1)
        distinct, own = both[:1], np.zeros(documents, np.int64)
        if (both != distinct).any():
            distinct, own = np.unique(both, axis=0, return_inverse=True)
        found.append(distinct.transpose(1, 0, 2).reshape(2, -1))
        of.append(own + first_reference)
        laid.append((first_piece, len(distinct), length))
        first_piece += len(distinct) * length
        first_reference += len(distinct)
    ids, segments = np.concatenate(found, axis=1)
    positions = np.concatenate([np.tile(np.arange(length), n) for _, n, length in laid])
    return References(ids, segments, positions, tuple(laid), np.concatenate(of))


@dataclass(frozen=True)
class Counterparts:
    """Where the references of a packed batch lie that goes through a model behind its documents."""

    n_documents: int
    """Without the references."""
    documents: Tensor
    """[n, references included] the place of each document's reference; a reference's is its own."""
    pieces: Tensor
    """[T, references and filling included] the place of each piece's counterpart."""
    shared: bool
    """See `References.shared`."""

    @classmethod
    def of(cls, groups: Groups, given: References, n_filled: int) -> "Counterparts":
        """For the groups of the documents; `n_filled` is T."""
        n, device = len(given.of), given.of.device
        first, documents, length = groups[-1]
        end, done = first + documents * length, 0
        pieces = torch.arange(n_filled, device=device)
        for first, documents, length in groups:
            place = given.pieces_of(slice(done, done + documents), length)
            pieces[first : first + documents * length] = end + place.flatten()
            done += documents
        own = n + torch.arange(len(given.starts), device=device)
        return cls(n, torch.cat([n + given.of, own]), pieces, given.shared)

    def __call__(self, x: Tensor) -> Callable[[], Tensor]:
        """See `rules.Counterpart`; x is [1, T, ..], [T, ..] or [n, ..]."""
        axis, x = int(x.shape[0] == 1), x.detach()
        index = self.documents if x.shape[axis] == len(self.documents) else self.pieces
        return lambda: x.index_select(axis, index)

    def pieces_of(self, block: Block, x: Tensor) -> Tensor:
        """`block.pieces(x)` of the counterparts [documents, or 1 where shared, heads, L, size]."""
        index = self.pieces[block.span].view(block.count, block.length)
        index = index[:1] if self.shared else index
        view: Tensor = x[block.heads][:, index.flatten()].unflatten(1, index.shape)
        return view.transpose(0, 1)

    def queries_of(self, block: Block, x: Tensor, single: bool) -> Tensor:
        """`block.queries(x, single)` of the counterparts."""
        if not single:
            return self.pieces_of(block, x)
        index = self.documents[block.document : block.document + block.count]
        index = index[:1] if self.shared else index
        return x[block.heads][:, index].transpose(0, 1)[:, :, None]


def mask_piece(tokenizer: Any) -> int | None:
    """Vocabulary index of what stands for a word that is not there; None where there is no such.

    The mask piece; where a tokenizer has none, its unknown piece, else padding.
    """
    for name in ("mask_token_id", "unk_token_id", "pad_token_id"):
        if (index := getattr(tokenizer, name, None)) is not None:
            return int(index)
    return None
