-- What:      do the scores agree on a model's over-attended words? z per score, strongest first.
-- One row:   model, form that any score names.
-- Parameter: model = (all)  a model's name
SELECT
    model, form, any_value(n_documents) AS n_documents, any_value(n_errors) AS n_errors,
    round(max(z) FILTER (WHERE score = 'uniform'), 2) AS uniform,
    round(max(z) FILTER (WHERE score = 'classifier'), 2) AS classifier,
    round(max(z) FILTER (WHERE score = 'projected'), 2) AS projected,
    round(max(z) FILTER (WHERE score = 'contribution'), 2) AS contribution
FROM word_statistics
WHERE (model, form) IN (SELECT (model, form) FROM over_attended)
  AND ($model = '(all)' OR model = $model)
GROUP BY model, form
ORDER BY model, max(z) DESC;
