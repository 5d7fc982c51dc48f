"""Does peak memory grow with the dataset? The same documents once and ten times over.

Runs the whole command in a process of its own on the dataset, and on the dataset repeated with a
word more (copies are not tested), and compares the peaks of resident memory.

    python benchmarks/memory.py DATA --model NAME=PATH … [--times 10] [-o RESULT.json]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from result_file import finish


def peak_memory_mib(data, models, output):
    """Peak resident memory of `clsight run` in MiB."""
    pairs = [part for model in models for part in ("--model", model)]
    command = [sys.executable, "-m", "clsight.cli", "run", str(data), *pairs, "--text", "text",
               "--label", "label", "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024


def repeated(table, times):
    """The rows `times` over, each with a number at the end of its text."""
    return pa.concat_tables([
        table.set_column(0, "text", pc.binary_join_element_wise(
            table["text"].cast(pa.string()), str(i), " "))
        for i in range(times)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.data, columns=["text", "label"])
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, arguments.times):
            data = Path(folder, f"{times}.parquet")
            pq.write_table(repeated(table, times), data, row_group_size=4096)
            peaks[times] = peak_memory_mib(data, arguments.model, Path(folder, f"run-{times}"))
            print(f"{times} x {table.num_rows:,} documents: {peaks[times]:.0f} MiB",
                  file=sys.stderr)
    result = {
        "benchmark": "memory",
        "documents": table.num_rows,
        "times": arguments.times,
        "peak_mib": list(peaks.values()),
        "ratio": peaks[arguments.times] / peaks[1],
    }
    finish(result, arguments.output)


if __name__ == "__main__":
    main()
