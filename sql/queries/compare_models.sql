-- What:      over-attended words by model, side by side: shared habits and one model's own.
-- One row:   kind, form that at least one model over-attends; models are those that do.
-- Parameter: score = contribution  a word score
-- Caveat:    shared = all pairs of models that over-attend it do so together (see
--            shared_over_attended), own = one model does, and differs from each other one (see
--            only_over_attended); undecided otherwise. q_heterogeneity: do the models differ at all?
WITH over AS (
    SELECT kind, form, list(model ORDER BY model) AS models, max(z) AS strongest_z
    FROM over_attended WHERE score = $score
    GROUP BY kind, form
),
shared AS (
    SELECT kind, form, count(*) AS n_pairs, max(q_shared) AS q_shared,
        max(n_both_errors) AS n_both_errors
    FROM shared_over_attended WHERE score = $score
    GROUP BY kind, form
),
own AS (
    SELECT kind, form, count(*) AS n_others
    FROM only_over_attended WHERE score = $score
    GROUP BY kind, form
)
SELECT
    kind, form, len(o.models) AS n_models, o.models,
    CASE
        WHEN len(o.models) > 1 AND n_pairs = len(o.models) * (len(o.models) - 1) // 2 THEN 'shared'
        WHEN len(o.models) = 1 AND n_others = (SELECT count(*) FROM model_summary) - 1
            AND n_others > 0 THEN 'own'
        ELSE 'undecided'
    END AS habit,
    n_both_errors, q_shared, h.q AS q_heterogeneity, h.models AS compared,
    list_transform(h.adjusted_ratios, lambda ratio: round(ratio, 2)) AS adjusted_ratios,
    strongest_z
FROM over AS o
LEFT JOIN shared USING (kind, form)
LEFT JOIN own USING (kind, form)
LEFT JOIN (SELECT * FROM heterogeneity WHERE score = $score) AS h USING (kind, form)
ORDER BY n_models DESC, strongest_z DESC, form;
