-- What:    how finely documents could be compared: bins of each class, and what they can tell.
-- One row: model, reference, slice (null where there are none), class.
-- Caveat:  classes with few documents have fewer bins than the ten by three that are aimed at (see
--          strata); documents in strata without errors, or of errors alone, tell nothing.
-- Source:  strata.
CREATE OR REPLACE VIEW stratification AS
WITH stratum AS (
    SELECT
        model, reference, slice, class, stratum,
        any_value(confidence_bins) AS confidence_bins,
        any_value(length_bins) AS length_bins,
        count(*) AS n, count(*) FILTER (error) AS k
    FROM strata
    GROUP BY ALL
)
SELECT
    model, reference, slice, class,
    sum(n)::BIGINT AS n_documents,
    sum(k)::BIGINT AS n_errors,
    any_value(confidence_bins) AS confidence_bins,
    min(length_bins) AS fewest_length_bins,
    count(*) AS n_strata,
    min(n) AS smallest_stratum,
    coalesce(sum(n) FILTER (k > 0 AND k < n), 0)::BIGINT AS n_comparable,
    coalesce(sum(k) FILTER (k > 0 AND k < n), 0)::BIGINT AS n_comparable_errors
FROM stratum
GROUP BY model, reference, slice, class
ORDER BY model, reference, slice, class;
