-- What:    documents that were left out, and why.
-- One row: document that no model can use; or model and document that it has no answer for.
-- Caveat:  model is null where the row of the dataset is to blame, and the document is left out
--          everywhere. Where a model is to blame (numbers that are not finite, want of memory), it
--          is left out of that model's predictions and words, and of all models' tests, which are
--          on the same documents. The first reason found counts; rows count from 0.
-- Source:  documents/*.parquet, MODEL/attention/*.parquet, relative to the run folder.
CREATE OR REPLACE VIEW bad_documents AS
SELECT document_id, "row", NULL AS model, text, label, reason
FROM read_parquet('documents/*.parquet')
WHERE reason IS NOT NULL
UNION ALL
SELECT document_id, "row", model, text, label, problem
FROM read_parquet('*/attention/*.parquet') AS a
JOIN read_parquet('documents/*.parquet') AS d USING ("row")
WHERE problem IS NOT NULL;

COMMENT ON COLUMN bad_documents.model IS
    'model that has no answer for it; null where the row of the dataset is to blame';
COMMENT ON COLUMN bad_documents.reason IS 'why it was left out';
