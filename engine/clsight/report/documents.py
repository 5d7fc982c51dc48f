"""Documents for the browser of a page: text in words, and every model's answer and scores.

The same shape comes from a report, which holds a sample, and from a server, which has them all.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import duckdb
import numpy as np

from clsight.document_view import shades
from clsight.output import compact_json
from clsight.plan import Plan

MOST_WORDS = 400
"""Words of a document that are shown; longer ones are cut, and say so."""
BUDGET = 2_000_000
"""Bytes of JSON that a report spends on documents."""
OUTCOMES = ("all", "errors", "correct", "disagree")
"""Which documents: all; those that the model gets wrong (any model, where none is chosen); those
that it (all of them) gets right; those on which the models differ in being right."""

_FOUND = """
WITH answer AS (
    SELECT
        "row",
        bool_or(NOT correct) FILTER (chosen) AS wrong,
        bool_or(correct) AND NOT bool_and(correct) AS differ,
        bool_or(predicted::VARCHAR = $predicted) FILTER (chosen) AS says,
        max(confidence) FILTER (chosen AND NOT correct) AS confidence
    FROM (SELECT *, model = coalesce($model, model) AS chosen FROM predictions)
    WHERE label::VARCHAR = coalesce($label, label::VARCHAR)
    GROUP BY "row"
    HAVING bool_or(chosen)
),
holding AS (
    SELECT "row" FROM read_parquet('documents/*.parquet')
    WHERE $form IS NULL OR list_contains(form, $form) OR contains($form, ' ') AND list_contains(
        list_transform(list_zip(form[:-2], form[2:]), lambda w: w[1] || ' ' || w[2]), $form)
)
SELECT "row" FROM answer SEMI JOIN holding USING ("row")
WHERE ($outcome = 'all' OR $outcome = 'errors' AND wrong OR $outcome = 'correct' AND NOT wrong
       OR $outcome = 'disagree' AND differ)
  AND ($predicted IS NULL OR says)
ORDER BY confidence DESC NULLS LAST, "row"
"""
_TEXTS = """
SELECT "row", document_id::VARCHAR AS id, label::VARCHAR AS label,
    concat_ws(chr(10), text, text_pair) AS text, form, "start", "end"
FROM read_parquet('documents/*.parquet') WHERE "row" IN (SELECT unnest($rows::BIGINT[]))
"""
_ANSWERS = """
SELECT "row", model, predicted::VARCHAR AS predicted, confidence, correct
FROM predictions WHERE "row" IN (SELECT unnest($rows::BIGINT[]))
"""
_SCORES = """
SELECT * FROM read_parquet('*/scores/*.parquet')
WHERE "row" IN (SELECT unnest($rows::BIGINT[])) AND uniform IS NOT NULL
"""


def browse(
    connection: duckdb.DuckDBPyConnection, plan: Plan, *, model: str | None = None,
    form: str | None = None, label: str | None = None, predicted: str | None = None,
    outcome: str = "all", limit: int = 10, offset: int = 0,
) -> dict[str, Any]:
    """Documents that answer to all of the filters, the most confident errors first.

    Args:
        connection: to the run's database.
        plan: the run's plan.
        model: whose errors and predictions count; None for any model's.
        form: a word, or two words side by side, case-folded.
        label: gold label, as text.
        predicted: predicted label, as text.
        outcome: one of `OUTCOMES`.
        limit: documents of a page.
        offset: documents before it.

    Returns:
        `total`, the number of all that answer, and `documents`, those of the page as `read` has
        them.
    """
    rows = found(connection, model, form, label, predicted, outcome)
    return {"total": len(rows),
            "documents": [*read(connection, plan, rows[offset : offset + limit].tolist())]}


def found(
    connection: duckdb.DuckDBPyConnection, model: str | None = None, form: str | None = None,
    label: str | None = None, predicted: str | None = None, outcome: str = "all",
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of the documents that answer to the filters of `browse`, in its order."""
    asked = {"model": model, "form": form, "label": label, "predicted": predicted}
    return connection.execute(_FOUND, {**asked, "outcome": outcome}).fetchnumpy()["row"]


def read(
    connection: duckdb.DuckDBPyConnection, plan: Plan, rows: list[int]
) -> Iterator[dict[str, Any]]:
    """Documents by their rows, in that order.

    `parts` is the text, in turn what is no word and a word, so that it needs no offsets; `forms`
    the words' spellings where they differ from it. `answers` has for each model its prediction, and
    for each score a whole number per word: hundredths of the document's largest absolute value.
    """
    texts = {one["row"]: one for one in _asked(connection, _TEXTS, rows)}
    documents = {row: _document(text) for row, text in texts.items()}
    for answer in _asked(connection, _ANSWERS, rows):
        documents[answer["row"]]["answers"][answer["model"]] = {
            "predicted": answer["predicted"], "correct": answer["correct"],
            "confidence": round(answer["confidence"], 4), "scores": {}}
    for stored in _asked(connection, _SCORES, rows):
        scores = documents[stored["row"]]["answers"][stored["model"]]["scores"]
        for score in plan.scores:
            scores[score] = hundredths(stored[score])[:MOST_WORDS]
    yield from (documents[row] for row in rows)


def _asked(
    connection: duckdb.DuckDBPyConnection, sql: str, rows: list[int]
) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = connection.sql(
        sql, params={"rows": rows}).to_arrow_table().to_pylist()
    return answer


def _document(stored: dict[str, Any]) -> dict[str, Any]:
    text, parts, last = stored["text"], [], 0
    spans = [*zip(stored["start"], stored["end"], strict=True)][:MOST_WORDS]
    for start, end in spans:
        parts += [text[last:start], text[start:end]]
        last = end
    n_words = len(stored["form"])
    parts.append(text[last:] if n_words <= MOST_WORDS else "")
    forms = {i: form for i, form in enumerate(stored["form"][:MOST_WORDS])
             if form != parts[2 * i + 1]}
    return {"id": stored["id"], "label": stored["label"], "parts": parts, "forms": forms,
            "n_words": n_words, "answers": {}}


def hundredths(scores: list[float]) -> list[int]:
    """Scores of a document's words in hundredths of the largest absolute one.

    >>> hundredths([0.5, -0.1, 0.0])
    [100, -20, 0]
    """
    values = np.nan_to_num(np.array(scores, float))
    rounded: list[int] = np.rint(100 * shades(values)).astype(int).tolist()
    return rounded


def sample(
    connection: duckdb.DuckDBPyConnection, plan: Plan, budget: int = BUDGET
) -> list[dict[str, Any]]:
    """As many documents as fit into a report, in the order of `browse`: all, or a choice.

    First the evidence for each finding, then errors of all models in turn, the most confident
    first, for three quarters of the budget; the rest are other documents, by a hash of their row.

    Args:
        connection: to the run's database.
        plan: the run's plan.
        budget: bytes of JSON.
    """
    chosen: dict[int, dict[str, Any]] = {}
    spent = _take(connection, plan, _errors(connection, plan), chosen, 0, budget * 3 // 4)
    others = connection.execute(
        'SELECT DISTINCT "row" FROM predictions ORDER BY hash("row"), "row"').fetchnumpy()["row"]
    _take(connection, plan, others.tolist(), chosen, spent, budget)
    place = {row: i for i, row in enumerate(found(connection).tolist())}
    return [chosen[row] for row in sorted(chosen, key=place.__getitem__)]


def _errors(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[int]:
    """Rows of errors, those that show a finding first."""
    findings = connection.execute(
        "SELECT DISTINCT model::VARCHAR, form FROM (FROM over_attended UNION ALL BY NAME "
        "FROM neglected) WHERE kind <> 'group' ORDER BY ALL").fetchall()
    for model, form in findings:
        yield from found(connection, model, form, outcome="errors")[:20].tolist()
    errors = [found(connection, model, outcome="errors").tolist() for model in plan.models]
    for place in range(max(map(len, errors), default=0)):
        yield from (rows[place] for rows in errors if place < len(rows))


def _take(
    connection: duckdb.DuckDBPyConnection, plan: Plan, rows: Iterable[int],
    chosen: dict[int, dict[str, Any]], spent: int, budget: int,
) -> int:
    """Add documents until the budget is spent; returns what is."""
    ahead = (row for row in rows if row not in chosen)
    # Each time all shards are looked through, however few the documents are.
    while new := [*dict.fromkeys(islice(ahead, 1000))]:
        for row, document in zip(new, read(connection, plan, new), strict=True):
            spent += len(compact_json(document).encode())
            if spent > budget:
                return spent
            chosen[row] = document
    return spent
