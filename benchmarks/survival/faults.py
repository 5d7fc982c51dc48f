"""A run in which the n-th change to its folder fails, falls short or is the last, for every n.

A change is a call of the system that opens a file to write, writes, syncs, sizes, renames, makes or
removes: `faults.c` counts them. After each, the folder must hold nothing half-written
under a final name, the command must have said what was wrong in a sentence, and the same command
must complete the run, with the tables of an undisturbed one.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fork_server import KINDS
from reader import failure, final
from runs import Finished

SOURCE = Path(__file__).with_name("faults.c")
DISTURBED = {
    "killed": ("kill", 0),
    "power cut": ("cut", 0),
    "disk full": ("fail-on", errno.ENOSPC),
    "short write, disk full": ("short", errno.ENOSPC),
    "input/output error": ("fail", errno.EIO),
}
"""What a trial is called -> kind of fault, error number."""
NAMED = {None: "hung", -9: "killed"}
SAID = re.compile("^clsight: .{20,}")
FULL = re.compile("^clsight: .*(disk is full|No space left on device)")
"""What the last line must say where a command fails, and where the disk is full."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command."""

    code: int | None
    """Exit code, negative for a signal; None where it hung."""
    calls: list[str]
    """Changes to its folder, in their order."""
    stderr: str

    @property
    def said(self):
        """The last line on stderr."""
        return (self.stderr.strip().splitlines() or [""])[-1]


class Server:
    """Runs the command line in forked processes, in which a fault may be armed."""

    def __init__(self, folder):
        """Compile the faults into a folder, and start the process that forks."""
        self.folder = folder
        library = folder / "faults.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl",
                        "-lpthread"], check=True)
        answers, theirs = os.pipe()
        script = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(theirs)], stdin=subprocess.PIPE, text=True,
            pass_fds=[theirs], env=os.environ | {"LD_PRELOAD": str(library)})
        os.close(theirs)
        self.answers = os.fdopen(answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.answers.close()

    def run(self, case, run, kind="count", at=0, error=0):
        """Run a case into a folder, with a fault at the n-th change of it."""
        assert kind in KINDS
        stderr = self.folder / "stderr"
        job = {"arguments": case.arguments(run), "folder": str(run), "kind": kind, "at": at,
               "errno": error, "stderr": str(stderr)}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return Outcome(**json.loads(self.answers.readline()), stderr=stderr.read_text())


def trial(server, case, reference, run, what, at):
    """What was wrong after a fault, line by line, and the disturbed command's outcome."""
    kind, error = DISTURBED[what]
    first = server.run(case, run, kind, at, error)
    half_written = [why for path in final(run) if (why := failure(path))]
    wrong = half_written + unlike_an_answer(first, kind)
    resumed = server.run(case, run)
    if resumed.code != 0:
        wrong.append(f"resume: exit code {resumed.code}: {resumed.stderr[-2000:]}")
    else:
        wrong += reference.differences(run)
    return wrong, first


def unlike_an_answer(outcome, kind):
    """What is wrong with how a disturbed command ended."""
    expected = {0, -9} if kind in ("kill", "cut") else {0, 1}
    if outcome.code not in expected:
        return [f"exit code {outcome.code}: {outcome.stderr[-2000:]}"]
    if "Traceback" in outcome.stderr or "unexpected" in outcome.said:
        return [f"not foreseen: {outcome.stderr[-2000:]}"]
    full = kind in ("fail-on", "short")
    if outcome.code == 1 and not (FULL if full else SAID).search(outcome.said):
        return [f"does not say what is wrong: {outcome.said}"]
    return []


def places(calls, every):
    """Numbers of the changes to disturb: every `every`-th write, and all others."""
    writes = 0
    for n, call in enumerate(calls, 1):
        writes += call == "write"
        if call != "write" or writes % every == 0:
            yield n


def faults(case, folder, every, kinds, say):
    """All kinds of faults in turn; what they did, for the result file."""
    with Server(folder) as server:
        counted = server.run(case, folder / "reference")
        reference = Finished.read(folder / "reference")
        chosen = list(places(counted.calls, every))
        say(f"{len(counted.calls)} changes, of which {len(chosen)} are disturbed")
        tried = {what: all_of(server, case, reference, folder, what, chosen, say)
                 for what in kinds}
    return {"changes": dict(Counter(counted.calls)), "every_so_many_writes": every, "kinds": tried}


def all_of(server, case, reference, folder, what, chosen, say):
    """One kind of fault at all the places; what it did."""
    exits, hits, failures = Counter(), Counter(), []
    for at in chosen:
        run = folder / f"{re.sub('[^a-z]+', '-', what)}-{at}"
        wrong, first = trial(server, case, reference, run, what, at)
        hit = first.calls[at - 1] if at <= len(first.calls) else "none: there were fewer"
        exits[NAMED.get(first.code, str(first.code))] += 1
        hits[hit] += 1
        if wrong:
            failures.append({"at": at, "call": hit, "wrong": wrong})
            say(f"{run} ({hit}):\n  " + "\n  ".join(wrong))
        else:
            shutil.rmtree(run)
    result = {"trials": len(chosen), "calls": dict(hits), "exits": dict(exits)}
    say(f"{what}: {result}, {len(failures)} failures")
    return {**result, "failures": failures}
