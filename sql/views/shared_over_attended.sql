-- What:    words that two models over-attend alike: both err because of them.
-- One row: model, other (each pair once), score, kind, form.
-- Caveat:  passes = both models' criteria of over_attended but for q, and q_shared <= 0.05, which is
--          Benjamini-Hochberg over the larger p of the two models (intersection-union test).
--          n_both_errors counts the documents that hold the word and that both get wrong.
-- Source:  word_statistics, model_pairs, run_parameters.
CREATE OR REPLACE VIEW shared_over_attended AS
WITH pair AS (
    SELECT
        m.model, m.other, m.score, m.kind, m.form, m.n_both_errors,
        a.n_errors, b.n_errors AS other_n_errors,
        a.mass_ratio, b.mass_ratio AS other_mass_ratio,
        least(a.lift, b.lift) AS lift,
        least(a.consistency, b.consistency) AS consistency,
        least(coalesce(a.mass_ratio, 'infinity'), coalesce(b.mass_ratio, 'infinity'))
            AS weaker_mass_ratio,
        least(a.z, b.z) AS z,
        greatest(a.p, b.p) AS p
    FROM model_pairs AS m
    JOIN word_statistics AS a USING (model, score, kind, form)
    JOIN word_statistics AS b
        ON b.model = m.other AND b.score = m.score AND b.kind = m.kind AND b.form = m.form
),
ranked AS (
    SELECT *,
        count(*) OVER (PARTITION BY model, other, score, kind) AS n_tested,
        row_number() OVER (PARTITION BY model, other, score, kind ORDER BY p, form) AS place
    FROM pair
),
corrected AS (
    SELECT * EXCLUDE (n_tested, place),
        least(1, min(p * n_tested / place) OVER (
            PARTITION BY model, other, score, kind ORDER BY place DESC
        )) AS q_shared
    FROM ranked
)
SELECT c.* EXCLUDE (weaker_mass_ratio)
FROM corrected AS c, run_parameters AS r
WHERE q_shared <= max_q AND c.consistency >= min_consistency AND lift > 1
  AND weaker_mass_ratio >= r.min_mass_ratio
ORDER BY model, other, score, z DESC, form;
