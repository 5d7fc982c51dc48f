-- What:    how a unit's part in the errors of one model differs from its part in another's.
-- One row: model, other (each pair in both orders), score, kind, form.
-- Caveat:  z_difference > 0: the adjusted ratio of model is larger, by the bootstrap of the documents
--          that both see; p_difference is two-sided, of Student's t with the degrees of freedom that
--          this bootstrap has. The paired test looks at the n_discordant
--          documents that hold the unit and that exactly one of the two gets wrong: gap_wrong is the
--          mean share by model minus that by other where model is wrong (n_wrong documents),
--          gap_right where other is wrong. z_paired > 0: the wrong one looks more at it than the
--          right one, against chance within strata of label and of the difference in confidence;
--          null where fewer documents than run_parameters.min_documents hold it. q are
--          Benjamini-Hochberg over the units of a pair of models, score and kind.
-- Source:  model_pairs, which clsight makes when it tests words.
CREATE OR REPLACE VIEW model_differences AS
WITH ranked AS (
    SELECT *,
        count(p_difference) OVER same AS n_difference,
        row_number() OVER (same ORDER BY p_difference, form) AS place_difference,
        count(p_paired) OVER same AS n_paired,
        row_number() OVER (same ORDER BY p_paired, form) AS place_paired
    FROM model_pairs
    WINDOW same AS (PARTITION BY model, other, score, kind)
),
corrected AS (
    SELECT
        * EXCLUDE (n_difference, place_difference, n_paired, place_paired),
        least(1, min(p_difference * n_difference / place_difference) OVER (
            PARTITION BY model, other, score, kind ORDER BY place_difference DESC
        )) AS q_difference,
        if(p_paired IS NULL, NULL, least(1, min(p_paired * n_paired / place_paired) OVER (
            PARTITION BY model, other, score, kind ORDER BY place_paired DESC
        ))) AS q_paired
    FROM ranked
)
FROM corrected
UNION ALL BY NAME
SELECT
    other AS model, model AS other, score, kind, form, n_both_errors, n_discordant,
    n_discordant - n_wrong AS n_wrong,
    other_adjusted_ratio AS adjusted_ratio, adjusted_ratio AS other_adjusted_ratio,
    -z_difference AS z_difference, p_difference, q_difference,
    -gap_right AS gap_wrong, -gap_wrong AS gap_right, z_paired, p_paired, q_paired
FROM corrected;
