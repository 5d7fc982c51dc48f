-- What:      do the scores agree on what stands out? z of each word that any of them names.
-- One row:   model, form that is over-attended or neglected by any score; a column per score.
-- Parameter: model = (all)  a model's name
FROM (
    PIVOT (
        SELECT model, kind, form, n_documents, n_errors, score, round(z, 2) AS z
        FROM word_statistics
        WHERE (model, kind, form) IN (
            SELECT (model, kind, form) FROM over_attended
            UNION SELECT (model, kind, form) FROM neglected
        ) AND ($model = '(all)' OR model = $model)
    ) ON score IN score_name USING first(z)
    GROUP BY model, kind, form, n_documents, n_errors
)
ORDER BY model, kind DESC, form;
