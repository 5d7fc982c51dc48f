"""Pieces per batch: what the device has shown to be fastest.

Measured on batches of typical length, where that costs little against what lies ahead. Never the
largest document decides: one that is longer than a batch has a batch of its own.
"""

import time
from collections.abc import Callable

import numpy as np

from clsight.batches import Batch, Integers, batch_of

BUDGETS = {"cpu": (1024, 2048, 4096, 8192), "cuda": (16384, 32768, 65536, 131072, 262144)}
"""Pieces per batch that are tried, by kind of device."""
DEFAULT = {"cpu": 4096, "cuda": 65536}
"""Pieces per batch where too little lies ahead to measure."""
SHARE = 0.02
"""Most pieces that may go into measuring, of those ahead."""
GAIN = 1.05
"""Another budget must be so much faster than the default, which noise alone is not."""
ROUNDS = 2
GRAPH = 2
"""Times what a batch holds in memory, with a graph through all layers. Twice as many cost 5 % more,
for fewer documents of a length lie side by side, and more batches have references of their own."""


def budget(
    lengths: Integers, ahead: int, kind: str, graph: bool, run: Callable[[Batch], object]
) -> int:
    """Pieces per batch.

    Args:
        lengths: [n] pieces per document of one shard.
        ahead: pieces ahead, in all shards.
        kind: "cpu" or "cuda".
        graph: batches hold a graph through all layers.
        run: run a batch and wait for it.
    """
    scale, start = GRAPH if graph else 1, default(kind, graph)
    tried = [n // scale for n in BUDGETS[kind] if n // scale <= lengths.sum()]
    if start not in tried or ROUNDS * sum(tried) > SHARE * ahead:
        return start
    batches = {n: typical(lengths, n) for n in tried}
    rate = dict.fromkeys(tried, 0.0)
    for _ in range(ROUNDS):
        for n, batch in batches.items():
            started = time.perf_counter()
            run(batch)
            rate[n] = max(rate[n], batch.n_pieces / (time.perf_counter() - started))
    best = max(tried, key=lambda n: rate[n])
    return best if rate[best] > GAIN * rate[start] else start


def default(kind: str, graph: bool) -> int:
    """Pieces per batch where nothing is measured; the arguments are those of `budget`."""
    return DEFAULT[kind] // (GRAPH if graph else 1)


def typical(lengths: Integers, n_pieces: int) -> Batch:
    """A batch of about n pieces, from the documents around the median length."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    first, last = np.searchsorted(ends, (ends[-1] + np.array([-n_pieces, n_pieces])) / 2)
    return batch_of(order[first : max(last, first + 1)], lengths)
