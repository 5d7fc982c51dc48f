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

COMMENT ON COLUMN documents.document_id IS
    'its id: of the column that was given with --id, else its row';
COMMENT ON COLUMN documents."row" IS 'position in the dataset, from 0';
COMMENT ON COLUMN documents.text IS 'the text as it was given';
COMMENT ON COLUMN documents.text_pair IS 'the second text of a pair, else null';
COMMENT ON COLUMN documents.label IS 'gold label, spelled as in the dataset';
COMMENT ON COLUMN documents.n_words IS 'number of words, of both texts of a pair';
COMMENT ON COLUMN documents.slice IS
    'value of the column that was given with --group-by, else null';
