"""One document of a run: its text and answers, and the text shaded by a score, for notebooks.

The view is plain HTML with inline styles: no script, and no style sheet that could reach the
notebook around it. Backgrounds are translucent and the text keeps its own colour, so that it can be
read on white and on black.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from clsight import tables
from clsight.errors import UsageError, listed, printable

if TYPE_CHECKING:
    from jinja2 import Template

    from clsight.run_folder import Run

Floats = npt.NDArray[np.float64]

MEANING = {
    "uniform": "the attention that [CLS] pays to it, mean over heads",
    "classifier": "the attention that [CLS] pays to it, heads weighted by the class's weights",
    "projected": "the attention that [CLS] pays to it, heads weighted through W_o",
    "norm": "the length of what reaches [CLS] from it",
    "contribution": "what it adds to the margin through attention from [CLS], in logits",
    "rollout": "the attention that leads from [CLS] to it through all layers",
    "relevance": "the same through all layers, weighted with the gradient",
    "conservative": "what it gives to the margin through the whole model, in logits",
    "deeplift": "what it makes of the margin, against a text of masked words, in logits",
}
"""What a score says of a word."""
SIGNED = ("contribution", "conservative", "deeplift")
"""Scores that are below 0 for words that push away from the class."""
POSITIVE, NEGATIVE = "0,114,178", "213,94,0"
"""Blue and vermilion of Okabe and Ito: told apart with every kind of colour vision."""
STRONGEST = 0.6
"""Opacity of the word with the largest score; more would leave text hard to read on it."""
NAMED = 3
"""Words with the largest scores that are spelled out."""


class Mark(NamedTuple):
    """A word in its text."""

    before: str
    """White space between it and the word before."""
    word: str
    value: float
    shade: float


@dataclass(frozen=True, repr=False)
class Document:
    """A document, with what every model of the run says of it; shows itself in notebooks."""

    document_id: int | str
    label: int | str
    texts: tuple[str, ...]
    """The text, or the two texts of a pair."""
    predictions: pl.DataFrame
    """One row per model: model, predicted, confidence, margin, correct, truncated; and `problem`,
    the reason where it has no answer."""
    words: pl.DataFrame
    """The document's part of the relation `words`: one row per model and word, with all scores."""
    target: str
    """The class that scores explain: "predicted", "gold", or a label."""
    score: str
    """What the view shades words by."""

    @property
    def scores(self) -> list[str]:
        """Names of the scores that words have."""
        return [name for name in self.words.columns if tables.base(name) in tables.SCORES]

    def show(self, score: str) -> "Document":
        """The same document, shaded by another score.

        Raises:
            UsageError: the run has no such score.
        """
        if score not in self.scores:
            raise UsageError(f"there is no score {score!r}; this run has {listed(self.scores)}")
        return replace(self, score=score)

    def words_of(self, model: str) -> pl.DataFrame:
        """The words of one model, in the order of the text."""
        return self.words.filter(pl.col("model") == model)

    def marks(self, model: str) -> list[tuple[list[Mark], str]]:
        """For each text, its words as one model scores them, and the white space behind the last.

        All spellings one after the other are the text, to the character.
        """
        words = self.words_of(model)
        values = words[self.score].to_numpy().astype(np.float64)
        words = words.with_columns(value=pl.Series(values), shade=pl.Series(shades(values)))
        return [_marked(text, words.filter(pl.col("segment") == segment))
                for segment, text in enumerate(self.texts)]

    def strongest(self, model: str) -> list[tuple[str, float]]:
        """The words furthest from 0, and their scores."""
        words = self.words_of(model).sort(pl.col(self.score).abs(), descending=True)
        return list(words.select("form", self.score).head(NAMED).iter_rows())

    def __repr__(self) -> str:
        """Text, answers and strongest words, for terminals."""
        lines = [f"document {self.document_id}, gold {self.label}; strongest by {self.score}:",
                 *(f"  {text}" for text in self.texts)]
        for answer in self.predictions.iter_rows(named=True):
            strongest = [f"{form} {value:+.3f}" for form, value in self.strongest(answer["model"])]
            lines.append(f"{answer['model']}: {answered(answer)}"
                         + (f": {', '.join(strongest)}" if strongest else ""))
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        """The text once per model, words shaded by `score`."""
        base = tables.base(self.score)
        layer = tables.score_layer(self.score)
        target = {"predicted": "the predicted class", "gold": "the gold label"}
        return template("document_view").render(
            document=self, signed=base in SIGNED, answered=answered, style=_style,
            meaning=MEANING[base] + ("" if layer is None else f", in layer {layer}"),
            target=target.get(self.target, f"the class {self.target}"),
        )


def find(run: "Run", document: int | str) -> Document:
    """Read a document from a run.

    Raises:
        UsageError: there is none with this id, or it was left out, with the reason.
    """
    found = run.sql(
        'SELECT document_id, "row", label, text, text_pair FROM documents '
        "WHERE document_id::VARCHAR = $document", document=document)
    if found.is_empty():
        raise UsageError(_missing(run, document))
    row = found.row(0, named=True)
    predictions = run.sql(
        "SELECT model, predicted, confidence, margin, correct, truncated, NULL AS problem "
        'FROM predictions WHERE "row" = $row::BIGINT UNION ALL BY NAME '
        'SELECT model, reason AS problem FROM bad_documents WHERE "row" = $row::BIGINT',
        row=row["row"])
    words = run.sql("SELECT * FROM words WHERE document_id::VARCHAR = $document "
                    "ORDER BY model, position", document=document)
    order = pl.Enum([*run.plan.models])
    return Document(
        row["document_id"], row["label"],
        tuple(text for text in (row["text"], row["text_pair"]) if text is not None),
        predictions.sort(pl.col("model").cast(order)), words, run.plan.target,
        tables.shown_first(run.plan.scores),
    )


def shades(values: Sequence[float] | Floats) -> Floats:
    """How strongly words are shaded: scores over the largest absolute one, from -1 to 1.

    One document, model and score at a time; all 0 where no score differs from 0.
    """
    scores = np.asarray(values, dtype=np.float64)
    largest = np.abs(scores).max(initial=0)
    return scores / largest if largest > 0 else np.zeros_like(scores)


def answered(answer: dict[str, object]) -> str:
    """A model's answer in words; `answer` is a row of `Document.predictions`."""
    if answer["problem"] is not None:
        return f"no answer, {answer['problem']}"
    said = f"predicted {answer['predicted']} ({answer['confidence']:.0%})"
    said += ", right" if answer["correct"] else ", wrong"
    return said + (", text cut at the model's maximum length" if answer["truncated"] else "")


def _missing(run: "Run", document: int | str) -> str:
    """Why a document cannot be shown."""
    bad = run.sql("SELECT reason FROM bad_documents WHERE document_id::VARCHAR = $document",
                  document=document)
    if bad.is_empty():
        return (f"{run.folder} has no document {str(document)!r}; clsight query {run.folder} "
                "documents lists them")
    return f"document {str(document)!r} was left out: {bad['reason'][0]}"


def _marked(text: str, words: pl.DataFrame) -> tuple[list[Mark], str]:
    return [*_marks(text, words)], text[words["end_char"][-1] if len(words) else 0:]


def _marks(text: str, words: pl.DataFrame) -> Iterator[Mark]:
    end = 0
    for row in words.iter_rows(named=True):
        start, before = row["start_char"], end
        end = row["end_char"]
        yield Mark(text[before:start], text[start:end], row["value"], row["shade"])


def _style(shade: float) -> str:
    """CSS of a word; what is below 0 is underlined too, for those who see no colour."""
    colour = POSITIVE if shade >= 0 else NEGATIVE
    line = f";border-bottom:2px dotted rgba({NEGATIVE},{-shade:.3f})" if shade < 0 else ""
    return f"background:rgba({colour},{STRONGEST * abs(shade):.3f});color:inherit{line}"


@cache
def template(name: str) -> "Template":
    """A template of the package. Texts are strangers': everything that is put in is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(f"{name}.html.jinja")
