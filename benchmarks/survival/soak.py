"""A long run that is killed several times: does memory grow, does it slow down, is it right?

The real reviews over and over with ids of their own; at the end all counts must be right, and every
prediction that of the same review in a run of a single copy. Batches are others there, so floats
differ by rounding.
"""

import random
import subprocess
import time
from datetime import datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kills import shards_in, started
from runs import REAL, real

from clsight import database, events

KILLS = 5
EVERY = 0.25
"""Seconds between two samples of memory."""
SINGLE = pq.read_metadata(REAL).num_rows if REAL.exists() else 0
COUNTS = "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM predictions), " \
         "(SELECT count(*) FROM words)"


def write_reviews(path, documents):
    """The real reviews as often as it takes, with their number as id."""
    reviews = pq.read_table(REAL, columns=["text", "label"])
    schema = pa.schema([pa.field("id", pa.int64()), *reviews.schema])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, documents, SINGLE):
            part = reviews.slice(0, min(SINGLE, documents - first))
            ids = pa.array(range(first, first + len(part)), pa.int64())
            writer.write_table(pa.table([ids, *part.columns], schema=schema))


def memory_mib(process):
    """Resident memory; 0 where the process has ended."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0


def session(case, run, until):
    """Run until so many shards are extracted, or to the end.

    Returns samples (seconds, MiB, shards extracted), and the exit code.
    """
    samples, begun = [], time.monotonic()
    with started(case, run) as process:
        while process.poll() is None:
            done = shards_in(run / "bert" / "attention")
            samples.append((time.monotonic() - begun, memory_mib(process.pid), done))
            if done >= until:
                break
            time.sleep(EVERY)
    return np.array(samples), process.returncode


def described(samples, n_shards):
    """A session's memory, over all of it and while it extracted."""
    time_, mib, done = samples.T
    during = (done > done[0]) & (done < n_shards)
    result = {"seconds": time_[-1], "shards": done[-1] - done[0], "peak_mib": mib.max()}
    if during.sum() >= 20:
        seconds, mib = time_[during], mib[during]
        tenths = np.array_split(mib, 10)
        result |= {
            "extraction_peak_mib": mib.max(),
            "slope_mib_a_minute": 60 * np.polyfit(seconds, mib, 1)[0],
            "last_tenth_over_second": tenths[-1].mean() / tenths[1].mean(),
        }
    return {name: round(float(value), 3) for name, value in result.items()}


def rates(run):
    """Documents a second in each fifth of the extraction, without what restarts took."""
    took, last = [], None
    for found in events.read(run):
        if found["event"] == "started":
            last = None
        if found["event"] == "extracted":
            now = datetime.fromisoformat(found["time"])
            if last is not None:
                took.append((found["n_documents"], (now - last).total_seconds()))
            last = now
    bounds = np.linspace(0, len(took), 6).astype(int)
    return [round(n / seconds) for n, seconds in
            (np.sum(took[begin:end], axis=0) for begin, end in pairwise(bounds))]


def predictions(run):
    """In the order of the dataset: predicted classes, and probabilities."""
    with database.connect(run) as connection:
        table = connection.sql('SELECT predicted, confidence FROM predictions ORDER BY "row"')
        table = table.to_arrow_table()
        return table["predicted"].to_numpy(), table["confidence"].to_numpy()


def counts(run):
    """Documents, predictions, words."""
    with database.connect(run) as connection:
        return connection.sql(COUNTS).fetchall()[0]


def expected_words(single, documents):
    """Words of as many documents, by those of a single copy."""
    with database.connect(single) as connection:
        words = connection.sql('SELECT n_words FROM documents ORDER BY "row"').to_arrow_table()
    return int(words["n_words"].to_numpy()[np.arange(documents) % SINGLE].sum())


def soak(folder, documents, seed, say):
    """A long run with kills; what it did, for the result file."""
    data, run, single = folder / "reviews.parquet", folder / "run", folder / "single"
    write_reviews(data, documents)
    case = real(["bert-rt"], data, shard_size=4096, options=("--id", "id"))
    subprocess.run(real(["bert-rt"], shard_size=4096).command(single), check=True,
                   capture_output=True)
    n_shards, draw = -(-documents // case.shard_size), random.Random(seed)
    sessions = []
    for i in range(KILLS + 1):
        share = (i + 0.5 + draw.random()) / (KILLS + 1)
        until = max(1, int(share * n_shards)) if i < KILLS else n_shards + 1
        samples, code = session(case, run, until)
        sessions.append({"exit": code, **described(samples, n_shards)})
        say(str(sessions[-1]))
    (predicted, confidence), (once, sure) = predictions(run), predictions(single)
    row = np.arange(documents) % SINGLE
    made = counts(run)
    return {
        "documents": documents, "sessions": sessions, "documents_a_second_by_fifth": rates(run),
        "counts": dict(zip(("documents", "predictions", "words"), made, strict=True)),
        "counts_are_right": made == (documents, documents, expected_words(single, documents)),
        "other_predictions": int((predicted != once[row]).sum()),
        "greatest_difference_of_confidence": float(np.abs(confidence - sure[row]).max()),
    }
