"""Questions to a run that is open: so many at once, for so long, in so much memory."""

import asyncio
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import duckdb
from fastapi import HTTPException

from clsight import __version__, database
from clsight import plan as plans
from clsight.errors import ClsightError, said
from clsight.tables import DATABASE

SECONDS = 30.0
"""For one question, once its turn has come."""
LIMITS = {"memory_limit": "1GB", "temp_directory": "", "threads": "1"}
"""Of DuckDB for all questions together. It writes no temporary files: a run is only read. A thread
for each question, and no more: sums come out the same to the last digit each time, pages in the
same order, and many questions wait less for each other."""
AT_ONCE = max(2, min(8, os.cpu_count() or 2))
MOST_WAITING = 1000
KEPT_BYTES = 64 << 20
"""Of answers that are kept, those asked for last. Their key says all that they depend on."""
KEPT_SHARE = 16
"""One answer may take a part of so many of it."""
SOON = {"Retry-After": "2"}

T = TypeVar("T")
Work = Callable[[duckdb.DuckDBPyConnection], T]
Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """The body of an answer to a question."""

    content: bytes
    media_type: str
    rows: int | None = None
    more: bool = False
    encoding: str | None = None


def identity(run: Path) -> Identity | None:
    """What tells a run's database file from another one under its name; None where it is missing.

    A run that is changed loses its database first, and gets a new one last.
    """
    try:
        found = (run / DATABASE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class Opened:
    """The database of a run for as long as its file is the same; a cursor for each question."""

    def __init__(self, run: Path) -> None:
        """Open it.

        Raises:
            ClsightError: it is not there, or damaged.
        """
        self.run, self.identity, self.plan = run, identity(run), plans.load(run)
        self.connection = database.connect(run, LIMITS)
        self._slots = anyio.CapacityLimiter(AT_ONCE)
        self._asking: set[duckdb.DuckDBPyConnection] = set()
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._kept = Kept(KEPT_BYTES)
        self._closed, self._lock = False, threading.Lock()

    def etag(self, *request: object) -> str:
        """A strong validator: equal for the same request to the same run, byte for byte."""
        seen = [__version__, duckdb.__version__, self.plan.fingerprint, self.identity, request]
        return f'"{hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]}"'

    async def answer(self, key: str, work: Work[Answer]) -> Answer:
        """The answer with this key: kept, or being worked out for somebody else, or new.

        Raises:
            HTTPException: see `ask`.
        """
        if (kept := self._kept.get(key)) is not None:
            return kept
        if key not in self._under_way:
            task = self._under_way[key] = asyncio.create_task(self.ask(work))
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(self._under_way[key])

    def _end(self, key: str, done: "asyncio.Task[Answer]") -> None:
        del self._under_way[key]
        if not done.cancelled() and done.exception() is None:
            self._kept.put(key, done.result())

    async def ask(self, work: Work[T]) -> T:
        """Call `work` with a cursor in a thread, when its turn has come.

        Raises:
            HTTPException: too many wait, it took too long or too much memory, or the run changed.
        """
        if self._slots.statistics().tasks_waiting >= MOST_WAITING:
            raise HTTPException(503, f"{MOST_WAITING:,} questions wait already; ask later", SOON)
        return await anyio.to_thread.run_sync(self._asked, work, limiter=self._slots)

    def _asked(self, work: Work[T]) -> T:
        with self._lock:
            if self._closed:
                raise _changed()
            cursor = self.connection.cursor()
            self._asking.add(cursor)
        try:
            found = self._timed(work, cursor)
        finally:
            cursor.close()
            self._asking.discard(cursor)
        if identity(self.run) != self.identity:
            raise _changed()
        return found

    def _timed(self, work: Work[T], cursor: duckdb.DuckDBPyConnection) -> T:
        ended = threading.Event()

        def end() -> None:
            ended.set()
            _interrupt(cursor)

        clock = threading.Timer(SECONDS, end)
        clock.start()
        try:
            return work(cursor)
        except (ClsightError, duckdb.Error) as error:
            raise self._refusal(error, ended.is_set()) from error
        finally:
            clock.cancel()

    def _refusal(self, error: Exception, ended: bool) -> HTTPException:
        if identity(self.run) != self.identity:
            return _changed()
        if ended:
            return HTTPException(504, f"the question took longer than {SECONDS:g} seconds and was "
                                      "ended; ask for less (model, document_id, form, …)")
        if isinstance(error.__cause__ or error, duckdb.OutOfMemoryException):
            most = LIMITS["memory_limit"]
            return HTTPException(503, f"the question needs more memory than there is ({most} for "
                                      "all at once); ask for less (model, document_id, form, …)",
                                 SOON)
        return HTTPException(503, f"{said(error)}; clsight verify {self.run.name} --repair makes "
                                  "again what is damaged")

    async def close(self) -> None:
        """End all questions; DuckDB opens a file anew only when nothing holds the old one."""
        with self._lock:
            self._closed = True
        while self._asking:
            for cursor in self._asking.copy():
                _interrupt(cursor)
            await asyncio.sleep(0.01)
        self.connection.close()


def _interrupt(cursor: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # it has just come to its end
        cursor.interrupt()


def _changed() -> HTTPException:
    return HTTPException(503, "the run has just been changed; ask again", SOON)


class Kept:
    """Answers by key, within a number of bytes; the one that was not asked for longest goes."""

    def __init__(self, most: int) -> None:
        """None yet."""
        self._most, self._bytes = most, 0
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def get(self, key: str) -> Answer | None:
        """The answer, if it is kept."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep it, unless it is large."""
        if len(answer.content) > self._most // KEPT_SHARE:
            return
        self._answers[key] = answer
        self._bytes += len(answer.content)
        while self._bytes > self._most:
            _, gone = self._answers.popitem(last=False)
            self._bytes -= len(gone.content)
