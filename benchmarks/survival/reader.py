"""Reads a run while it is made: is what stands under a final name ever less than whole?

Started by `kills.py`. Looks at a run every few milliseconds, and reads every shard, plan and
database under its final name as soon as it is another file than before. A file that is gone between
listing and opening is no failure here: of what was seen whole and is gone for good, `kills.py` asks
at the end. A line on stdin names the run to look at from now on, none if it is empty; it is
answered on stdout by what was seen of the one before.
"""

import json
import os
import select
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

EVERY = 0.003
"""Seconds between two looks."""


def read_shard(path):
    """Footer and all columns."""
    pq.read_table(path, page_checksum_verification=True, partitioning=None)


def read_plan(path):
    """As JSON."""
    json.loads(path.read_bytes())


def read_database(path):
    """A question to its tables."""
    with duckdb.connect(path, read_only=True) as connection:
        connection.sql("SELECT count(*) FROM run_parameters, tested_words").fetchall()


READERS = {".parquet": read_shard, ".json": read_plan, ".duckdb": read_database}


def final(run):
    """All that stands under a final name in a run; names of temporaries begin with a dot."""
    for folder, folders, files in os.walk(run):  # which passes over what is gone already
        folders[:] = [name for name in folders if name[0] != "."]
        for name in files:
            if name[0] != "." and name.endswith(tuple(READERS)):
                yield Path(folder, name)


def failure(path):
    """Why a file cannot be read, by other means than the package's; None where it can, or is gone.
    """
    try:
        READERS[path.suffix](path)
    except (OSError, ValueError, pa.ArrowException, duckdb.Error) as error:
        return f"{path}: {error}" if path.exists() else None
    return None


class Reader:
    """What was seen of a run."""

    def __init__(self, run):
        """Nothing yet."""
        self.run, self.seen, self.failures, self.reads = run, {}, [], 0

    def look(self):
        """Read what is new."""
        for path in final(self.run):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            identity = status.st_ino, status.st_mtime_ns, status.st_size
            if self.seen.get(path) == identity:
                continue
            self.reads += 1
            if why := failure(path):
                self.failures.append(why)
            else:
                self.seen[path] = identity

    def report(self):
        """As one line."""
        return json.dumps({"reads": self.reads, "failures": self.failures,
                           "seen": [str(path) for path in self.seen]})


def main():
    reader = Reader("")
    while True:
        reader.look()
        if select.select([sys.stdin], [], [], EVERY)[0]:
            if not (line := sys.stdin.readline()):
                return
            print(reader.report(), flush=True)
            reader = Reader(line.rstrip())


if __name__ == "__main__":
    main()
