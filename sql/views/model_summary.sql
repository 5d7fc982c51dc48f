-- What:    how each model does, and how much its errors can tell.
-- One row: model.
-- Caveat:  note says plainly when there is too little data to find anything. detectable_ratio is the
--          adjusted ratio that would be found in half of the tested words (detectable_rare: of the
--          rarest ones) with a probability of 80 %; n_comparable_errors the errors that stand in
--          strata with correct documents, under the reference that leaves fewer.
--          n_copies are documents whose words and label an earlier one has: they are counted,
--          and left out of the tests. n_retried of the n_documents were computed in float32, for
--          in half precision something was not finite; n_failed more have no answer (see
--          bad_documents), and are left out of all models' tests.
-- Source:  outcomes, which clsight sums up from predictions when it makes the database;
--          tested_words, tested_documents, stratification, over_attended, neglected, under_attended, run_parameters.
CREATE OR REPLACE VIEW model_summary AS
WITH tested AS (
    SELECT
        model,
        count(DISTINCT form) AS n_words_tested,
        -- What could be found at all: among the rarest words, and among all.
        median(detectable_ratio) FILTER (n_documents < 1.5 * min_documents) AS detectable_rare,
        median(detectable_ratio) AS detectable_ratio
    FROM tested_words, run_parameters
    GROUP BY model
),
comparable AS (
    -- By the reference that leaves fewer.
    SELECT model, arg_min(reference, n) AS reference, min(n) AS n_comparable_errors
    FROM (
        SELECT model, reference, sum(n_comparable_errors)::BIGINT AS n
        FROM stratification GROUP BY model, reference
    )
    GROUP BY model
),
found AS (
    SELECT model, count(DISTINCT form) AS n_over_attended FROM over_attended GROUP BY model
),
missed AS (
    SELECT model, count(DISTINCT form) AS n_neglected FROM neglected GROUP BY model
),
less AS (
    SELECT model, count(DISTINCT form) AS n_under_attended FROM under_attended GROUP BY model
),
outcome AS (
    SELECT
        model,
        coalesce(sum(n) FILTER (correct IS NOT NULL), 0)::BIGINT AS n_documents,
        coalesce(sum(n) FILTER (correct IS NULL), 0)::BIGINT AS n_failed,
        coalesce(sum(n) FILTER (NOT correct), 0)::BIGINT AS n_errors,
        (n_documents - n_errors) / nullif(n_documents, 0) AS accuracy,
        sum(confidence) / n_documents AS mean_confidence,
        sum(confidence) FILTER (NOT correct) / n_errors AS mean_confidence_errors,
        sum(pieces) / n_documents AS mean_pieces,
        coalesce(sum(truncated), 0)::BIGINT AS n_truncated,
        coalesce(sum(retried), 0)::BIGINT AS n_retried
    FROM outcomes
    GROUP BY model
)
SELECT
    model, n_documents, n_errors, accuracy, mean_confidence, mean_confidence_errors, mean_pieces,
    n_truncated, n_retried, n_failed, n_copies,
    coalesce(n_words_tested, 0) AS n_words_tested,
    coalesce(n_over_attended, 0) AS n_over_attended,
    coalesce(n_neglected, 0) AS n_neglected,
    coalesce(n_under_attended, 0) AS n_under_attended,
    coalesce(n_comparable_errors, 0) AS n_comparable_errors,
    detectable_rare,
    detectable_ratio,
    CASE
        WHEN n_documents = 0 THEN 'no document has an answer; bad_documents says why'
        WHEN n_errors = 0 THEN 'no errors, so nothing to compare'
        WHEN n_errors = n_documents THEN 'errors alone, so nothing to compare them with'
        WHEN coalesce(n_words_tested, 0) = 0
            THEN 'too little data: no word is in at least ' || min_documents || ' documents'
        WHEN coalesce(n_comparable_errors, 0) = 0
            THEN 'cannot be said: no error stands beside a correct document of the same '
                || reference_name || ' and like confidence'
        WHEN n_comparable_errors < 50
            THEN 'too few errors (' || n_comparable_errors || ' of ' || n_errors
                || ' stand beside correct documents of the same ' || reference_name
                || ') to find any but a gross effect'
    END AS note
FROM outcome
LEFT JOIN tested USING (model)
LEFT JOIN found USING (model)
LEFT JOIN missed USING (model)
LEFT JOIN less USING (model)
LEFT JOIN (
    SELECT *, if(reference = 'label', 'gold label', 'prediction') AS reference_name FROM comparable
) USING (model), run_parameters,
    (SELECT coalesce(sum(n_alike - 1), 0)::BIGINT AS n_copies FROM tested_documents)
ORDER BY accuracy DESC;

COMMENT ON COLUMN model_summary.n_documents IS 'documents that the model has an answer for';
COMMENT ON COLUMN model_summary.n_errors IS
    'those of n_documents whose prediction is not the gold label';
COMMENT ON COLUMN model_summary.accuracy IS 'share of n_documents that are correct';
COMMENT ON COLUMN model_summary.mean_confidence IS 'mean confidence over n_documents';
COMMENT ON COLUMN model_summary.mean_confidence_errors IS 'mean confidence over the errors';
COMMENT ON COLUMN model_summary.mean_pieces IS 'mean number of pieces a document';
COMMENT ON COLUMN model_summary.n_truncated IS 'documents that are longer than the model reads';
COMMENT ON COLUMN model_summary.n_retried IS
    'documents computed again in float32, for half precision failed';
COMMENT ON COLUMN model_summary.n_failed IS 'documents without an answer: see bad_documents';
COMMENT ON COLUMN model_summary.n_copies IS
    'documents with the words and label of an earlier one: counted here, not tested';
COMMENT ON COLUMN model_summary.n_words_tested IS 'distinct units that were tested';
COMMENT ON COLUMN model_summary.n_over_attended IS 'distinct units in over_attended, by any score';
COMMENT ON COLUMN model_summary.n_neglected IS 'distinct units in neglected, by any score';
COMMENT ON COLUMN model_summary.n_under_attended IS
    'distinct units in under_attended, by any score';
COMMENT ON COLUMN model_summary.n_comparable_errors IS
    'errors that stand in strata with correct documents, by the reference that leaves fewer';
COMMENT ON COLUMN model_summary.detectable_rare IS
    'median detectable_ratio of the rarest tested units';
COMMENT ON COLUMN model_summary.detectable_ratio IS 'median detectable_ratio of all tested units';
COMMENT ON COLUMN model_summary.note IS
    'said where there is too little data to find anything, else null';
