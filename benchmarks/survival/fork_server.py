"""A process that has imported everything, and forks one that runs the command line for each job.

Started by `faults.py` with `faults.c` preloaded. Reads jobs from stdin, one JSON
object a line, and writes what became of each to the file descriptor that it is given. Libraries
begin their threads when they are first used, so in the child.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module

CALLS = ("open", "write", "fsync", "truncate", "allocate", "rename", "mkdir", "unlink")
"""As faults.c counts them."""
KINDS = ("count", "fail", "fail-on", "short", "kill", "cut")
LIMIT = 120.0
"""Seconds after which a child counts as hung."""


def child(job, faults):
    """The command line, as `clsight` runs it; never returns."""
    from clsight import cli

    output = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(output, 2)
    sys.argv = ["clsight", *job["arguments"]]
    faults.fault_arm(job["folder"].encode(), job["at"], KINDS.index(job["kind"]), job["errno"])
    try:
        cli.main()
    except BaseException:  # as the interpreter does at its end
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def ended(process):
    """A child's exit code, negative for a signal; None where it had to be killed."""
    begun = time.monotonic()
    while time.monotonic() - begun < LIMIT:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def main():
    faults = ctypes.CDLL(None)
    from clsight.cli.running import import_engine

    import_engine()
    for name in ("pandas", "rich.progress", "clsight.build", "clsight.output", "clsight.screen"):
        import_module(name)
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            job = json.loads(line)
            process = os.fork()
            if not process:
                child(job, faults)
            code = ended(process)
            calls = [CALLS[faults.fault_call(n + 1)] for n in range(faults.fault_calls())]
            print(json.dumps({"code": code, "calls": calls}), file=answers, flush=True)


if __name__ == "__main__":
    main()
