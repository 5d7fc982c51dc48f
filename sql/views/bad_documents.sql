-- What:    rows of the dataset that were left out, and why.
-- One row: unusable document.
-- Caveat:  the first reason found counts; rows count from 0.
-- Source:  documents/*.parquet, relative to the run folder.
CREATE OR REPLACE VIEW bad_documents AS
SELECT document_id, "row", text, label, reason
FROM read_parquet('documents/*.parquet')
WHERE reason IS NOT NULL;
