"""Arrow schema of every stored table: the data contract of a run folder.

Documents and attention meet on `row`, the 0-based position in the dataset; ids, texts and labels
are stored once, in `documents`. Labels and predictions are spelled as in the dataset, whose label
(and id) columns are either integers or strings.
"""

from collections.abc import Collection

import pyarrow as pa

FROM_ROWS = ("uniform", "classifier", "projected")
"""Word scores that the last layer's attention rows give, with a weight for each head."""
FROM_PIECES = ("norm", "contribution", "rollout", "relevance", "conservative", "deeplift")
"""Word scores that a forward pass, or a backward, gives for each piece."""
SCORES = (*FROM_ROWS, *FROM_PIECES)
"""All word scores, in the order in which they are stored and shown; `uniform` and `contribution`
exist for any other layer as well, as `uniform_3` and `contribution_3` (layers count from 0)."""
ALWAYS = ("uniform", "contribution")
"""Word scores that every run has: they cost nothing, and relations rely on them."""

DEFAULT = (*FROM_ROWS, "contribution")
"""Word scores of a run that asks for no others: those of one forward pass, but for `norm`."""

DATABASE = "clsight.duckdb"
"""File of a run that holds its relations and tests; made last, from the shards."""

floats = pa.list_(pa.float32())
integers = pa.list_(pa.int32())


def documents(id_type: pa.DataType, label_type: pa.DataType) -> pa.Schema:
    """One row per document of the dataset, with its words; `reason` is null for usable documents.

    `form`, `start` and `end` run in parallel, one value per word: the spelling after case folding
    and NFC, and the half-open range of characters (Unicode code points) in `text`. `text_pair` is
    the second text of a pair, or null; its characters count on from those of `text`, with one
    character between them, here as in `attention`. `slice` is the value of the column that
    statistics are grouped by, as text, or null.
    """
    return pa.schema(
        {
            "row": pa.int64(),
            "document_id": id_type,
            "text": pa.string(),
            "text_pair": pa.string(),
            "label": label_type,
            "slice": pa.string(),
            "reason": pa.string(),
            "form": pa.list_(pa.string()),
            "start": integers,
            "end": integers,
        }
    )


def attention(label_type: pa.DataType, scores: tuple[str, ...]) -> pa.Schema:
    """One row per document and model: its prediction, its pieces and their attention rows.

    `attention` holds [layer, head, piece] row-major, over the layers of the plan in their order;
    each of `scores` that is made from pieces has a column with one value per piece, summed over
    heads. `start` and `end` are each piece's characters in the text, (0, 0) for special pieces.
    `target` is the class that scores explain, `target_margin` its logit minus the highest other.

    `retried` says that a document's values come from float32 in a half-precision run. Where
    `problem` is not null, the model has no answer, for this reason: its columns are null, its lists
    empty, but for the pieces that its tokenizer counts.
    """
    return pa.schema(
        {
            "model": pa.string(),
            "row": pa.int64(),
            "predicted": label_type,
            "confidence": pa.float64(),
            "margin": pa.float64(),
            "target": label_type,
            "target_margin": pa.float64(),
            "logits": floats,
            "n_pieces": pa.int32(),
            "truncated": pa.bool_(),
            "retried": pa.bool_(),
            "problem": pa.string(),
            "start": integers,
            "end": integers,
            "attention": floats,
        }
        | dict.fromkeys(piece_scores(scores), floats)
    )


def piece_scores(scores: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `scores` that are stored for each piece, not worked out from attention rows."""
    return tuple(score for score in scores if base(score) in FROM_PIECES)


def base(score: str) -> str:
    """A score's name without its layer: contribution for contribution_3."""
    return score.partition("_")[0]


def score_layer(score: str) -> int | None:
    """The layer in a score's name; None for the last layer, or for all."""
    _, named, layer = score.partition("_")
    return int(layer) if named else None


def shown_first(scores: Collection[str]) -> str:
    """The score that is shown where none is asked for: the most faithful of a run's.

    On three real classifiers and on planted shortcuts that is `deeplift`, and among those of one
    forward pass `contribution`, which every run has (`benchmarks/results/faithfulness.json`).
    """
    return "deeplift" if "deeplift" in scores else "contribution"


def scores(names: tuple[str, ...]) -> pa.Schema:
    """One row per document and model; one list per score, one value per word of the document.

    Lists are null where the model has no answer.
    """
    return pa.schema({"model": pa.string(), "row": pa.int64()} | dict.fromkeys(names, floats))


def head_weights() -> pa.Schema:
    """One row per model, weighting, pair of classes and head of the last layer; sums to 1."""
    return pa.schema(
        {
            "model": pa.string(),
            "weighting": pa.string(),
            "class": pa.int32(),
            "runner_up": pa.int32(),
            "head": pa.int32(),
            "weight": pa.float64(),
        }
    )


def heads() -> pa.Schema:
    """One row per model, outcome, layer and head of a shard: sums over its documents.

    `entropy` is in nats; the weights are null but for the last layer.
    """
    whole, real = pa.int64(), pa.float64()
    return pa.schema(
        {"model": pa.string(), "correct": pa.bool_(), "layer": whole, "head": whole}
        | {"n_documents": whole, "entropy": real, "on_cls": real, "on_separators": real}
        | {"on_punctuation": real, "classifier": real, "projected": real}
    )


def agreement() -> pa.Schema:
    """One row per model and pair of scores of a shard: sums over its documents.

    `rank_correlation` over the `n_ranked` documents where neither score is constant, `top_shared`
    over the `n_longer` ones with more words than are compared. `n` to `xm` are sums of 1, x, x^2,
    m, m^2 and x m, where x is `score`'s sum over words and m the target's margin.
    """
    real = pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "score", "other"], pa.string())
        | dict.fromkeys(["n_ranked", "rank_correlation", "n_longer", "top_shared"], real)
        | dict.fromkeys(["n", "x", "xx", "m", "mm", "xm"], real)
    )


def outcomes() -> pa.Schema:
    """One row per model and outcome: sums over its documents; see `model_summary`.

    `correct` is null for documents without an answer, of which `n` alone is known.
    """
    whole, real = pa.int64(), pa.float64()
    return pa.schema(
        {"model": pa.string(), "correct": pa.bool_(), "n": whole, "confidence": real}
        | {"pieces": whole, "truncated": whole, "retried": whole}
    )


def sums(names: tuple[str, ...]) -> pa.Schema:
    """One row per model, unit and pair of strata of a shard: sums over the documents that hold it.

    `kind` is word, bigram or group. For each score, `_s1`, `_s2` and `_s3` are sums of the mass, of
    its square and of its cube, `_lift` of mass / places covered x words in the document. Documents
    of one pair of strata are either all errors or all correct.
    """
    real = pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "kind", "form"], pa.string())
        | dict.fromkeys(["predicted_stratum", "label_stratum"], pa.int32())
        | {"error": pa.bool_(), "n_documents": pa.int64()}
        | {f"{name}_{sum_}": real for name in names for sum_ in ("s1", "s2", "s3", "lift")}
    )


def tested_words() -> pa.Schema:
    """One row per model, score and tested unit: effect sizes and test; see `word_statistics`."""
    whole, real = pa.int64(), pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "score", "kind", "form"], pa.string())
        | {"n_documents": whole, "n_errors": whole}
        | dict.fromkeys(TESTED, real)
        | {"p_from": pa.string()}
    )


TESTED = (
    "mass_errors", "mass_correct", "mass_ratio", "mass_ratio_low", "mass_ratio_high",
    "presence_ratio", "presence_ratio_low", "presence_ratio_high", "intensity_ratio",
    "intensity_ratio_low", "intensity_ratio_high", "adjusted_ratio", "adjusted_ratio_low",
    "adjusted_ratio_high", "detectable_ratio", "lift", "z", "z_predicted", "z_label", "p",
    "p_under", "p_max_t", "p_max_t_under", "consistency", "consistency_under",
)
"""Figures of `tested_words`; null where there is no value."""


def model_pairs() -> pa.Schema:
    """One row per pair of models, score and tested unit; see `model_differences`."""
    whole, real = pa.int64(), pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "other", "score", "kind", "form"], pa.string())
        | dict.fromkeys(["n_both_errors", "n_discordant", "n_wrong"], whole)
        | dict.fromkeys(["adjusted_ratio", "other_adjusted_ratio", "z_difference"], real)
        | dict.fromkeys(["p_difference", "gap_wrong", "gap_right", "z_paired", "p_paired"], real)
    )


def model_heterogeneity() -> pa.Schema:
    """One row per score and tested unit: Wald's test that the models' adjusted ratios differ."""
    return pa.schema(dict.fromkeys(["score", "kind", "form"], pa.string())
                     | {"chi_squared": pa.float64(), "p": pa.float64()})


def tested_slices() -> pa.Schema:
    """One row per model, slice, score and unit that enough documents of the slice hold."""
    whole, real = pa.int64(), pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "slice", "score", "kind", "form"], pa.string())
        | {"n_documents": whole, "n_errors": whole}
        | dict.fromkeys(["mass_ratio", "adjusted_ratio", "z", "p", "p_under"], real)
    )


def slice_heterogeneity() -> pa.Schema:
    """One row per model, score and unit that is tested in several slices: Cochran's Q and p."""
    return pa.schema(dict.fromkeys(["model", "score", "kind", "form"], pa.string())
                     | {"chi_squared": pa.float64(), "p": pa.float64()})


def faithfulness() -> pa.Schema:
    """One row per model, score or baseline, and perturbation; see `faithfulness`.

    `reconstruction` is null for scores that are not signed, `steps` for all but integrated
    gradients.
    """
    real = pa.float64()
    return pa.schema(
        dict.fromkeys(["model", "score", "kind", "perturbation"], pa.string())
        | {"n_documents": pa.int64()}
        | {f"{measure}{which}": real
           for measure in ("comprehensiveness", "sufficiency", "aopc", "flips")
           for which in ("", "_low", "_high")}
        | {"level_with_best": pa.bool_(), "reconstruction": real, "seconds": real, "passes": real}
        | {"steps": pa.int32(), "seed": pa.int64()}
    )
