"""Jobs to workers that may die: who is free gets the next, what the dead had is given again.

The same for all executors, which say how a worker is started, reached and heard.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clsight import events
from clsight.errors import ClsightError
from clsight.events import event
from clsight.executors.jobs import Job

MOST_DEATHS = 5
"""As many workers may die with a job at hand, or before they were ready, until it is given up."""


@dataclass(frozen=True)
class Ready:
    """A worker can take so many jobs at a time."""

    in_flight: int


@dataclass(frozen=True)
class Progress:
    """Documents of a model that are done."""

    model: str
    documents: int


@dataclass(frozen=True)
class Done:
    """A job is committed."""

    job: Job


@dataclass(frozen=True)
class Failed:
    """A job cannot be done, by no worker."""

    job: Job
    error: BaseException


@dataclass(frozen=True)
class Died:
    """A worker is no more; another one is started in its place."""

    why: str


Message = Ready | Progress | Done | Failed | Died | logging.LogRecord


class Pool(Protocol):
    """Workers, by number."""

    def give(self, worker: int, job: Job) -> None:
        """Send a job to a worker that is ready."""

    def wait(self) -> Iterator[tuple[int, Message]]:
        """What workers said since the last call; waits until there is something."""


@dataclass
class _Desk:
    """Who has what."""

    waiting: deque[Job]
    at_work: dict[int, list[Job]] = field(default_factory=dict)
    """Of the workers that are ready."""
    room: dict[int, int] = field(default_factory=dict)
    deaths: Counter[Job | None] = field(default_factory=Counter)
    """With a job at hand; None: before a worker was ready."""

    def next(self) -> int | None:
        """The worker that has least, if it has room."""
        least = min(self.at_work, key=lambda worker: len(self.at_work[worker]), default=None)
        return None if least is None or len(self.at_work[least]) >= self.room[least] else least

    def bury(self, worker: int, why: str) -> None:
        """Take back what a worker had, behind all others: a job that kills comes last.

        Raises:
            ClsightError: too many died of the same job.
        """
        had = self.at_work.pop(worker, None)
        event("worker died", f"worker {worker} {why}; its {len(had or [])} shards are given to "
              "others", logging.WARNING, worker=worker, jobs=[[*job] for job in had or []])
        victims: list[Job | None] = [None] if had is None else [*had]
        for job in victims:
            self.deaths[job] += 1
            if self.deaths[job] > MOST_DEATHS:
                what = "before they had begun" if job is None else f"at {' '.join(job)}"
                raise ClsightError(f"{self.deaths[job]} workers ended {what}, the last one {why}, "
                                   "most likely for want of memory; the same command resumes")
        self.waiting.extend(had or [])


def dispatch(
    jobs: Sequence[Job], pool: Pool, progress: Callable[[str, int], None]
) -> Iterator[Job]:
    """Let workers do jobs; yields each one that is committed.

    Where one cannot be done, those that are at work are finished before its error is raised.

    Args:
        jobs: in the order in which they are given out.
        pool: the workers; none has to be there yet.
        progress: called with a model and documents that are done.

    Raises:
        ClsightError: a job failed, or too many workers died.
    """
    desk, error = _Desk(deque(jobs)), None
    while any(desk.at_work.values()) or (desk.waiting and error is None):
        while error is None and desk.waiting and (worker := desk.next()) is not None:
            job = desk.waiting.popleft()
            desk.at_work[worker].append(job)
            pool.give(worker, job)
        for worker, message in pool.wait():
            match message:
                case Ready(in_flight):
                    desk.at_work[worker], desk.room[worker] = [], in_flight
                    desk.deaths[None] = 0
                case Progress(model, documents):
                    progress(model, documents)
                case Done(job):
                    desk.at_work[worker].remove(job)
                    yield job
                case Failed(job, failure):
                    desk.at_work[worker].remove(job)
                    error = error or failure
                case Died(why):
                    desk.bury(worker, why)
                case logging.LogRecord():
                    events.log.handle(message)
    if error is not None:
        raise error
