-- What:    the documents that words are tested on: the first of each text and label.
-- One row: document (row); n_alike documents have its words and label, itself among them.
-- Caveat:  copies are no evidence of their own: ten times the same data would "find" hundreds of
--          words. Texts are the same where their words are, whatever the case and the white space.
--          Documents that a model has no answer for are left out for all models.
--          A table, not a view, for much reads it.
-- Source:  documents/*.parquet, bad_documents.
CREATE OR REPLACE TABLE tested_documents AS
SELECT min("row") AS "row", count(*) AS n_alike
FROM read_parquet('documents/*.parquet') ANTI JOIN bad_documents USING ("row")
GROUP BY hash(form), label
ORDER BY "row";
