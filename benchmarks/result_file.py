"""What the result files of all benchmarks say of the machine, and how they are written."""

import json
import platform
from pathlib import Path

import torch
import transformers

import clsight


def hardware():
    """The processor, and how many threads torch used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {"cpu": cpu, "threads": torch.get_num_threads()}


def finish(result, path):
    """Write a result with the versions that it holds for, where a path is given, and print it."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, clsight)}
    result = result | {"versions": versions, "python": platform.python_version()}
    text = json.dumps(result, indent=2)
    if path:
        path.write_text(text + "\n")
    print(text)
