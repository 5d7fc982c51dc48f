"""A lock in object storage: an object that its holder renews, and that is free once it is not.

The first to create it holds it. Whoever finds one watches it: where it changes, its holder lives;
where it stays the same for a while, it is taken over. That needs no clock that all agree on. Work
that two have done at once all the same is no harm: shards are whole, and the same whoever made
them.
"""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from clsight import store
from clsight.errors import ClsightError
from clsight.events import event
from clsight.object_storage import Store

BEAT = 15.0
"""Seconds between two renewals."""
PATIENCE = 60.0
"""Seconds without one after which the holder counts as gone."""
LOOK = 1.0

_lost: set[Path] = set()
"""Leases that others took from this process."""


class HeldError(Exception):
    """Somebody else holds it."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lease of a path in a mirror; nothing where the path is in none.

    Nobody else on this machine may try at the same time.

    Args:
        path: the name of the lease.
        wait: until it is free.

    Raises:
        HeldError: another machine holds it.
    """
    held_in = store.of(path)
    if held_in is None:
        yield
        return
    lease = {"token": uuid4().hex, "mirror": _identity(held_in), "beat": 0}
    while not _taken(held_in, path, lease):
        if not wait:
            raise HeldError
    try:
        with store.every(BEAT, partial(_renew, held_in, path, lease)):
            yield
    finally:
        if path not in _lost:
            store.remove(path)
        _lost.discard(path)


def is_held(path: Path) -> bool:
    """True where a lease was renewed of late, by this machine's clock."""
    held_in = store.of(path)
    lease = None if held_in is None else _read(held_in, path)
    if lease is None:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(lease["time"])
    return age.total_seconds() < PATIENCE


def refuse_lost(run: Path) -> None:
    """Raise `ClsightError` where another machine has taken over, since this one was not heard of.

    Args:
        run: folder of the leases.
    """
    if any(path.parent == run for path in _lost):
        raise ClsightError(f"{run} was taken over by another machine, because this one had not "
                           f"been heard of for {PATIENCE:.0f} s; what is complete is kept")


def _identity(held_in: Store) -> str:
    """Of this machine and its mirror."""
    mark = held_in.folder / ".machine"
    if not mark.is_file():
        mark.write_text(uuid4().hex)
    return f"{socket.gethostname()} {mark.read_text()}"


def _taken(held_in: Store, path: Path, lease: dict[str, Any]) -> bool:
    """Try to take a lease; False where its holder lives."""
    if _created(held_in, path, lease):
        return True
    other = _read(held_in, path)
    # Who had it here is dead: the lock of the mirror, which comes before, says so.
    if other is not None and other["mirror"] != lease["mirror"] and _lives(held_in, path, other):
        return False
    if other is not None and _read(held_in, path) == other:
        event("taken over", f"{path.parent}: its lock is taken over from {other['mirror']}",
              logging.DEBUG, lease=other)
        store.remove(path)
    return _created(held_in, path, lease)


def _lives(held_in: Store, path: Path, seen: dict[str, Any]) -> bool:
    """Watch a lease until it changes (True) or is given up (False)."""
    event("waiting", f"{path.parent} was at work on {seen['mirror'].split()[0]}; waiting up to "
          f"{PATIENCE:.0f} s for a sign of life")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(LOOK)
        now = _read(held_in, path)
        if now != seen:
            return now is not None
    return False


def _created(held_in: Store, path: Path, lease: dict[str, Any]) -> bool:
    """Write a lease if there is none; the storage sees to it that only one can."""
    with suppress(FileExistsError):
        held_in.do("written", path, partial(held_in.filesystem.pipe_file, mode="create"),
                   held_in.name(path), _text(lease))
        return True
    # A request whose answer was lost was repeated, and found what it had written itself.
    found = _read(held_in, path)
    return found is not None and found["token"] == lease["token"]


def _renew(held_in: Store, path: Path, lease: dict[str, Any]) -> None:
    found = _read(held_in, path)
    if found is not None and found["token"] != lease["token"]:
        _lost.add(path)
        return
    lease["beat"] += 1
    held_in.do("written", path, held_in.filesystem.pipe_file, held_in.name(path), _text(lease))


def _read(held_in: Store, path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(
            held_in.do("read", path, held_in.filesystem.cat_file, held_in.name(path)))
    except FileNotFoundError:
        return None
    return found


def _text(lease: dict[str, Any]) -> bytes:
    return json.dumps({**lease, "time": datetime.now(UTC).isoformat()}).encode()
