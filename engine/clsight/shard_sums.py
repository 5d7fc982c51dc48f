"""A job of the statistics: scores of a shard -> sums of its units, and pairs for their tests."""

from typing import Any

import numpy as np
import numpy.typing as npt

from clsight import masses, units
from clsight.executors.jobs import Job
from clsight.stage import Worker


class ShardSums(Worker):
    """Makes `MODEL/sums` of shards, and their pairs by block."""

    def take(self, job: Job) -> None:
        """Sum up a shard for all models.

        Raises:
            ClsightError: it cannot be read.
        """
        plan, tested = self.stage.plan, self.stage.units
        row, offsets, places = units.places(self.run / "documents" / job.shard, tested)
        place, x = places_among(self.documents.read("rows"), row), []
        for model in plan.models:
            scores = masses.read_scores(self.run / model / "scores" / job.shard, plan.scores,
                                        offsets)
            pairs = masses.pairs(offsets, places, scores, len(tested))
            n_words = np.diff(offsets)[pairs.document][place[pairs.document] >= 0]
            pairs = masses.among(pairs, place)
            masses.write_sums(
                self.run / model / "sums" / job.shard, model, tested, plan.scores, pairs,
                self.documents.read(f"{model}.stratum"), self.documents.read(f"{model}.error"),
                n_words)
            x.append(pairs.x)
        self.blocks.write(job.shard, pairs.unit, pairs.document, np.concatenate(x))
        self.report(job.model, len(row))


def places_among(rows: npt.NDArray[Any], row: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Index of each row among the tested documents' rows, ascending; -1 where it is not one."""
    place = np.searchsorted(rows, row)
    known = place < len(rows)
    known[known] = rows[place[known]] == row[known]
    return np.where(known, place, -1)
