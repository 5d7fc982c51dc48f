"""What jobs of the statistics share: the tested units and documents, and what workers are."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from clsight import kernels, shards, store
from clsight.blocks import Blocks
from clsight.executors.jobs import Job, Place, Report
from clsight.plan import Plan
from clsight.replicates import Strata
from clsight.statistics import Options
from clsight.units import Units

REFERENCES = ("predicted", "label")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """The statistics of a run, as jobs are told of them; what is large lies in `scratch`."""

    scratch: str
    """Folder in the run for what passes between jobs."""
    plan: Plan
    options: Options
    units: Units
    blocks: npt.NDArray[np.int64]
    """First unit of each block that is tested at a time, and the number of units."""
    slices: tuple[str, ...]
    """Values of the column within whose values words are tested; none where there is none."""

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self.plan.models)


@dataclass(frozen=True)
class Documents:
    """The N tested documents of a run, in files that processes of a machine share in memory.

    rows [N] ascending, label [N] (a number), slice [N] (a place in `Stage.slices`, -1 for none),
    and of each model stratum [references, N], error [N] and confidence [N].
    """

    scratch: Path

    def write(self, arrays: dict[str, Array]) -> None:
        """Write arrays by name."""
        for name, array in arrays.items():
            with shards.replaced(self._file(name)) as path, path.open("wb") as file:
                np.save(file, array)

    def read(self, name: str) -> Array:
        """An array, read where it is looked at."""
        return np.asarray(np.load(store.fetched(self._file(name)), mmap_mode="r"))

    def strata(self, model: str) -> Strata:
        """A model's strata and errors, in memory."""
        return Strata(*(np.array(self.read(name))
                        for name in ("rows", f"{model}.stratum", f"{model}.error")))

    def _file(self, name: str) -> Path:
        return self.scratch / "documents" / f"{name}.npy"


class Worker:
    """A process that does jobs of the statistics, one at a time, each by kernels on all its cores.

    Subclasses have `take`.
    """

    in_flight = 1

    def __init__(
        self, run: str | Path, stage: Stage, place: Place, report: Report, _: object
    ) -> None:
        """Nothing is read yet.

        Args:
            run: the run folder, or its URL.
            stage: of its statistics.
            place: on how many cores.
            report: called with the documents that are done.
        """
        self.run, self.stage, self.report = store.folder(run), stage, report
        self._cores = place.cores
        self.scratch = self.run / stage.scratch
        self.documents = Documents(self.scratch)

    def __enter__(self) -> Self:
        """Keep to the cores that it has."""
        if self._cores is not None:
            kernels.limit(self._cores)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    @cached_property
    def blocks(self) -> Blocks:
        """The pairs of all shards."""
        return Blocks(self.scratch / "pairs", self.stage.units.table["n_documents"].to_numpy(),
                      self.stage.blocks)

    @cached_property
    def strata(self) -> list[Strata]:
        """Of each model."""
        return [self.documents.strata(model) for model in self.stage.models]


def job(name: str) -> Job:
    """A job of the statistics, which are of all models together."""
    return Job("statistics", name)


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays by name into one file."""
    with shards.replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file."""
    with np.load(store.fetched(path)) as stored:
        return dict(stored)
