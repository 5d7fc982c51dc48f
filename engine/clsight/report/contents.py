"""What a page says of a run: summaries of every relation that it shows, and documents."""

from typing import Any

import duckdb
import polars as pl

from clsight import tables
from clsight.database import sql_files
from clsight.document_view import SIGNED
from clsight.faithfulness import verdict
from clsight.plan import Plan
from clsight.report.documents import sample

MOST_WORDS = 7_200
"""Words that a page holds, over all models and scores: findings, then those of greatest |z|."""
MOST_HABITS = 40
"""Words of each score in the comparison of models, the strongest first."""
MOST_LABELS = 30
"""Labels in tables of confusion; of more, those with most errors."""

_WORDS = """
WITH found AS (
    SELECT model, score, kind, form, 'over-attended' AS finding FROM over_attended
    UNION ALL SELECT model, score, kind, form, 'neglected' FROM neglected
    UNION ALL SELECT model, score, kind, form, 'under-attended' FROM under_attended
)
SELECT model, score, kind, form, coalesce(finding, 'tested') AS finding, n_documents, n_errors,
    mass_ratio, presence_ratio, intensity_ratio, lift, z, if(z < 0, q_under, q) AS q,
    if(z < 0, consistency_under, consistency) AS consistency
FROM word_statistics AS w LEFT JOIN found USING (model, score, kind, form)
QUALIFY row_number() OVER (
    PARTITION BY model, score ORDER BY found.finding IS NULL, abs(z) DESC NULLS LAST, form) <= $most
ORDER BY model, score, list_position(['over-attended', 'neglected', 'under-attended'], finding)
    NULLS LAST, abs(z) DESC NULLS LAST, form
"""
_HABITS = """
WITH over AS (
    SELECT score, kind, form, max(z) AS most FROM over_attended GROUP BY score, kind, form
    QUALIFY row_number() OVER (PARTITION BY score ORDER BY most DESC, form) <= $most
)
SELECT model, score, kind, form, adjusted_ratio, adjusted_ratio_low, adjusted_ratio_high, q,
    if(o.rank IS NULL, 'not found', 'over-attended') AS finding
FROM word_statistics AS w JOIN over USING (score, kind, form)
LEFT JOIN (SELECT model, score, kind, form, rank FROM over_attended) AS o
    USING (model, score, kind, form)
ORDER BY score, over.most DESC, form, model
"""
_SHARED = """
SELECT score, form, [model, other] AS models, 'shared' AS habit, q_shared AS q
FROM shared_over_attended
UNION ALL
SELECT score, form, [model, other], 'own', q_difference FROM only_over_attended
ORDER BY score, habit DESC, q, form
"""
_ATTENTION = """
WITH panel AS (
    SELECT model, layer, head, unnest([
        {'where': 'on [CLS]', 'share': on_cls, 'e': on_cls_errors, 'c': on_cls_correct},
        {'where': 'on separators', 'share': on_separators, 'e': on_separators_errors,
         'c': on_separators_correct},
        {'where': 'on punctuation', 'share': on_punctuation, 'e': on_punctuation_errors,
         'c': on_punctuation_correct},
        {'where': 'on other words', 'share': 1 - on_cls - on_separators - on_punctuation,
         'e': 1 - on_cls_errors - on_separators_errors - on_punctuation_errors,
         'c': 1 - on_cls_correct - on_separators_correct - on_punctuation_correct}
    ]) AS kind
    FROM head_profile
)
SELECT model, layer, head, kind.where AS where, kind.share AS share, kind.e AS in_errors,
    kind.c AS in_correct
FROM panel ORDER BY ALL
"""
_WEIGHTS = """
SELECT model, head, weighting, weight FROM (
    UNPIVOT (SELECT model, head, classifier_weight AS classifier, projected_weight AS projected
             FROM head_profile)
    ON classifier, projected INTO NAME weighting VALUE weight
) ORDER BY ALL
"""
_CONFUSION = """
WITH worst AS (
    SELECT label::VARCHAR AS label FROM confusion
    GROUP BY ALL ORDER BY sum(n_documents) FILTER (label <> predicted) DESC NULLS LAST, label
    LIMIT $most
)
SELECT model, label::VARCHAR AS label, predicted::VARCHAR AS predicted, n_documents, share
FROM confusion
WHERE label::VARCHAR IN (FROM worst) AND predicted::VARCHAR IN (FROM worst)
"""
_FINDINGS = """
SELECT f.*, w.consistency
FROM ({findings}
) AS f
JOIN word_statistics AS w
    ON w.score = f.found_by[1] AND (w.model, w.kind, w.form) = (f.model, f.kind, f.form)
ORDER BY f.model, f.finding DESC, w.z DESC, f.form
"""
_FAITHFULNESS = """
SELECT model, score, kind, any_value(n_documents) AS n_documents, any_value(reconstruction)
    AS reconstruction, any_value(passes) AS passes,
    any_value(comprehensiveness) FILTER (perturbation = 'masked') AS masked,
    any_value(comprehensiveness_low) FILTER (perturbation = 'masked') AS masked_low,
    any_value(comprehensiveness_high) FILTER (perturbation = 'masked') AS masked_high,
    any_value(comprehensiveness) FILTER (perturbation = 'removed') AS removed,
    any_value(comprehensiveness_low) FILTER (perturbation = 'removed') AS removed_low,
    any_value(comprehensiveness_high) FILTER (perturbation = 'removed') AS removed_high
FROM faithfulness GROUP BY model, score, kind ORDER BY model, masked DESC, score
"""
_CALIBRATION_ERROR = """
SELECT model, sum(n_documents * abs(accuracy - confidence)) / sum(n_documents) AS error
FROM calibration GROUP BY model
"""


TABLES = {
    "words": _WORDS, "habits": _HABITS, "shared": _SHARED, "calibration": "FROM calibration",
    "confusion": _CONFUSION, "agreement": "FROM compare_scores", "attention": _ATTENTION,
    "weights": _WEIGHTS,
}
"""What charts and tables show, by name."""


def contents(
    connection: duckdb.DuckDBPyConnection, plan: Plan, live: bool = False
) -> dict[str, Any]:
    """All that a page shows, ready for JSON; a live page asks for its documents itself."""
    n_bad = _value(connection, "SELECT count(DISTINCT \"row\") FROM bad_documents "
                               "WHERE model IS NULL")
    return {
        "models": [*plan.models], "scores": [*plan.scores],
        "shown_first": tables.shown_first(plan.scores),
        "signed": [score for score in plan.scores if tables.base(score) in SIGNED],
        "labels": [*map(str, plan.labels)], "live": live,
        "n_documents": (plan.n_rows or 0) - n_bad, "n_bad": n_bad,
        "tables": {name: columns(table(connection, plan, name)) for name in TABLES},
        "documents": [] if live else sample(connection, plan),
    }


def table(connection: duckdb.DuckDBPyConnection, plan: Plan, name: str) -> pl.DataFrame:
    """One of `TABLES`, for all models and scores."""
    words = MOST_WORDS // (len(plan.models) * len(plan.scores))
    most = {"words": words, "habits": MOST_HABITS, "confusion": MOST_LABELS}
    return _frame(connection, TABLES[name], **({"most": most[name]} if name in most else {}))


def summary(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """What a page says in words: how each model does, what stands out, which score to trust."""
    models = _frame(connection, "FROM model_summary").join(
        _frame(connection, _CALIBRATION_ERROR), on="model", how="left")
    findings = _FINDINGS.format(findings=sql_files("queries")["findings"].rstrip().rstrip(";"))
    return {"models": models.to_dicts(), "findings": _frame(connection, findings).to_dicts(),
            "faithfulness": _frame(connection, _FAITHFULNESS).to_dicts(),
            "verdict": verdict(_frame(connection, "FROM faithfulness").to_dicts())}


def columns(frame: pl.DataFrame) -> dict[str, list[Any]]:
    """A table as lists, a column each, which names each column once; 4 digits of real numbers."""
    real = pl.selectors.float()
    rounded = frame.with_columns(pl.when(real.is_finite()).then(real).round_sig_figs(4))
    return {name: rounded[name].to_list() for name in rounded.columns}


def _frame(connection: duckdb.DuckDBPyConnection, sql: str, **values: Any) -> pl.DataFrame:
    frame = pl.from_arrow(connection.sql(sql, params=values).to_arrow_table())
    assert isinstance(frame, pl.DataFrame)
    texts = pl.selectors.by_dtype(pl.Categorical, pl.Enum)
    return frame.with_columns(texts.cast(pl.String))


def _value(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    rows = connection.execute(sql).fetchall()
    return rows[0][0]
