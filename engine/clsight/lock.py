"""One process at a time works on a run; whoever dies gives it back, since the system does it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clsight import events
from clsight.errors import ClsightError

FILE = ".lock"
PATIENCE = 1.0
"""Seconds to wait: somebody may be trying whether the run is at work (`is_held`)."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep all others from working on a run.

    Raises:
        ClsightError: another process works on it; says which.
    """
    try:
        with FileLock(run / FILE, timeout=PATIENCE):
            yield
    except Timeout as error:
        raise ClsightError(f"{run} is at work in another process ({holder(run)}); wait for it, or "
                           "end it") from error


def is_held(run: Path) -> bool:
    """True while a process works on the run."""
    if not (run / FILE).is_file() or not os.access(run / FILE, os.W_OK):
        return False
    try:
        with FileLock(run / FILE, blocking=False):
            return False
    except Timeout:
        return True


def me() -> dict[str, object]:
    """Who works on a run, for its event "started"."""
    return {"process": os.getpid(), "host": socket.gethostname()}


def holder(run: Path) -> str:
    """Who was the last to begin work on a run."""
    for found in reversed(list(events.read(run))):
        if found["event"] == "started":
            return (f"process {found.get('process')} on {found.get('host')}, "
                    f"since {found['time'][:19]} UTC")
    return "one that has just begun"
