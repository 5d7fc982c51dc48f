"""SIGTERM and SIGINT end a run within seconds, with a word on what is kept."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from clsight.errors import ClsightError, Stopped
from clsight.events import event

GRACE = 3.0
"""Seconds for an orderly end, in which the shard that is being written is finished. Compiled code
(a batch, a permutation test, a query) may hold Python up for longer; everything on disk is whole at
any moment, so that the process may then simply end."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Turn signals in the block into a `ClsightError`, or, where nothing moves, end the process.

    Args:
        kept: says what is kept of the work.

    Raises:
        ClsightError: a signal came.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    # C code writes the signal's number here at once, where Python's handler waits for its turn.
    woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(ours, kept), daemon=True).start()
    try:
        yield
    except Stopped as stopped:
        raise ClsightError(_said(str(stopped), kept)) from stopped
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        ours.close()


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(f"stopped by {signal.Signals(number).name}")


def _end_in_time(signals: socket.socket, kept: Callable[[], str]) -> None:
    """Wait for a signal; end the process a little later, or at once at a second signal."""
    with suppress(OSError):  # the sockets are closed where the block has ended
        while (number := signals.recv(1)) and number[0] not in _SIGNALS:
            pass
        if not number:
            return
        signals.settimeout(GRACE)
        with suppress(TimeoutError):
            if not signals.recv(1):
                return
        stopped = f"stopped by {signal.Signals(number[0]).name}"
        event("stopped", stopped, logging.ERROR)
        os.write(sys.stderr.fileno(), f"\nclsight: {_said(stopped, kept)}\n".encode())
        os._exit(1)


def _said(stopped: str, kept: Callable[[], str]) -> str:
    return f"{stopped}; {kept()}; the same command goes on from there"
