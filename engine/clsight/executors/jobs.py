"""What is to be done, and what does it, wherever that is."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from clsight.clock import Clock


class Job(NamedTuple):
    """A shard for a model; or, for "statistics", what is made of a shard or of a block of units."""

    model: str
    shard: str
    """Its file's name."""


class Worker(Protocol):
    """What does jobs within its `with` block: `take` is called from `in_flight` threads at once."""

    in_flight: int

    def take(self, job: Job) -> None:
        """Do a job; what comes of it is committed when this returns."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what is at work, soon where the block failed."""


class Place(NamedTuple):
    """Where a worker computes."""

    device: str
    """"cpu", "cuda" or "cuda:1"."""
    cores: int | None = None
    """How many it has, where others have the rest of the machine; None for all."""


Report = Callable[[str, int], None]
"""report(model, documents done since the last call)"""
Make = Callable[[Place, Report, Clock], Worker]
"""make(place, report, clock) -> a worker; it is sent to other processes, and so must be picklable.
"""


class Executor(Protocol):
    """Where workers are."""

    @property
    def n_workers(self) -> int:
        """How many there are at present."""

    @property
    def elsewhere(self) -> bool:
        """True where workers may be on other machines."""

    def without_cards(self) -> "Executor":
        """The same for work that no card can do."""

    def best_dtype(self) -> str:
        """bfloat16 where the workers' hardware multiplies it natively, else float32."""

    def run(self, make: Make, jobs: Sequence[Job], report: Report, clock: Clock) -> Iterator[Job]:
        """Let workers do jobs; yields each one that is committed.

        Args:
            make: makes a worker.
            jobs: what is to be done, in the order in which it is begun.
            report: called as documents are done.
            clock: gets the mean over workers.

        Raises:
            ClsightError: a job failed, or too many workers died.
        """
