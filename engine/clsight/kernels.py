"""The one policy for compiled kernels, and for the threads that run them.

Cached on disk, so that only the first run on a machine compiles; without the GIL, so that threads
run kernels side by side (`parallel=True` would add some ten seconds of compilation to a first run,
and clashes with forked workers); no fast-math, so that sums mean what they say, but a product may
be added without being rounded first.

What lets loops run in SIMD lanes: slices or unsigned integers as indices (a signed one may count
from the end, which takes a select for each element), and innermost loops without branches.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Function = Callable[..., Any]


def kernel(function: Function) -> Function:
    """Compile a function of arrays and scalars with Numba, on its first call."""
    compiled: Function = numba.njit(
        cache=True, nogil=True, error_model="numpy", fastmath={"contract"}
    )(function)
    return compiled


def inlined(function: Function) -> Function:
    """Compile a scalar function for use within kernels."""
    compiled: Function = numba.njit(cache=True, nogil=True, inline="always")(function)
    return compiled


_cores = os.cpu_count() or 1


def limit(cores: int) -> None:
    """Let this process run kernels on so many threads; others have the rest of the machine."""
    global _cores
    _cores = cores


def in_threads(function: Callable[[int, int], None], cuts: npt.NDArray[np.int64]) -> None:
    """Call function(first, last) for each two neighbours in `cuts`, one thread a core.

    Raises:
        Exception: whatever a call raised.
    """
    with ThreadPoolExecutor(_cores) as pool:
        for done in [pool.submit(function, *cut) for cut in pairwise(cuts.tolist())]:
            done.result()


def even_cuts(offsets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Cuts of lists [n + 1 offsets] into ranges of about equally many values, four a core."""
    ends = np.linspace(offsets[0], offsets[-1], 4 * _cores + 1)
    cuts = np.searchsorted(offsets, ends[1:-1])
    return np.unique(np.concatenate([[0], cuts, [len(offsets) - 1]]))
