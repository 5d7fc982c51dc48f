-- What:      what stands out in each model's errors: over-attended and neglected words, in one list.
-- One row:   model, finding, form; figures are those of the score that finds it most strongly.
SELECT
    model, finding, form, list(score ORDER BY z DESC) AS found_by,
    arg_max(n_documents, z) AS n_documents,
    arg_max(n_errors, z) AS n_errors,
    arg_max(mass_ratio, z) AS mass_ratio,
    arg_max(presence_ratio, z) AS presence_ratio,
    arg_max(intensity_ratio, z) AS intensity_ratio,
    arg_max(lift, z) AS lift,
    max(z) AS z,
    arg_max(q, z) AS q,
    arg_max(consistency, z) AS consistency
FROM (
    SELECT 'over-attended' AS finding, * FROM over_attended
    UNION ALL BY NAME
    SELECT 'neglected' AS finding, * FROM neglected
)
GROUP BY model, finding, form
ORDER BY model, finding DESC, z DESC, form;
