-- What:    which documents are comparable: the strata within which errors are permuted.
-- One row: model, reference, document (row) of tested_documents. Reference "predicted" compares errors with correct
--          documents of the same prediction, "label" with those of the same gold label.
-- Caveat:  stratum = class x confidence x length (within a slice, where there are any), numbered
--          from 0 within model and reference. A class has ten confidence bins of three lengths.
--          Where it has more than 2,000 documents, it has more (as their fourth and their cube root:
--          what differs within a bin shows in large data); fewer where a bin would have less than
--          20 documents. A table, not a view, for much reads it.
-- Source:  predictions, documents, tested_documents.
CREATE OR REPLACE TABLE strata AS
WITH document AS (
    SELECT model, "row", slice, predicted, p.label, confidence, NOT correct AS error, n_words
    FROM predictions AS p JOIN documents USING ("row") SEMI JOIN tested_documents USING ("row")
),
referred AS (
    SELECT *, 'predicted' AS reference, predicted AS class FROM document
    UNION ALL
    SELECT *, 'label' AS reference, label AS class FROM document
),
by_class AS (
    SELECT *, count(*) OVER same_class AS size,
        row_number() OVER (same_class ORDER BY confidence, "row") - 1 AS place
    FROM referred
    WINDOW same_class AS (PARTITION BY model, reference, slice, class)
),
by_confidence AS (
    SELECT *, (place * confidence_bins // size)::INTEGER AS confidence_bin
    FROM (
        SELECT *, greatest(1, least(
            size // 20, greatest(10, round(10 * (size / 2000) ** 0.25))::INTEGER
        )) AS confidence_bins
        FROM by_class
    )
),
by_length AS (
    SELECT * EXCLUDE (size, place), size AS class_size, count(*) OVER same_bin AS size,
        row_number() OVER (same_bin ORDER BY n_words, "row") - 1 AS place
    FROM by_confidence
    WINDOW same_bin AS (PARTITION BY model, reference, slice, class, confidence_bin)
),
binned AS (
    SELECT *, greatest(1, least(
            size // 20, greatest(3, round(3 * cbrt(class_size / 2000)))::INTEGER
        ))::INTEGER AS length_bins,
        (place * length_bins // size)::INTEGER AS length_bin
    FROM by_length
)
SELECT
    model, reference, "row", error, slice, class,
    confidence_bin, confidence_bins, length_bin, length_bins,
    (dense_rank() OVER (
        PARTITION BY model, reference ORDER BY slice, class, confidence_bin, length_bin
    ) - 1)::INTEGER AS stratum
FROM binned
ORDER BY model, reference, "row";
