"""Keep what libraries hoard from growing with the dataset."""

import ctypes
import os

import pyarrow as pa

_M_ARENA_MAX = -8
"""glibc's mallopt parameter (malloc.h)."""


def bound() -> None:
    """Bound the caches of glibc, oneDNN and Arrow; call it before threads start.

    glibc gives each thread an arena of its own and never moves free memory between them: with one
    arena for all, ten times the documents took 1.05 times the peak instead of 1.10 (2 cores,
    float32, three models), in the same time. oneDNN keeps the code that it makes for each shape,
    and packed batches have many (the setting is read at its first use in a process). Telling glibc
    to return every block of a megabyte would save as much again, and cost a third more time.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def release() -> None:
    """Give memory that is free back to the system, where glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
