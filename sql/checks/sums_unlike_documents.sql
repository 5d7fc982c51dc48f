-- What:    tested words whose sums do not cover the documents that hold them, or whose mass is more
--          than those documents have; no row when all is well.
-- One row: model, form.
WITH held AS (
    SELECT form, count(*) AS n_held
    FROM (
        SELECT unnest(list_distinct(form)) AS form
        FROM read_parquet('documents/*.parquet') SEMI JOIN tested_documents USING ("row")
    )
    GROUP BY form
),
summed AS (
    SELECT model, form, sum(n_documents) AS n_summed, sum(uniform_s1) AS mass
    FROM word_sums WHERE kind = 'word'
    GROUP BY model, form
)
SELECT t.model, t.form, n_held, n_summed, mass
FROM (SELECT DISTINCT model, form FROM tested_words WHERE kind = 'word') AS t
LEFT JOIN summed AS s USING (model, form)
LEFT JOIN held AS h ON h.form = t.form
WHERE n_summed IS DISTINCT FROM n_held OR NOT mass BETWEEN 0 AND n_held * (1 + 1e-9);
