"""A run folder, open for reading: questions in SQL, documents and pictures, for notebooks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsight import plan as plans
from clsight import store
from clsight.errors import ClsightError, UsageError, listed
from clsight.plan import Plan

if TYPE_CHECKING:
    import polars
    from matplotlib.figure import Figure

    from clsight.document_view import Document
    from clsight.gallery import Charts


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder, open for reading."""

    folder: Path
    plan: Plan

    def sql(self, query: str, **parameters: Any) -> "polars.DataFrame":
        """Answer a named query, a relation's name or a SELECT statement as a Polars frame.

        >>> clsight.open("RUN").sql("examples", form="yet", model="roberta")  # doctest: +SKIP

        Raises:
            ClsightError: the run has no such thing, is not complete, or the question is wrong.
        """
        import polars

        from clsight import database

        given = {name: str(value) for name, value in parameters.items()}
        with database.connect(self.folder) as connection:
            frame = polars.from_arrow(database.query(connection, query, given).read_all())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def over_attended(
        self, model: str | None = None, score: str | None = None
    ) -> "polars.DataFrame":
        """Words that models consistently over-attend in their errors, strongest first.

        Args:
            model: only this model's.
            score: only by this score.

        Raises:
            UsageError: the run has no such model or score.
        """
        return self._found("over_attended", model, score)

    def neglected(self, model: str | None = None, score: str | None = None) -> "polars.DataFrame":
        """Words around which errors gather and which are not looked at; see `over_attended`."""
        return self._found("neglected", model, score)

    def word_statistics(
        self, model: str | None = None, score: str | None = None
    ) -> "polars.DataFrame":
        """All tested words with effect sizes and tests; see `over_attended`."""
        return self._found("word_statistics", model, score)

    def document(self, document: int | str) -> "Document":
        """A document by its id: text, answers, scores of its words, and a view for notebooks.

        Raises:
            UsageError: there is none, or it was left out, with the reason.
        """
        from clsight.document_view import find

        return find(self, document)

    def heatmap(
        self, document: int | str, models: str | Sequence[str] | None = None, *,
        heads: str = "uniform", layer: int = -1, words: bool = False,
    ) -> "Figure":
        """Attention within a document as a Matplotlib figure; see `heatmap.heatmap`.

        Args:
            document: its id.
            models: one model, or several side by side; by default all of the run.
            heads: "uniform", "classifier", "projected" (averages), or "all" (each by itself).
            layer: from 0, or from the end with -1.
            words: words instead of pieces; several models are always drawn on words.

        Raises:
            UsageError: there is no such document, model or layer.
        """
        from clsight.heatmap import heatmap

        chosen = [models] if isinstance(models, str) else [*(models or self.plan.models)]
        return heatmap(self, chosen, document, heads=heads, layer=layer, words=words)

    @property
    def charts(self) -> "Charts":
        """The charts of the report as Altair objects: `run.charts.words("bert")`."""
        from clsight.gallery import Charts

        return Charts(self)

    def _found(self, relation: str, model: str | None, score: str | None) -> "polars.DataFrame":
        refuse_unknown("model", [model] if model else [], self.plan.models, self.folder)
        refuse_unknown("score", [score] if score else [], self.plan.scores, self.folder)
        given = {name: value for name, value in (("model", model), ("score", score)) if value}
        conditions = " AND ".join(["true", *(f"{name} = ${name}" for name in given)])
        return self.sql(f"FROM {relation} WHERE {conditions} "
                        "ORDER BY model, score, kind DESC, z DESC NULLS LAST, form", **given)

    def __repr__(self) -> str:
        """Folder, models and rows; the plan would fill a screen."""
        return (f"<clsight.Run {self.folder}: {listed([*self.plan.models])}; "
                f"{self.plan.n_rows or 0:,} rows>")

    def _repr_html_(self) -> str:
        """The models at a glance, for notebooks; a run that is not complete says so."""
        from clsight.document_view import template

        try:
            summary, problem = self.sql("summary").to_dicts(), None
        except ClsightError as error:
            summary, problem = [], str(error)
        return template("run_folder").render(run=self, summary=summary, problem=problem)


def open_run(folder: str | Path) -> Run:
    """Open a run folder, by its path or URL.

    Raises:
        UsageError: it is not one.
    """
    run = store.folder(folder)
    return Run(run, plans.load(run))


def refuse_unknown(
    kind: str, wanted: Iterable[str], known: Iterable[str], folder: Path
) -> None:
    """Raise `UsageError` for the first of `wanted` that is not among `known`."""
    names = [*known]
    for name in wanted:
        if name not in names:
            raise UsageError(f"{folder} has no {kind} {name!r}; it has {listed(names)}")
