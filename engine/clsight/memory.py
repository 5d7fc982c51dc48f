"""Keep what libraries hoard from growing with the dataset."""

import ctypes
import os

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""glibc's mallopt parameters (malloc.h)."""
KEPT = 512 << 20
"""Bytes of free memory that glibc keeps: more than the activations of a batch take."""


def bound() -> None:
    """Bound the caches of glibc, oneDNN and Arrow; call it before threads start.

    glibc gives each thread an arena of its own and never moves free memory between them: with one
    arena for all, ten times the documents took 1.05 times the peak instead of 1.10 (2 cores,
    float32, three models), in the same time. oneDNN keeps the code that it makes for each shape,
    and packed batches have many (the setting is read at its first use in a process).

    Activations of 25 to 50 MB that go back to the system are fetched from it again page by page in
    the next layer: kept, BERT-base reads 272 instead of 233 to 284 reviews a second in bfloat16
    (which of these was chance) and 67 instead of 61 in float32.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


def release() -> None:
    """Give memory that is free back to the system, where glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
