-- What:    words that one model over-attends and another does not: its own habit.
-- One row: model, other, score, kind, form.
-- Caveat:  passes = over-attended by model, not by other, and the adjusted ratios differ with
--          q_difference <= 0.05 among the words that model over-attends (Benjamini-Hochberg). That
--          other is not found to over-attend a word is not enough: it may have had fewer errors.
-- Source:  over_attended, model_differences, run_parameters.
CREATE OR REPLACE VIEW only_over_attended AS
WITH own AS (
    SELECT o.model, d.other, score, kind, form, d.adjusted_ratio, d.other_adjusted_ratio,
        z_difference, p_difference, z_paired, p_paired, o.n_errors, o.mass_ratio, o.q
    FROM over_attended AS o
    JOIN model_differences AS d USING (model, score, kind, form)
),
ranked AS (
    SELECT *,
        count(*) OVER (PARTITION BY model, other, score, kind) AS n_tested,
        row_number() OVER (PARTITION BY model, other, score, kind ORDER BY p_difference, form)
            AS place
    FROM own
),
corrected AS (
    SELECT * EXCLUDE (n_tested, place),
        least(1, min(p_difference * n_tested / place) OVER (
            PARTITION BY model, other, score, kind ORDER BY place DESC
        )) AS q_difference
    FROM ranked
)
SELECT c.*
FROM corrected AS c
ANTI JOIN over_attended AS o
    ON o.model = c.other AND o.score = c.score AND o.kind = c.kind AND o.form = c.form
WHERE z_difference > 0 AND q_difference <= (SELECT max_q FROM run_parameters)
ORDER BY model, other, score, z_difference DESC, form;
