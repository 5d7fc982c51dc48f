"""Attention within one document in full: every head, every query, every key; by pieces or words.

Worked out on the fly, in float32 and with transformers' own eager attention, as the question does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from clsight.errors import UsageError
from clsight.plan import ModelPlan

if TYPE_CHECKING:
    from clsight.batches import Pieces
    from clsight.document_view import Document
    from clsight.models import Classifier

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matrices:
    """The attention of one layer within one document."""

    names: list[str]
    """[n] what rows and columns are: pieces; or [CLS], the words, [SEP]."""
    heads: Floats
    """[heads, query, key]; each row sums to 1. A word that the model does not see has a row and a
    column of NaN."""
    weights: dict[str, Floats]
    """Weighting -> [heads], as in `weights.head_weights`: of the predicted class and the next one;
    uniform alone for layers but the last."""

    def averaged(self, weighting: str) -> Floats:
        """[query, key] mean over heads with the weights of a weighting."""
        averaged: Floats = np.tensordot(self.weights[weighting], self.heads, axes=1)
        return averaged


def attention(
    model: ModelPlan, document: "Document", *, layer: int = -1, words: bool = False
) -> Matrices:
    """The attention of a layer, by pieces or by words.

    Attention to a word is the sum over its pieces, attention from it the mean over them (Clark et
    al. 2019). Words are the run's, which all its models share. The first special piece is [CLS],
    all others together are [SEP], whatever the model's family calls them and places them.

    Args:
        model: which model.
        document: of the run.
        layer: from 0, or from the end with -1.
        words: by words instead of pieces.

    Raises:
        UsageError: the model cannot be opened, is not that of the run, or has no such layer.
    """
    import torch

    from clsight.batches import tokenise
    from clsight.models import load, refuse_changed

    depth = model.layers[-1] + 1
    if not -depth <= layer < depth:
        raise UsageError(f"there is no layer {layer}; {model.path} has the layers 0 to {depth - 1}")
    refuse_changed(model)
    classifier = load(model, torch.float32, "cpu", "eager")
    pieces = tokenise(classifier.tokenizer, [document.texts[0]], classifier.max_length,
                      [*document.texts[1:]] or None)
    heads, logits = _answer(classifier, pieces, layer % depth)
    weights = _weights(classifier, logits, heads.shape[0], last=layer % depth == depth - 1)
    if words:
        return Matrices(*_by_words(classifier, pieces, document, heads), weights)
    return Matrices(classifier.tokenizer.convert_ids_to_tokens(pieces.ids.tolist()), heads, weights)


def _answer(classifier: "Classifier", pieces: "Pieces", layer: int) -> tuple[Floats, Floats]:
    """Attention [heads, query, key] of a layer, and logits [classes], of one document."""
    import torch

    from clsight.models import two_classes

    inputs = {"input_ids": torch.from_numpy(pieces.ids)[None].long()}
    if "token_type_ids" in classifier.inputs:
        inputs["token_type_ids"] = torch.from_numpy(pieces.segments)[None].long()
    with torch.no_grad():
        answer = classifier.model(**inputs, output_attentions=True)
    return (answer.attentions[layer][0].double().numpy(),
            two_classes(answer.logits)[0].double().numpy())


def _weights(
    classifier: "Classifier", logits: Floats, n_heads: int, last: bool
) -> dict[str, Floats]:
    from clsight.weights import WEIGHTINGS, head_weights

    if not last or classifier.family.dense is None:
        return {"uniform": np.full(n_heads, 1 / n_heads)}
    second, best = np.argsort(logits, kind="stable")[-2:]
    return dict(zip(WEIGHTINGS, head_weights(classifier)[:, best, second], strict=True))


def _by_words(
    classifier: "Classifier", pieces: "Pieces", document: "Document", heads: Floats
) -> tuple[list[str], Floats]:
    """Names [n] and attention [heads, n, n] of [CLS], the words, and [SEP]."""
    words = document.words.unique("position").sort("position")
    part = _parts(classifier, pieces, document, words)
    with np.errstate(invalid="ignore"):  # a word without pieces
        mean = part / part.sum(1, keepdims=True)
    spelled = [document.texts[segment][start:end] for segment, start, end in
               words.select("segment", "start_char", "end_char").iter_rows()]
    matrices = mean @ heads @ part.T
    matrices[:, :, part.sum(1) == 0] = np.nan
    return ["[CLS]", *spelled, "[SEP]"], matrices


def _parts(
    classifier: "Classifier", pieces: "Pieces", document: "Document", words: pl.DataFrame
) -> Floats:
    """[1 + words + 1, pieces] how much of each piece belongs to [CLS], to a word, to [SEP]."""
    from clsight.pieces import most_parts, words_of_pieces

    n, n_words, first = len(pieces.ids), len(words), np.flatnonzero(pieces.start == pieces.end)
    alone = np.empty(n, np.uint32)
    most = most_parts(pieces.start, pieces.end, 0, n)
    piece, word, share = np.empty(most, np.uint32), np.empty(most, np.uint32), np.empty(most)
    # The characters of a pair's second text count on from those of the first.
    before = words["segment"].to_numpy().astype(np.int32) * (len(document.texts[0]) + 1)
    start, end = (words[side].to_numpy() + before for side in ("start_char", "end_char"))
    n_parts = words_of_pieces(pieces.start, pieces.end, 0, n, start, end, 0, n_words, alone, piece,
                              word, share)
    part = np.zeros((1 + n_words + 1, n))
    part[1 + alone, np.arange(n)] = 1
    part[-1] = 0  # pieces of several words were there as well
    part[1 + word[:n_parts], piece[:n_parts]] = share[:n_parts]
    named = first[pieces.ids[first] == classifier.tokenizer.cls_token_id]
    cls = np.concatenate([named, first])[:1]
    part[-1, first], part[-1, cls], part[0, cls] = 1, 0, 1
    return part
