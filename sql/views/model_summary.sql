-- What:    how each model does, and how much its errors can tell.
-- One row: model.
-- Caveat:  note says plainly when there is too little data to find anything.
-- Source:  outcomes, which clsight sums up from predictions when it makes the database;
--          word_statistics, over_attended, neglected, run_parameters.
CREATE OR REPLACE VIEW model_summary AS
WITH tested AS (
    SELECT model, count(DISTINCT form) AS n_words_tested FROM word_statistics GROUP BY model
),
found AS (
    SELECT model, count(DISTINCT form) AS n_over_attended FROM over_attended GROUP BY model
),
missed AS (
    SELECT model, count(DISTINCT form) AS n_neglected FROM neglected GROUP BY model
),
outcome AS (
    SELECT
        model,
        sum(n)::BIGINT AS n_documents,
        coalesce(sum(n) FILTER (NOT correct), 0)::BIGINT AS n_errors,
        (n_documents - n_errors) / n_documents AS accuracy,
        sum(confidence) / n_documents AS mean_confidence,
        sum(confidence) FILTER (NOT correct) / n_errors AS mean_confidence_errors,
        sum(pieces) / n_documents AS mean_pieces,
        sum(truncated)::BIGINT AS n_truncated
    FROM outcomes
    GROUP BY model
)
SELECT
    model, n_documents, n_errors, accuracy, mean_confidence, mean_confidence_errors, mean_pieces,
    n_truncated,
    coalesce(n_words_tested, 0) AS n_words_tested,
    coalesce(n_over_attended, 0) AS n_over_attended,
    coalesce(n_neglected, 0) AS n_neglected,
    CASE
        WHEN n_errors = 0 THEN 'no errors, so nothing to compare'
        WHEN n_errors < 50 THEN 'too few errors (' || n_errors || ') to find any but a gross effect'
        WHEN coalesce(n_words_tested, 0) = 0
            THEN 'too little data: no word is in at least ' || min_documents || ' documents'
    END AS note
FROM outcome
LEFT JOIN tested USING (model)
LEFT JOIN found USING (model)
LEFT JOIN missed USING (model), run_parameters
ORDER BY accuracy DESC;
