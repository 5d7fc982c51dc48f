"""The picture that the question starts from: attention of one document, piece by piece."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clsight.errors import UsageError, listed

if TYPE_CHECKING:
    from clsight.pipeline import Run

ANNOTATED = 24
"""Most pieces for which the values are written into the cells; more would overlap."""
DRAWN = 128
"""Most pieces that are drawn; beyond it labels cannot be read."""


def draw(run: "Run", model: str, document: str, weights: str, output: Path) -> None:
    """Draw the last layer's attention of a document, heads averaged, queries down, keys across.

    The row of [CLS] at the top is what the classifier reads; `uniform` in `words` is that row.

    Args:
        run: the run.
        model: one of its models.
        document: the document's id, as text.
        weights: "uniform" (mean over heads), "classifier" or "projected".
        output: a .png, .svg or .pdf file.

    Raises:
        UsageError: the model, the document or the kind of picture is not known.
    """
    from matplotlib.figure import Figure

    if model not in run.plan.models:
        raise UsageError(f"{run.folder} has no model {model!r}; "
                         f"it has {listed([*run.plan.models])}")
    figure = Figure(layout="constrained")
    if output.suffix.lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{output}: pictures are .png, .svg or .pdf")
    texts, answer = _document(run, model, document)
    pieces, attention = attention_matrix(run, model, texts, weights)
    title = f"{model}, document {document}: {answer}\nlast layer, heads averaged: {weights}"
    if len(pieces) > DRAWN:
        title += f"; the first {DRAWN} of {len(pieces)} pieces"
    _plot(figure, pieces[:DRAWN], attention[:DRAWN, :DRAWN], title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


def attention_matrix(
    run: "Run", model: str, texts: tuple[str, ...], weights: str
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The pieces of a text, or of a pair, and the last layer's attention [query, key].

    Heads are averaged. Worked out on the fly, in float32 and with eager attention, exactly as the
    question does.
    """
    import torch

    from clsight.models import load, two_classes
    from clsight.weights import WEIGHTINGS, head_weights

    classifier = load(run.plan.models[model], torch.float32, "cpu", "eager")
    encoded = classifier.tokenizer(
        *texts, truncation=True, max_length=classifier.max_length, return_tensors="pt"
    )
    with torch.no_grad():
        answer = classifier.model(**encoded, output_attentions=True)
    heads = answer.attentions[-1][0].double().numpy()
    best, second = two_classes(answer.logits)[0].topk(2).indices.tolist()
    weight = head_weights(classifier)[WEIGHTINGS.index(weights), best, second]
    pieces = classifier.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    return _readable(pieces), np.tensordot(weight, heads, axes=1)


def _document(run: "Run", model: str, document: str) -> tuple[tuple[str, ...], str]:
    """Text of a document (or its two texts), and the model's answer in words."""
    found = run.sql(
        "SELECT text, text_pair, d.label, predicted, confidence FROM documents AS d "
        'JOIN predictions USING ("row") '
        "WHERE d.document_id::VARCHAR = $document AND model = $model",
        document=document, model=model,
    )
    if found.is_empty():
        raise UsageError(_missing(run, model, document))
    row = found.row(0, named=True)
    texts = tuple(text for text in (row["text"], row["text_pair"]) if text is not None)
    return texts, (f"predicted {row['predicted']} ({row['confidence']:.0%}), "
                   f"gold {row['label']}")


def _missing(run: "Run", model: str, document: str) -> str:
    """Why a document cannot be drawn."""
    bad = run.sql(
        "SELECT reason FROM bad_documents WHERE document_id::VARCHAR = $document "
        "AND coalesce(model, $model) = $model", document=document, model=model)
    if bad.is_empty():
        return f"{run.folder} has no document {document!r}; clsight query RUN documents lists them"
    return f"document {document!r} was left out for {model}: {bad['reason'][0]}"


def _readable(pieces: list[str]) -> list[str]:
    """Pieces of byte-level tokenizers spelled with a visible space, as others have them."""
    return [piece.replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{OPEN BOX}")
            for piece in pieces]


def _plot(figure: Any, pieces: list[str], attention: npt.NDArray[np.float64], title: str) -> None:
    side = max(4.0, 1.6 + 0.34 * len(pieces))
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(attention, cmap="viridis", vmin=0)
    places = range(len(pieces))
    # Dollar signs would start a formula.
    names = [piece.replace("$", r"\$") for piece in pieces]
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.set_xlabel("attended piece (key)")
    axes.set_ylabel("attending piece (query)")
    axes.set_title(title.replace("$", r"\$"), fontsize="medium")
    if len(pieces) <= ANNOTATED:
        _annotate(axes, attention)
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)


def _annotate(axes: Any, attention: npt.NDArray[np.float64]) -> None:
    dark = attention.max() * 0.6
    for query, row in enumerate(attention):
        for key, value in enumerate(row):
            colour = "black" if value > dark else "white"
            axes.text(key, query, f"{value:.2f}".removeprefix("0"), ha="center", va="center",
                      color=colour, fontsize="xx-small")
