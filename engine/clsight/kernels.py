"""The one policy for compiled kernels.

Cached on disk, so that only the first run on a machine compiles; without the GIL, so that threads
run kernels side by side (`parallel=True` would add some ten seconds of compilation to a first run,
and clashes with forked workers); no fast-math, so that sums mean what they say.
"""

from collections.abc import Callable
from typing import Any

import numba

Function = Callable[..., Any]


def kernel(function: Function) -> Function:
    """Compile a function of arrays and scalars with Numba, on its first call."""
    compiled: Function = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled


def inlined(function: Function) -> Function:
    """Compile a scalar function for use within kernels."""
    compiled: Function = numba.njit(cache=True, nogil=True, inline="always")(function)
    return compiled
