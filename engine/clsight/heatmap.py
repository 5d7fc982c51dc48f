"""The picture that the question starts from: attention within one document, as a Matplotlib figure.

Cells, labels and the figure grow and shrink together, so that labels neither overlap nor get
smaller than can be read, up to `DRAWN` pieces in every panel.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from clsight.errors import UsageError, printable
from clsight.events import event
from clsight.run_folder import refuse_unknown

if TYPE_CHECKING:
    from clsight.document_view import Document
    from clsight.matrices import Matrices
    from clsight.run_folder import Run

Floats = npt.NDArray[np.float64]

HEADS = ("all", "uniform", "classifier", "projected")
SUFFIXES = (".png", ".svg", ".pdf")
ANNOTATED = 24
"""Most pieces for which the values are written into the cells; more would overlap."""
DRAWN = 128
"""Most pieces that are drawn."""
DPI = 150
CELLS = (0.085, 0.34)
"""Inches of a cell: room for a label of 5.5 points, 11 pixels, at least; for its value, at most."""
PANEL = 8.0
"""Inches of a panel while its cells can be chosen."""
LONGEST = 20
"""Characters of a label; the rest of a longer piece is left out."""


class Heatmap(Figure):
    """A figure that notebooks show by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def heatmap(
    run: "Run", models: Sequence[str], document: int | str, *, heads: str = "uniform",
    layer: int = -1, words: bool = False,
) -> Figure:
    """Draw the attention within a document: queries down, keys across.

    The row of [CLS] at the top is what the classifier reads; `uniform` in `words` is that row.

    Args:
        run: the run.
        models: one model, or several side by side: on the same words and in the same colours.
        document: the document's id.
        heads: "uniform" (the mean), "classifier" or "projected" (means weighted as the scores of
            that name), or "all" (a panel for each head; of one model, for the heads of two have
            nothing to do with each other).
        layer: from 0, or from the end with -1; head weights are known for the last layer alone.
        words: words instead of pieces; several models are always drawn on words.

    Raises:
        UsageError: a model, document, layer or weighting is not there.
    """
    from clsight.matrices import attention

    models = [*dict.fromkeys(models)]
    refuse_unknown("model", models, run.plan.models, run.folder)
    if heads not in HEADS:
        raise UsageError(f"--heads {heads}: write {', '.join(HEADS)}")
    if heads == "all" and len(models) > 1:
        raise UsageError("--heads all draws one model, for the heads of two do not correspond; "
                         "give one --model, or another --heads")
    found, by_words = run.document(document), words or len(models) > 1
    answers = [f"{model}: {_answer(found, model)}" for model in models]
    drawn = [attention(run.plan.models[model], found, layer=layer, words=by_words)
             for model in models]
    title = [f"document {_cut(str(found.document_id))}, gold {_cut(str(found.label))}"]
    if heads == "all":
        panels = _each_head(drawn[0])
        title += answers
    else:
        panels = {answer: _averaged(matrices, heads)
                  for answer, matrices in zip(answers, drawn, strict=True)}
    title += _captions(drawn[0], heads, layer, "word" if by_words else "piece", panels)
    return _figure([*map(_label, drawn[0].names)], panels, title,
                   unit="word" if by_words else "piece", root=heads == "all")


def draw(run: "Run", models: Sequence[str], document: int | str, output: Path, **how: Any) -> None:
    """Write the figure of `heatmap` into a .png, .svg or .pdf file.

    Raises:
        UsageError: as `heatmap`, or the file is of another kind.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{output}: pictures are .png, .svg or .pdf")
    figure = heatmap(run, models, document, **how)
    output.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(output)
    if missing := {said for one in caught if "missing from font" in (said := str(one.message))}:
        event("warning", f"{output}: the font lacks {len(missing)} of the characters, drawn as "
              "boxes; name one that has them as font.family in a matplotlibrc", logging.WARNING)


def _answer(document: "Document", model: str) -> str:
    """What a model says of a document, in words."""
    from clsight.document_view import answered

    for answer in document.predictions.iter_rows(named=True):
        if answer["model"] == model and answer["problem"] is None:
            return answered(answer)
        if answer["model"] == model:
            raise UsageError(f"document {str(document.document_id)!r} was left out for {model}: "
                             f"{answer['problem']}")
    raise UsageError(f"{model} was not asked about document {str(document.document_id)!r} yet")


def _averaged(matrices: "Matrices", weighting: str) -> Floats:
    if weighting not in matrices.weights:
        raise UsageError(f"--heads {weighting}: head weights are known for the last layer alone, "
                         "and for families whose classifier clsight knows; leave --layer out, or "
                         "write --heads uniform or all")
    return matrices.averaged(weighting)


def _each_head(matrices: "Matrices") -> dict[str, Floats]:
    """Title -> matrix of each head; titles say how much it counts for the class, where known."""
    weights = {name: values for name, values in matrices.weights.items() if name != "uniform"}
    return {
        ", ".join([f"head {head}", *(f"{name} {values[head]:.2f}"
                                     for name, values in weights.items())]): matrix
        for head, matrix in enumerate(matrices.heads)
    }


def _captions(
    matrices: "Matrices", heads: str, layer: int, unit: str, panels: dict[str, Floats]
) -> list[str]:
    """Lines that say what is drawn, and what is not."""
    where = "last layer" if layer == -1 else f"layer {layer}"
    how = {"all": "each head", "uniform": "mean over heads"}
    lines, n = [f"{where}, {how.get(heads, f'heads weighted by {heads}')}"], len(matrices.names)
    if n > DRAWN:
        lines.append(f"the first {DRAWN} of {n} {unit}s")
    if any(np.isnan(matrix[:DRAWN, :DRAWN]).any() for matrix in panels.values()):
        lines.append("grey: words that a model does not see")
    return lines


def _label(name: str) -> str:
    """A piece as it is drawn: byte-level spaces are spelled as others have them."""
    return _cut(name.replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{OPEN BOX}"))


def _cut(name: str) -> str:
    """On one line, without control characters, and short."""
    spelled = printable(name.replace("\n", " "))
    return spelled if len(spelled) <= LONGEST else f"{spelled[: LONGEST - 1]}…"


def _figure(
    names: list[str], panels: dict[str, Floats], title: list[str], unit: str, root: bool
) -> Figure:
    """Panels that share their axes, their colours and one bar.

    With `root`, colours go by square roots: single heads attend to few pieces, to some fully.
    """
    from matplotlib.colors import PowerNorm

    n = min(len(names), DRAWN)
    matrices = [matrix[:n, :n] for matrix in panels.values()]
    # Heads in the squarest grid that they fill.
    columns = next(c for c in range(math.ceil(len(panels) ** 0.5), len(panels) + 1)
                   if len(panels) % c == 0)
    rows, cell = len(panels) // columns, min(max(PANEL / columns**0.5 / n, CELLS[0]), CELLS[1])
    figure, large = _empty(rows, columns, cell * n, cell * 72 * 0.9, names[:n], len(title))
    norm = PowerNorm(0.5 if root else 1, 0, max(np.nanmax(matrix) for matrix in matrices))
    for ax, heading, matrix in zip(figure.axes, panels, matrices, strict=True):
        ax.set_facecolor("lightgrey")  # words that the model does not see
        image = ax.imshow(matrix, cmap="viridis", norm=norm)
        ax.set_title(_plain(heading), fontsize=min(large, 10 + cell * n))
        ax.set(xlabel=f"attended {unit} (key)", ylabel=f"attending {unit} (query)")
        ax.label_outer()
    if n <= ANNOTATED and len(panels) == 1:
        _annotate(figure.axes[0], matrices[0])
    figure.suptitle(_plain("\n".join(title)), fontsize=large)
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.01, aspect=30,
                          fraction=max(0.02, 0.2 / (columns * cell * n)))
    bar.ax.tick_params(labelsize=large * 0.8)
    bar.set_label("attention (colours by square root)" if root else "attention", fontsize=large)
    return figure


def _empty(
    rows: int, columns: int, side: float, font: float, names: list[str], lines: int
) -> tuple[Figure, float]:
    """A figure with axes of `side` inches and their labels, and the size of its larger letters."""
    font = min(font, 10)
    labels = max(map(len, names)) * font * 0.6 / 72
    width = columns * (side + 0.15) + labels + 1.8
    large = max(10, width * 0.55)
    height = rows * (side + 0.45) + labels + 0.8 + lines * large * 1.4 / 72
    figure = Heatmap((width, height), layout="compressed", dpi=DPI)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    places = range(len(names))
    # Shared by all panels; set in each, twelve heads of 128 pieces would take ten seconds more.
    axes[0, 0].set_xticks(places, [*map(_plain, names)])
    axes[0, 0].set_yticks(places, [*map(_plain, names)])
    for ax in axes.flat:
        ax.tick_params("both", labelsize=font)
        ax.tick_params("x", labelrotation=90)
    return figure, large


def _plain(text: str) -> str:
    """Dollar signs would start a formula."""
    return text.replace("$", r"\$")


def _annotate(ax: Any, attention: Floats) -> None:
    dark = np.nanmax(attention) * 0.6
    for query, key in np.argwhere(np.isfinite(attention)):
        value = attention[query, key]
        ax.text(key, query, f"{value:.2f}".removeprefix("0"), ha="center", va="center",
                color="black" if value > dark else "white", fontsize="xx-small")
