"""One process at a time works on a run, or several that each have a part of its shards.

Whoever dies gives its lock back, since the system does it.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clsight import events, lease, store
from clsight.errors import ClsightError, listed
from clsight.parts import Part

FILE = ".lock"
PATIENCE = 1.0
"""Seconds to wait: somebody may be trying whether the run is at work (`is_held`)."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep all others from working on a run.

    Raises:
        ClsightError: another process works on it; says which.
    """
    with _held(run, FILE):
        if at_work := [file for file in _parts(run) if _is_held(run / file)]:
            raise ClsightError(f"{run} is at work in parts, by {len(at_work)} processes "
                               f"({listed(at_work)}); wait for them, or end them")
        yield


@contextmanager
def part_held(run: Path, part: Part) -> Iterator[None]:
    """Keep others from a part of a run, and from all of it.

    Raises:
        ClsightError: another process has the same part.
    """
    with _held(run, f"{FILE}-{part.first}-of-{part.n}"):
        yield


@contextmanager
def turn(run: Path) -> Iterator[None]:
    """Wait until nobody else prepares the run for its parts, and be the one who does."""
    lock = FileLock(run / FILE)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        events.event("waiting", f"waiting for {holder(run)}, which prepares {run}")
        lock.acquire()
    try:
        with lease.held(run / FILE, wait=True):
            store.reconcile(run)
            yield
    finally:
        lock.release()


@contextmanager
def _held(run: Path, file: str) -> Iterator[None]:
    try:
        with FileLock(run / file, timeout=PATIENCE), lease.held(run / file):
            store.reconcile(run)
            yield
    except (Timeout, lease.HeldError) as error:
        raise ClsightError(f"{run} is at work in another process ({holder(run)}); wait for it, or "
                           "end it") from error


def is_held(run: Path) -> bool:
    """True while a process works on the run, or on a part of it."""
    return any(_is_held(run / file) for file in (FILE, *_parts(run)))


def _parts(run: Path) -> list[str]:
    return sorted(name for name in store.names(run) if name.startswith(f"{FILE}-"))


def _is_held(path: Path) -> bool:
    if lease.is_held(path):
        return True
    if not path.is_file() or not os.access(path, os.W_OK):
        return False
    try:
        with FileLock(path, blocking=False):
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
