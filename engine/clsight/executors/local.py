"""Workers on this machine: one in this process, or a process for each."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from clsight import events
from clsight.clock import Clock
from clsight.errors import UsageError, listed
from clsight.executors.dispatch import Died, Done, Failed, Message, Progress, Ready, dispatch
from clsight.executors.jobs import Job, Make, Place, Report, Worker

SECONDS = 10.0
"""How long processes have for an orderly end."""


@dataclass(frozen=True)
class Local:
    """This machine."""

    places: Sequence[Place]
    """One for each process; a single worker is in this one."""

    @property
    def n_workers(self) -> int:
        """See `Executor`."""
        return len(self.places)

    @property
    def elsewhere(self) -> bool:
        """See `Executor`."""
        return False

    def without_cards(self) -> "Local":
        """See `Executor`."""
        return Local([Place("cpu", place.cores) for place in self.places])

    def best_dtype(self) -> str:
        """See `Executor`."""
        from clsight.extractor import best_dtype

        return best_dtype(self.places[0].device.partition(":")[0])

    def run(self, make: Make, jobs: Sequence[Job], report: Report, clock: Clock) -> Iterator[Job]:
        """See `Executor`."""
        if len(self.places) == 1:
            yield from _here(make, self.places[0], jobs, report, clock)
            return
        with Processes(make, self.places, clock.detailed) as pool:
            yield from dispatch(jobs, pool, report)
            for other in pool.end():
                clock.add(other, 1 / len(self.places))

    def __str__(self) -> str:
        """For the log: "on cpu", "by 4 workers on cuda:0, …"."""
        on = f"on {listed(list(dict.fromkeys(place.device for place in self.places)))}"
        return on if len(self.places) == 1 else f"by {len(self.places)} workers {on}"


def local(device: str, workers: int | None) -> Local:
    """A worker for each card, or so many of them.

    Raises:
        UsageError: there are fewer cards.
    """
    from clsight.extractor import devices

    found = devices(device)
    n = len(found) if workers is None else workers
    if found == ["cpu"]:
        found *= n
    elif n > len(found):
        raise UsageError(f"--workers {n}: here are {len(found)} cards, and each worker takes one")
    cores = None
    if n > 1:
        cores = max(1, (os.cpu_count() or 1) // n)
        _context()  # its imports take some seconds, while documents are read
    return Local([Place(one, cores) for one in found[:n]])


def _here(
    make: Make, place: Place, jobs: Sequence[Job], report: Report, clock: Clock
) -> Iterator[Job]:
    worker = make(place, report, clock)
    with threads(worker.in_flight) as callers, worker:
        taken = [callers.submit(worker.take, job) for job in jobs]
        for job, one in zip(jobs, taken, strict=True):
            one.result()
            yield job


class Processes:
    """A process for each place, each with a pipe of its own: what dies takes no other along."""

    def __init__(self, make: Make, places: Sequence[Place], detailed: bool) -> None:
        """Processes that are started on entry.

        Args:
            make: makes a worker.
            places: one for each process.
            detailed: kind of their clocks.
        """
        self._make, self._places, self._detailed = make, places, detailed
        self._context = _context()
        self._processes: dict[int, Any] = {}
        self._pipes: dict[int, Connection] = {}

    def __enter__(self) -> Self:
        """Start them."""
        for worker in range(len(self._places)):
            self._start(worker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them, whatever they are at; files take their names when they are whole."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join()

    def give(self, worker: int, job: Job) -> None:
        """Send a job; where the process has just died, `wait` says so."""
        self._send(worker, job)

    def wait(self) -> Iterator[tuple[int, Message]]:
        """What processes said; one that died is started again."""
        workers = {pipe: worker for worker, pipe in self._pipes.items()}
        for pipe in wait([*workers]):
            assert isinstance(pipe, Connection)
            worker = workers[pipe]
            try:
                yield worker, pipe.recv()
            except (EOFError, OSError):
                yield worker, Died(self._how_it_ended(worker))
                self._start(worker)

    def end(self) -> Iterator[Clock]:
        """Let all end in order; gives their clocks."""
        for worker, pipe in self._pipes.items():
            self._send(worker, None)
            try:
                while not isinstance(said := pipe.recv(), Clock):
                    if isinstance(said, logging.LogRecord):
                        events.log.handle(said)
                yield said
            except (EOFError, OSError):  # all jobs are done: it is of no account how it ended
                continue
            self._processes[worker].join(SECONDS)

    def _start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        self._pipes[worker] = ours
        self._processes[worker] = self._context.Process(
            target=_work, args=(theirs, self._make, self._places[worker], self._detailed),
            name=f"clsight worker {worker}")
        self._processes[worker].start()
        theirs.close()

    def _send(self, worker: int, job: Job | None) -> None:
        with suppress(OSError):
            self._pipes[worker].send(job)

    def _how_it_ended(self, worker: int) -> str:
        process = self._processes[worker]
        self._pipes[worker].close()
        process.join()
        code = process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _context() -> Any:
    """Processes forked from one that has imported what they need, and has no threads and no card.

    A fresh interpreter would take some seconds for each, most of them for torch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clsight.extract", "clsight.scores", "clsight.block_tests"])
    forkserver.ensure_running()
    return context


def _work(pipe: Connection, make: Make, place: Place, detailed: bool) -> None:
    """Do the jobs that come through a pipe until there is none more; say what happens."""
    begin_child()
    sending, clock = threading.Lock(), Clock(detailed)

    def say(message: Message | Clock) -> None:
        with sending:
            pipe.send(message)

    def take(job: Job) -> None:
        say(outcome(worker, job))

    events.send(say)
    worker = make(place, lambda model, n: say(Progress(model, n)), clock)
    with threads(worker.in_flight) as callers, worker:
        say(Ready(worker.in_flight))
        for job in iter(pipe.recv, None):
            callers.submit(take, job)
    say(clock)


def outcome(worker: Worker, job: Job) -> Done | Failed:
    """Do a job; an error keeps its trace as a note, and is one that can be sent."""
    try:
        worker.take(job)
    except BaseException as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return Failed(job, error)
    return Done(job)


@contextmanager
def threads(n: int, begin: Callable[[], None] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """Threads that end what they are at; what waits behind it is dropped if the block fails."""
    pool = ThreadPoolExecutor(n, initializer=begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def begin_child() -> None:
    """Live as long as the parent and no longer, also where it is killed and can say nothing.

    Ctrl-C reaches all processes of a terminal, and is the parent's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
