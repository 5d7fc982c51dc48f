-- What:    the documents that words are tested on: the first of each text and label.
-- One row: document (row).
-- Caveat:  copies are no evidence of their own: ten times the same data would "find" hundreds of
--          words. Texts are the same where their words are, whatever the case and the white space.
--          A table, not a view, for much reads it.
-- Source:  documents/*.parquet.
CREATE OR REPLACE TABLE tested_documents AS
SELECT min("row") AS "row"
FROM read_parquet('documents/*.parquet')
WHERE reason IS NULL
GROUP BY hash(form), label
ORDER BY "row";
