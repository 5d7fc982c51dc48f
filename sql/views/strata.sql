-- What:    which documents are comparable: the strata within which errors are permuted.
-- One row: model, reference, document (row). Reference "predicted" compares errors with correct
--          documents of the same prediction, "label" with those of the same gold label.
-- Caveat:  stratum = class x confidence decile, x length tercile where the decile has at least 60
--          documents; numbered from 0 within model and reference.
-- Source:  predictions, documents.
CREATE OR REPLACE VIEW strata AS
WITH document AS (
    SELECT model, "row", predicted, p.label, confidence, NOT correct AS error, n_words
    FROM predictions AS p JOIN documents USING ("row")
),
referred AS (
    SELECT *, 'predicted' AS reference, predicted AS class FROM document
    UNION ALL
    SELECT *, 'label' AS reference, label AS class FROM document
),
by_confidence AS (
    SELECT *, ntile(10) OVER (
        PARTITION BY model, reference, class ORDER BY confidence, "row"
    ) AS decile
    FROM referred
),
by_length AS (
    SELECT *,
        ntile(3) OVER (same_decile ORDER BY n_words, "row") AS tercile,
        count(*) OVER same_decile >= 60 AS enough
    FROM by_confidence
    WINDOW same_decile AS (PARTITION BY model, reference, class, decile)
)
SELECT
    model, reference, "row", error, class, decile,
    if(enough, tercile, NULL) AS tercile,
    dense_rank() OVER (
        PARTITION BY model, reference ORDER BY class, decile, if(enough, tercile, 0)
    ) - 1 AS stratum
FROM by_length;
