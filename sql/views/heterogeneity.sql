-- What:    do the models differ in how much more of a unit's mass stands in their errors?
-- One row: score, kind, form (only where a run has several models).
-- Caveat:  Wald's chi-squared of the models' adjusted ratios, with the covariance that the bootstrap
--          of documents gives; p is the tail of F, with the degrees of freedom that this has; q is
--          Benjamini-Hochberg over the units of a score and kind; null
--          where the bootstrap has no variance to give.
-- Source:  model_heterogeneity, tested_words.
CREATE OR REPLACE VIEW heterogeneity AS
WITH ranked AS (
    SELECT *,
        count(p) OVER same AS n_tested,
        row_number() OVER (same ORDER BY p, form) AS place
    FROM model_heterogeneity
    WINDOW same AS (PARTITION BY score, kind)
)
SELECT
    score, kind, form, chi_squared, p,
    if(p IS NULL, NULL, least(1, min(p * n_tested / place) OVER (
        PARTITION BY score, kind ORDER BY place DESC
    ))) AS q,
    models, adjusted_ratios
FROM ranked AS r
JOIN (
    SELECT score, kind, form, list(model ORDER BY model) AS models,
        list(adjusted_ratio ORDER BY model) AS adjusted_ratios
    FROM tested_words GROUP BY score, kind, form
) USING (score, kind, form)
ORDER BY score, kind DESC, p, form;
