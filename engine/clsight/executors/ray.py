"""Workers on a Ray cluster: an actor for each card, or for each few cores.

Ray finds them a place, and another one where a node is lost; which shard goes where, and what
becomes of the shards of the dead, is `dispatch`'s, as for processes of one machine.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from clsight import events
from clsight.clock import Clock
from clsight.errors import ClsightError, UsageError, said
from clsight.executors.dispatch import Died, Failed, Message, Progress, Ready, dispatch
from clsight.executors.jobs import Job, Make, Place, Report
from clsight.executors.local import outcome

CORES = 4
"""Of a worker without a card, where its node has as many: what a small encoder keeps busy."""
MOST_THREADS = 16
"""Of an actor: more jobs are on their way in none."""
SECONDS = 5.0
"""Until an address does not answer."""
PATIENCE, LOOK = 60.0, 5.0
"""Seconds without any worker until it is said, and between two looks for new nodes."""


@dataclass(frozen=True)
class Ray:
    """A cluster that this process is connected to."""

    device: str
    """"cuda" or "cpu"."""
    share: dict[str, int]
    """Of a node, for each worker."""
    workers: int | None
    """How many; None for as many as have room, also on nodes that join later."""

    @property
    def n_workers(self) -> int:
        """See `Executor`."""
        return self.workers or max(1, room_for(self.share))

    @property
    def elsewhere(self) -> bool:
        """See `Executor`."""
        return True

    def without_cards(self) -> "Ray":
        """See `Executor`."""
        return Ray("cpu", {"num_cpus": cores_of(self.workers)}, self.workers)

    def best_dtype(self) -> str:
        """See `Executor`."""
        from clsight.extractor import best_dtype

        asked = ray.remote(best_dtype).options(**self.share).remote(self.device)
        found: str = ray.get(asked)
        return found

    def run(self, make: Make, jobs: Sequence[Job], report: Report, clock: Clock) -> Iterator[Job]:
        """See `Executor`."""
        with Actors(make, self, clock.detailed) as pool:
            yield from dispatch(jobs, pool, report)
            clocks = pool.clocks()
        for one in clocks:
            clock.add(one, 1 / len(clocks))

    def __str__(self) -> str:
        """For the log."""
        return f"by {self.n_workers} Ray actors on {self.device}"


@contextmanager
def connected(address: str | None, device: str, workers: int | None) -> Iterator[Ray]:
    """A cluster: one that the caller is connected to, that of an address, or a new one.

    Args:
        address: None for that of RAY_ADDRESS, or for a cluster of this machine alone.
        device: "auto", "cpu" or "cuda".
        workers: how many; None for as many as have room.

    Raises:
        UsageError: there is none at the address.
    """
    with _connection(address):
        cards = any(there.get("GPU", 0) for there in _nodes())
        on = ("cuda" if cards else "cpu") if device == "auto" else device
        share = {"num_cpus": 1, "num_gpus": 1} if on == "cuda" else {"num_cpus": cores_of(workers)}
        yield Ray(on, share, workers)


@contextmanager
def _connection(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"--ray-address {address}: {said(error)}; give the address that ray start "
                         "printed") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise `OSError` where nobody is at HOST:PORT: Ray itself tries for many minutes."""
    given = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = given.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS).close()


class Actors:
    """Actors by number. A restart is Ray's, on any node that has room."""

    def __init__(self, make: Make, cluster: Ray, detailed: bool) -> None:
        """Actors that are started on entry.

        Args:
            make: makes a worker.
            cluster: how many, and for which device.
            detailed: kind of their clocks.
        """
        self._cluster = cluster
        device = "cuda:0" if cluster.device == "cuda" else "cpu"  # of those that Ray gave it
        self._given = make, Place(device, cluster.share["num_cpus"]), detailed
        self._actors: dict[int, Any] = {}
        self._expected: dict[Any, tuple[int, Job | None]] = {}
        """Answer that is to come -> the actor, and its job; None where it is to be ready."""
        self._without = 0.0

    def __enter__(self) -> Self:
        """Start as many as are wanted, or as there is room for."""
        self._grow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them, whatever they are at; files take their names when they are whole."""
        for actor in self._actors.values():
            ray.kill(actor)

    def give(self, worker: int, job: Job) -> None:
        """Send a job."""
        self._expected[self._actors[worker].take.remote(job)] = worker, job

    def wait(self) -> Iterator[tuple[int, Message]]:
        """What actors answered; one that died is on its way back."""
        came, _ = ray.wait([*self._expected], timeout=LOOK)
        if came:
            came, _ = ray.wait([*self._expected], num_returns=len(self._expected), timeout=0)
        else:
            self._look_around()
        for answer in came:
            if answer in self._expected:  # not one of an actor that died
                worker, job = self._expected.pop(answer)
                yield from ((worker, message) for message in self._heard(answer, worker, job))

    def _heard(self, answer: Any, worker: int, job: Job | None) -> Iterator[Message]:
        try:
            given = ray.get(answer)
        except RayActorError as error:
            self._expected = {other: (who, what) for other, (who, what) in self._expected.items()
                              if who != worker}
            if job is None:  # it could not begin, so Ray gives it up
                self._start(worker)
            else:
                self._expect_ready(worker)
            yield Died(f"ended ({said(error)})")
        except ray.exceptions.RayError as error:
            if job is None:
                raise ClsightError(f"a worker cannot begin: {said(error)}") from error
            yield Failed(job, ClsightError(said(error)))
        else:
            yield from [Ready(given)] if job is None else given

    def clocks(self) -> list[Clock]:
        """Where the time of those went that are there."""
        asked = [actor.clock.remote() for actor in self._actors.values()]
        there, _ = ray.wait(asked, num_returns=len(asked), timeout=LOOK)
        found = []
        for one in there:
            try:
                found.append(ray.get(one, timeout=LOOK))
            except (RayActorError, GetTimeoutError):  # all jobs are done: it may have gone
                continue
        return found

    def _look_around(self) -> None:
        """Nothing came for a while: are there new nodes, or none at all?"""
        self._grow()
        alone = all(job is None for _, job in self._expected.values())
        self._without = self._without + LOOK if alone else 0.0
        if self._without >= PATIENCE:
            self._without = 0.0
            events.event("no workers", f"no worker is ready: the cluster has no room for one with "
                         f"{self._cluster.share}; waiting for a node", logging.WARNING)

    def _grow(self) -> None:
        for worker in range(len(self._actors), self._cluster.n_workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        self._actors[worker] = ray.remote(_Actor).options(
            **self._cluster.share, max_restarts=-1, max_concurrency=MOST_THREADS,
            scheduling_strategy="SPREAD").remote(*self._given)
        self._expect_ready(worker)

    def _expect_ready(self, worker: int) -> None:
        ready = self._actors[worker].ready.options(max_task_retries=-1)
        self._expected[ready.remote()] = worker, None


class _Actor:
    """A worker in a process of the cluster; what happens goes along with the next answer."""

    def __init__(self, make: Make, place: Place, detailed: bool) -> None:
        self._said: list[Message] = []
        self._speaking, self._clock = threading.Lock(), Clock(detailed)
        events.send(self._say)
        self._worker = make(place, self._report, self._clock)
        self._stack = ExitStack()
        self._stack.enter_context(self._worker)

    def ready(self) -> int:
        return min(self._worker.in_flight, MOST_THREADS)

    def take(self, job: Job) -> list[Message]:
        self._say(outcome(self._worker, job))
        with self._speaking:
            told, self._said = self._said, []
        return told

    def clock(self) -> Clock:
        return self._clock

    def _report(self, model: str, documents: int) -> None:
        self._say(Progress(model, documents))

    def _say(self, message: Message) -> None:
        with self._speaking:
            self._said.append(message)


def room_for(share: dict[str, int]) -> int:
    """Workers that the nodes have room for, each with a share of a node."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return sum(min(int(there.get(names[name], 0)) // n for name, n in share.items())
               for there in _nodes())


def cores_of(workers: int | None) -> int:
    """Cores of a worker without a card: an even share, and no more than a node has."""
    nodes = [int(there.get("CPU", 0)) for there in _nodes()]
    share = CORES if workers is None else sum(nodes) // workers
    return max(1, min(share, *(n for n in nodes if n), 4 * CORES))


def _nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
