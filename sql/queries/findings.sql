-- What:      what stands out in each model's errors: over-attended and neglected words, in one list.
-- One row:   model, finding, kind, form; figures are those of the score that finds it most strongly.
SELECT
    model, finding, kind, form, list(score ORDER BY z DESC) AS found_by,
    arg_max(n_documents, z) AS documents,
    arg_max(n_errors, z) AS errors,
    arg_max(mass_ratio, z) AS mass_ratio,
    arg_max(presence_ratio, z) AS presence,
    arg_max(intensity_ratio, z) AS intensity,
    arg_max(lift, z) AS lift,
    arg_max(q, z) AS q
FROM (
    SELECT 'over-attended' AS finding, * FROM over_attended
    UNION ALL BY NAME
    SELECT 'neglected' AS finding, * FROM neglected
)
GROUP BY model, finding, kind, form
ORDER BY model, finding DESC, kind DESC, max(z) DESC, form;
