-- What:    the test of words within each value of the column that was given with --group-by.
-- One row: model, slice, score, kind, form (in slices where run_parameters.min_documents documents
--          hold it).
-- Caveat:  as word_statistics; q and q_under are Benjamini-Hochberg over the units of a model,
--          slice, score and kind. A slice has fewer documents: that nothing is found there is no
--          sign that the effect does not hold; slice_agreement says whether slices differ.
-- Source:  tested_slices.
CREATE OR REPLACE VIEW slice_statistics AS
WITH ranked AS (
    SELECT *,
        count(*) OVER same AS n_tested,
        row_number() OVER (same ORDER BY p, form) AS place,
        row_number() OVER (same ORDER BY p_under, form) AS place_under
    FROM tested_slices
    WINDOW same AS (PARTITION BY model, slice, score, kind)
)
SELECT
    * EXCLUDE (n_tested, place, place_under),
    least(1, min(p * n_tested / place) OVER (
        PARTITION BY model, slice, score, kind ORDER BY place DESC
    )) AS q,
    least(1, min(p_under * n_tested / place_under) OVER (
        PARTITION BY model, slice, score, kind ORDER BY place_under DESC
    )) AS q_under
FROM ranked;
