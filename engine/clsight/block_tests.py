"""A job of the statistics: the pairs of some units -> what tests say of them."""

from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from clsight import comparisons
from clsight.bootstrap import Bootstrap
from clsight.executors.jobs import Job
from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.replicates import Strata
from clsight.stage import Documents, Stage, Worker, read_arrays, write_arrays
from clsight.statistics import Moments, degrees_of_freedom
from clsight.tested import (
    Block,
    Heterogeneity,
    Names,
    PairTests,
    SliceTests,
    WordTests,
    numbered,
    together,
)

Test = WordTests | PairTests | SliceTests | Heterogeneity

MOMENTS, FOUND = "moments.npz", "found"
"""In the scratch folder: moments of all units, and the folder of what tests say of blocks."""


class BlockTests(Worker):
    """Tests blocks of units; what all units share is made once."""

    def take(self, job: Job) -> None:
        """Test a block; its job is called like the file of what is found."""
        own, offsets, document, x = self.blocks.read(
            self.stage.plan.shard_names(), block_of(job.shard))
        masses = [Mass(offsets, document, part) for part in np.split(x, len(self.strata))]
        freedom = [*map(degrees_of_freedom, masses, self.strata)]
        block = Block(own, masses, self._bootstrap.resample(masses), freedom)
        write_arrays(self.scratch / FOUND / job.shard,
                     together(test.found(block) for test in self._tests))
        self.report(job.model, 0)

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        options = self.stage.options
        return Bootstrap(self.strata, options.seed, options.bootstrap)

    @cached_property
    def _tests(self) -> list[Test]:
        moments = _read_moments(self.scratch, len(self.stage.models))
        return tests(self.stage, self.documents, self.strata, moments)


def block_name(block: int) -> str:
    """File of what is found in a block."""
    return f"{block:05d}.npz"


def block_of(name: str) -> int:
    """The block whose file this is."""
    return int(Path(name).stem)


def write_moments(scratch: Path, moments: list[Moments]) -> None:
    """Write the moments of each model, which workers read."""
    write_arrays(scratch / MOMENTS, together(map(vars, moments)))


def _read_moments(scratch: Path, n_models: int) -> list[Moments]:
    stored = read_arrays(scratch / MOMENTS)
    return [Moments(**numbered(stored, i)) for i in range(n_models)]


def tests(
    stage: Stage, documents: Documents, strata: list[Strata], moments: list[Moments]
) -> list[Test]:
    """Each model's, each pair of models', and each model's within slices.

    Nothing is drawn before a unit is tested.
    """
    options = stage.options
    names, budget = Names(stage.units, stage.plan.scores), options.budget(len(stage.units))
    drawn = partial(Permutations, seed=options.seed, budget=budget)
    made: list[Test] = [
        WordTests(names, model, i, strata[i], moments[i], drawn(strata[i]), options)
        for i, model in enumerate(stage.models)
    ]
    for i, j in combinations(range(len(strata)), 2):
        one, other = stage.models[i], stage.models[j]
        certainty = documents.read(f"{one}.confidence") - documents.read(f"{other}.confidence")
        discordant = comparisons.paired(strata[i], strata[j], documents.read("label"), certainty,
                                        options.seed, budget)
        made.append(PairTests(names, (one, other), (i, j), (moments[i], moments[j]),
                              (strata[i], strata[j]), discordant, options))
    if len(strata) > 1:
        made.append(Heterogeneity(names, moments))
    if stage.slices:
        own: Any = documents.read("slice")
        for i, model in enumerate(stage.models):
            parts = [comparisons.part(value, own == code, strata[i], options.seed, budget)
                     for code, value in enumerate(stage.slices)]
            made.append(SliceTests(names, model, i, parts, options))
    return made
