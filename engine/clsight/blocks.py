"""(unit, document) pairs on disk: a file of each shard, in blocks of neighbouring units.

Pairs are made shard by shard and tested unit by unit. How many documents hold a unit is known
beforehand, so each file is cut where the blocks are, and whoever tests a block reads its part of
every file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clsight import shards, store

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PAIRS_PER_BLOCK = 100_000
"""Pairs of a block, unless one unit has more. With 250,000 the test took as long, and 50 MiB more
(three models of four scores)."""
MOST_BLOCKS = 1024
"""Beyond them, blocks are larger: each is a read of every shard's file."""


def cut(n_documents: Integers) -> Integers:
    """First unit of each block, and U, of U units that so many documents hold."""
    ends, cuts = np.cumsum(n_documents), [0]
    most = max(PAIRS_PER_BLOCK, -(-int(n_documents.sum()) // MOST_BLOCKS))
    while cuts[-1] < len(ends):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        last = int(np.searchsorted(ends, before + most, side="right"))
        cuts.append(max(last, cuts[-1] + 1))
    return np.array(cuts)


@dataclass(frozen=True)
class Blocks:
    """Pairs of U units by block, in files of a folder, which is the caller's to remove."""

    folder: Path
    n_documents: Integers
    """[U] pairs of each unit."""
    cuts: Integers
    """First unit of each block, and U; see `cut`."""

    def write(self, name: str, unit: Integers, document: Integers, x: Floats) -> None:
        """Write the pairs of a shard under its name.

        Args:
            name: of the shard.
            unit: [pairs] ascending.
            document: [pairs] ascending within a unit.
            x: [columns, pairs] masses.
        """
        columns = {"unit": unit.astype(np.int32), "document": document.astype(np.int32)}
        pairs = pa.record_batch(columns | {f"x{i}": own for i, own in enumerate(x)})
        places = np.searchsorted(unit, self.cuts)
        with shards.replaced(self.folder / name) as path, pa.ipc.new_file(
            str(path), pairs.schema
        ) as writer:
            for first, last in pairwise(places.tolist()):
                writer.write_batch(pairs.slice(first, last - first))

    def read(
        self, names: Iterable[str], block: int
    ) -> tuple[slice, Integers, Integers, Floats]:
        """A block: its units, offsets [units + 1], document [pairs] and x [columns, pairs].

        Pairs are in the order of units and then of documents.

        Args:
            names: of all shards; the documents of each are behind those of the ones before.
            block: which.
        """
        first, last = self.cuts[block : block + 2].tolist()
        parts = [self._part(name, block) for name in names]
        unit, document, x = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        order = np.argsort(unit, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(self.n_documents[first:last])])
        return slice(first, last), offsets, document[order].astype(np.int64), x[:, order]

    def _part(self, name: str, block: int) -> tuple[Integers, Integers, Floats]:
        with pa.OSFile(str(store.fetched(self.folder / name))) as file:
            unit, document, *x = pa.ipc.open_file(file).get_batch(block).columns
        return unit.to_numpy(), document.to_numpy(), np.stack([own.to_numpy() for own in x])
