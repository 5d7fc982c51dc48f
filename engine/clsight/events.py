"""What happens in a run, as structured events: one JSON object a line in RUN/log/events.jsonl.

An event is a record of the package's logger, so that it also reaches the screen, and whatever a
program that uses clsight does with logs.
"""

import heapq
import json
import logging
import logging.handlers
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clsight.errors import ClsightError, Stopped

FILE = "log/events.jsonl"
_STEM = Path(FILE).stem
EVERY = 5.0
"""Least seconds between two events "progress" of a stage."""

log = logging.getLogger("clsight")


def event(kind: str, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    """Say that something happened: `kind` and `fields` for programs, `message` for people.

    >>> event("retried", "bert: row 17 is computed again in float32", model="bert", rows=[17])
    """
    log.log(level, message or kind, extra={"event": kind, "fields": fields})


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The events of a run, oldest first, each with `time`, `level`, `event` and `message`.

    A line that was cut off (by a loss of power) is left out. Events of processes that had a part of
    the run have that `part`.
    """
    from clsight import store  # which says events itself

    store.catch_up((run / FILE).parent)
    files = [path for path in (run / FILE, *sorted((run / FILE).parent.glob(_file("*")))) if
             path.is_file()]
    yield from heapq.merge(*map(_read, files), key=lambda found: found["time"])


def _read(path: Path) -> Iterator[dict[str, Any]]:
    part = path.stem.removeprefix(f"{_STEM}-") if path.stem != _STEM else None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and {"time", "event"} <= found.keys():
                yield found if part is None else {**found, "part": part.replace("-of-", "/")}


def _file(part: str) -> str:
    """File name of the events of a part."""
    return f"{_STEM}-{part.replace('/', '-of-')}.jsonl"


@contextmanager
def kept() -> Iterator[list[logging.LogRecord]]:
    """The block's events, for a run that has no folder yet; see `logged`."""
    records: list[logging.LogRecord] = []
    handler = _Kept(records)
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)


@contextmanager
def logged(
    run: Path, before: Sequence[logging.LogRecord] = (), part: str | None = None
) -> Iterator[None]:
    """Append the block's events to the run's file; an error that ends it is one of them.

    Args:
        run: the run folder.
        before: events that were `kept` until there was a file.
        part: of the run, such as "0/4", whose events have a file of their own.
    """
    from clsight import store

    path = run / FILE if part is None else (run / FILE).with_name(_file(part))
    path.parent.mkdir(parents=True, exist_ok=True)
    store.catch_up(path.parent)
    _end_last_line(path)
    handler, level = _Lines(path, encoding="utf-8", errors="backslashreplace"), log.level
    handler.setFormatter(_Json())
    for record in before:
        handler.handle(record)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    with store.followed(path):
        try:
            yield
        except (ClsightError, Stopped) as error:
            event("stopped", str(error), logging.ERROR, error=type(error).__name__)
            raise
        except BaseException as error:
            event("stopped", f"{type(error).__name__}: {error}", logging.ERROR,
                  error=type(error).__name__, trace=traceback.format_exc())
            raise
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            handler.close()


class Heartbeat:
    """Says "progress" every few seconds, so that others see how far a run is, and that it lives."""

    def __init__(self) -> None:
        """Nothing is said yet."""
        self._done: dict[str, int] = {}
        self._said: dict[str, float] = {}

    def __call__(self, stage: str, documents: int, total: int) -> None:
        """Count documents that were done in a stage; `total` 0 where it is not known."""
        self._done[stage] = done = self._done.get(stage, 0) + documents
        now = time.monotonic()
        if now - self._said.get(stage, -EVERY) >= EVERY or (documents and done == total):
            self._said[stage] = now
            event("progress", f"{stage}: {done} documents", logging.DEBUG, stage=stage, done=done,
                  total=total or None)


def send(say: Callable[[logging.LogRecord], None]) -> None:
    """Send this process's events to another, which passes them on with `log.handle`.

    Args:
        say: takes each event, made fit to be pickled.
    """
    log.addHandler(_Sender(say))
    log.setLevel(logging.DEBUG)


class _Kept(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        """Where records go."""
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


class _Sender(logging.handlers.QueueHandler):
    def __init__(self, say: Callable[[logging.LogRecord], None]) -> None:
        """What takes records."""
        super().__init__(queue.SimpleQueue())
        self._say = say

    def enqueue(self, record: logging.LogRecord) -> None:
        """What `prepare` has made fit to be sent."""
        self._say(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line; JSON escapes whatever would end it or move a terminal's cursor."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({
            "time": when, "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"), "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }, default=str)


class _Lines(logging.FileHandler):
    """A file that may stop to take lines (a full disk): said once, and no reason to stop a run."""

    failed = False

    def close(self) -> None:
        """What is still to be written may not fit either."""
        try:
            super().close()
        except OSError:
            self.handleError(None)

    def handleError(self, record: logging.LogRecord | None) -> None:  # noqa: N802 (logging's)
        if not self.failed:
            self.failed = True
            print(f"clsight: {self.baseFilename} cannot be written: {sys.exc_info()[1]}; events "
                  "from here on may be missing", file=sys.stderr)


def _end_last_line(path: Path) -> None:
    """A line that was cut off must not swallow the next one."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
