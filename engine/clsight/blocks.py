"""(unit, document) pairs of all shards on disk, in blocks of neighbouring units.

Pairs come shard by shard and are tested unit by unit. How many documents hold a unit is known
beforehand, so each pair goes to the file of its block at once, and one block alone is in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PAIRS_PER_BLOCK = 100_000
"""Pairs of a block, unless one unit has more. With 250,000 the test took as long, and 50 MiB more
(three models of four scores)."""


@dataclass(frozen=True)
class Blocks:
    """Pairs of U units by block, in files of an empty folder, which is the caller's to remove."""

    folder: Path
    n_documents: Integers
    """[U] pairs of each unit."""

    @property
    def cuts(self) -> Integers:
        """First unit of each block, and U."""
        ends, cuts = np.cumsum(self.n_documents), [0]
        while cuts[-1] < len(ends):
            before = ends[cuts[-1] - 1] if cuts[-1] else 0
            cut = int(np.searchsorted(ends, before + PAIRS_PER_BLOCK, side="right"))
            cuts.append(max(cut, cuts[-1] + 1))
        return np.array(cuts)

    def add(self, unit: Integers, document: Integers, x: Floats) -> None:
        """Append the pairs of a shard, whose documents are behind those of the shards before.

        Args:
            unit: [pairs] ascending.
            document: [pairs] ascending within a unit.
            x: [columns, pairs] masses.
        """
        places = np.searchsorted(unit, self.cuts)
        for block, (first, last) in enumerate(pairwise(places.tolist())):
            if first < last:
                with self._file(block).open("ab") as file:
                    for values in (unit, document, x):
                        np.save(file, values[..., first:last])

    def __iter__(self) -> Iterator[tuple[slice, Integers, Integers, Floats]]:
        """Of each block: its units, offsets [units + 1], document [pairs] and x [columns, pairs].

        Pairs are in the order of units and then of documents.
        """
        for block, (first, last) in enumerate(pairwise(self.cuts.tolist())):
            unit, document, x = self._read(block)
            order = np.argsort(unit, kind="stable")
            offsets = np.concatenate([[0], np.cumsum(self.n_documents[first:last])])
            yield slice(first, last), offsets, document[order], x[:, order]

    def _read(self, block: int) -> tuple[Integers, Integers, Floats]:
        parts = []
        with self._file(block).open("rb") as file:
            while file.peek(1):
                parts.append([np.load(file) for _ in range(3)])
        unit, document, x = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        return unit, document, x

    def _file(self, block: int) -> Path:
        return self.folder / str(block)
