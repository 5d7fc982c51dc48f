-- What:    documents whose scores do not match their words; no row when all is well.
-- One row: model, document.
SELECT s.model, s."row", len(d.form) AS n_words, len(s.uniform) AS n_scores
FROM read_parquet('*/scores/*.parquet') AS s
LEFT JOIN read_parquet('documents/*.parquet') AS d USING ("row")
WHERE len(d.form) IS DISTINCT FROM len(s.uniform);
