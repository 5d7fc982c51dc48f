-- What:      over-attended words by model, side by side: shared habits and one model's own.
-- One row:   form.
-- Parameter: score = contribution  a word score
SELECT
    form,
    count(*) AS n_models,
    list(model ORDER BY model) AS models,
    list(round(mass_ratio, 2) ORDER BY model) AS mass_ratios,
    max(z) AS strongest_z
FROM over_attended
WHERE score = $score
GROUP BY form
ORDER BY n_models DESC, strongest_z DESC;
