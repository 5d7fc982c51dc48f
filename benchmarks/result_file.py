"""What the result files of all benchmarks say of the machine, and how they are written."""

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import clsight
from clsight.clock import matrix_peak

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and models beside the project."""


def hardware():
    """The processor, and how many threads torch used."""
    lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if line]
    # The first core's; names alone say too little: two generations are called the same.
    said = {key.strip(): value.strip() for key, value in reversed(lines)}
    family = f"family {said['cpu family']}, model {said['model']}"
    return {"cpu": f"{said['model name']} ({family})", "threads": torch.get_num_threads()}


def peaks():
    """What the hardware reaches now: matrix products in operations, copies in bytes a second."""
    source = np.ones(1 << 26, dtype=np.float32)
    target, copies = np.empty_like(source), []
    for _ in range(3):
        started = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - started)
    matrix = {f"matrix_{dtype}": matrix_peak(dtype, "cpu") for dtype in ("bfloat16", "float32")}
    return matrix | {"copy": source.nbytes / min(copies)}


def finish(result, path):
    """Write a result with the versions that it holds for, where a path is given, and print it."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, clsight)}
    result = result | {"versions": versions, "python": platform.python_version()}
    text = json.dumps(result, indent=2)
    if path:
        path.write_text(text + "\n")
    print(text)
