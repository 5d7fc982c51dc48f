-- What:    the usable documents of the dataset.
-- One row: document.
-- Caveat:  rows that cannot be used (empty text, unknown label) are in bad_documents instead,
--          where those that a model has no answer for are as well;
--          text_pair is null but for pairs of texts; slice is the value of the column that statistics
--          are grouped by (--group-by), else null.
-- Source:  documents/*.parquet, relative to the run folder.
CREATE OR REPLACE VIEW documents AS
SELECT document_id, "row", text, text_pair, label, len(form) AS n_words, slice
FROM read_parquet('documents/*.parquet')
WHERE reason IS NULL;
