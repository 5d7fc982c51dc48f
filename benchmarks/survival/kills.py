"""Runs that are killed at random moments, and resumed by the same command.

One half of the moments is uniform over the duration of an undisturbed run, one in each of as many
equal parts; the other half takes the stages in turn, and is uniform over the duration of each,
counted from when the folder shows that it has begun: some stages are too short to be hit otherwise.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from runs import Finished

PAUSE = 0.002
EVERY = 10
"""Trials after which figures are told."""


def stage(run, models):
    """What a run is at, by its folder alone."""
    try:
        plan = json.loads((run / "plan.json").read_bytes())
    except FileNotFoundError:
        return "start"
    if plan["n_rows"] is None:
        return "documents"
    n_shards = -(-plan["n_rows"] // plan["shard_size"])
    for model in models:
        if shards_in(run / model / "attention") < n_shards:
            return model
    if any(shards_in(run / model / "scores") < n_shards for model in models):
        return "scores"
    return "end" if (run / "clsight.duckdb").exists() else "statistics"


def shards_in(folder):
    with suppress(FileNotFoundError):
        return sum(name.endswith(".parquet") and name[0] != "." for name in os.listdir(folder))
    return 0


@dataclass
class Undisturbed:
    """A run that was left alone: what it holds, and when its stages were seen to begin."""

    finished: Finished
    seconds: float
    stages: dict[str, float]
    """Seconds of each."""


def undisturbed(case, run):
    """Run a case twice, once for what only the first run of a machine does, and time the second."""
    for _ in range(2):
        shutil.rmtree(run, ignore_errors=True)
        begun, seen = time.monotonic(), {}
        with started(case, run) as process:
            while process.poll() is None:
                seen.setdefault(stage(run, case.models), time.monotonic() - begun)
                time.sleep(PAUSE)
        seconds = time.monotonic() - begun
        if process.returncode:
            raise SystemExit(f"{' '.join(case.command(run))} failed")
    ends = [*list(seen.values())[1:], seconds]
    stages = {name: end - begin for (name, begin), end in zip(seen.items(), ends, strict=True)}
    return Undisturbed(Finished.read(run), seconds, stages)


@contextmanager
def started(case, run):
    """The command as a group of processes, which is killed if it still runs."""
    process = subprocess.Popen(case.command(run), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def moments(known, trials, seed):
    """(stage to wait for, seconds from its beginning), for each trial."""
    draw, uniform = random.Random(seed), trials - trials // 2
    yield from (("start", known.seconds * (i + draw.random()) / uniform) for i in range(uniform))
    names = list(known.stages)
    for i in range(trials // 2):
        name = names[i % len(names)]
        yield name, known.stages[name] * draw.random()


def kill(case, run, awaited, seconds):
    """Start a run, and kill it at a moment; the stage it was at, and whether it lived till then."""
    with started(case, run) as process:
        while process.poll() is None and awaited != "start" and stage(run, case.models) != awaited:
            time.sleep(PAUSE)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        lived = process.poll() is None
    return stage(run, case.models), lived


@dataclass
class Tally:
    """What all trials of a case came to."""

    killed_at: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)
    failures: list = field(default_factory=list)

    def result(self):
        """For the result file."""
        return {**{name: self.counts[name] for name in COUNTED},
                "killed_at": dict(self.killed_at), "failures": self.failures}


COUNTED = ("trials", "resumes_failed", "unequal", "lost", "doubled", "half_written_seen",
           "vanished", "shards_at_kill", "made_again", "files_read")
"""`vanished`: seen whole once, and not there in the end. `made_again`: of the shards of attention
that were there when the run was killed (`shards_at_kill`), those that the resume computed again."""


class Watch:
    """The process that reads along."""

    def __init__(self):
        script = Path(__file__).with_name("reader.py")
        self.process = subprocess.Popen([sys.executable, str(script)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def turn_to(self, run=""):
        """Look at a run from now on, or at none; what was seen of the one before."""
        print(run, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def kills(case, folder, trials, seed, say):
    """Kill and resume a case many times; yields what came of it so far, for the result file."""
    known = undisturbed(case, folder / f"{case.name}-undisturbed")
    say(f"{case.name}, undisturbed: {known.seconds:.1f} s, {known.stages}")
    tally = Tally()
    with Watch() as watch:
        for i, moment in enumerate(moments(known, trials, seed)):
            run = folder / f"{case.name}-{i}"
            if wrong := trial(case, known, run, moment, watch, tally):
                tally.failures.append({"trial": i, "moment": moment, "wrong": wrong})
                say(f"{run}, killed at {moment}:\n  " + "\n  ".join(wrong))
            else:
                shutil.rmtree(run)
            if (i + 1) % EVERY == 0 or i + 1 == trials:
                yield {"undisturbed_seconds": round(known.seconds, 2), **tally.result()}


def trial(case, known, run, moment, watch, tally):
    """Kill, resume and compare; what was wrong, line by line."""
    watch.turn_to(run)
    at, lived = kill(case, run, *moment)
    tally.killed_at[at if lived else "ended before"] += 1
    before = attention(run)
    resumed = subprocess.run(case.command(run), capture_output=True, text=True, check=False)
    seen = watch.turn_to()
    vanished = [path for path in seen["seen"] if not Path(path).exists()]
    again = [path for path, file in attention(run).items() if before.get(path, file) != file]
    tally.counts.update(
        trials=1, resumes_failed=resumed.returncode != 0, half_written_seen=len(seen["failures"]),
        vanished=len(vanished), shards_at_kill=len(before), made_again=len(again),
        files_read=seen["reads"])
    wrong = [*seen["failures"], *(f"{path} vanished" for path in vanished)]
    if resumed.returncode:
        return [*wrong, f"resume: exit code {resumed.returncode}: {resumed.stderr[-2000:]}"]
    differences = known.finished.differences(run)
    lost, doubled = known.finished.lost_and_doubled(run)
    tally.counts.update(unequal=bool(differences), lost=lost, doubled=doubled)
    return wrong + differences


def attention(run):
    """Path of each shard of attention -> which file it is."""
    return {path: path.stat().st_ino for path in run.glob("*/attention/[0-9]*.parquet")}
