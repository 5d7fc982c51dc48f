"""A run's charts, one method each, for notebooks: Altair objects that can be changed and saved."""

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from clsight import charts, database, tables
from clsight.report.contents import table

if TYPE_CHECKING:
    from clsight.run_folder import Run

WIDTH = 560
"""Pixels; pages fill the width that they have, but a saved picture has none."""


class Charts:
    """The charts of a run's report; `clsight.open("RUN").charts.words("bert")` is one.

    All raise `UsageError` where the run is not complete, or has no such model or score.
    """

    def __init__(self, run: "Run") -> None:
        """Charts of a run."""
        self._run = run

    def calibration(self) -> alt.LayerChart:
        """Confidence against accuracy, a line for each model; see `charts.calibration`."""
        return charts.calibration(self._rows("calibration"), self._models).properties(width=WIDTH)

    def confusion(self, model: str) -> alt.LayerChart:
        """Documents by gold label and prediction; see `charts.confusion`."""
        return charts.confusion(self._rows("confusion", model)).properties(width=WIDTH)

    def words(self, model: str, score: str | None = None) -> alt.LayerChart:
        """Tested words by presence and intensity; see `charts.words`."""
        score = score or tables.shown_first(self._scores)
        return charts.words(self._rows("words", model, score)).properties(width=WIDTH)

    def habits(self, score: str | None = None) -> alt.LayerChart:
        """Over-attended words in all models; see `charts.habits`."""
        rows = self._rows("habits", score=score or tables.shown_first(self._scores))
        return charts.habits(rows, self._models).properties(width=WIDTH)

    def agreement(self, model: str) -> alt.LayerChart:
        """Rank correlation between scores; see `charts.agreement`."""
        rows = self._rows("agreement", model)
        return charts.agreement(rows, self._scores).properties(width=WIDTH)

    def explained(self, model: str) -> alt.Chart:
        """How much of the margin each score explains; see `charts.explained`."""
        rows = self._rows("agreement", model)
        return charts.explained(rows, self._scores).properties(width=WIDTH)

    def head_weights(self, model: str) -> alt.Chart:
        """Mean weight of each head of the last layer; see `charts.head_weights`."""
        return charts.head_weights(self._rows("weights", model)).properties(width=WIDTH)

    def attention(self, model: str) -> alt.FacetChart:
        """Where each head's attention goes; see `charts.attention`."""
        return charts.attention(self._rows("attention", model))

    @property
    def _models(self) -> list[str]:
        return [*self._run.plan.models]

    @property
    def _scores(self) -> list[str]:
        return [*self._run.plan.scores]

    def _rows(self, name: str, model: str | None = None, score: str | None = None) -> pl.DataFrame:
        from clsight.run_folder import refuse_unknown

        run = self._run
        refuse_unknown("model", [model] if model else [], run.plan.models, run.folder)
        refuse_unknown("score", [score] if score else [], run.plan.scores, run.folder)
        with database.connect(run.folder) as connection:
            rows = table(connection, run.plan, name)
        for column, value in (("model", model), ("score", score)):
            rows = rows.filter(pl.col(column) == value) if value else rows
        return rows
