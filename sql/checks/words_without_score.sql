-- What:    documents whose scores do not match their words; no row when all is well.
-- One row: model, document.
-- Caveat:  there are no scores where a model has no answer (see bad_documents), and only there.
SELECT s.model, s."row", len(d.form) AS n_words, len(s.uniform) AS n_scores
FROM read_parquet('*/scores/*.parquet') AS s
LEFT JOIN read_parquet('documents/*.parquet') AS d USING ("row")
LEFT JOIN bad_documents AS b ON b.model = s.model AND b."row" = s."row"
WHERE if(b."row" IS NULL, len(d.form), NULL) IS DISTINCT FROM len(s.uniform);
