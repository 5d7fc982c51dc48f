-- What:    ids that several documents share; no row when all is well.
-- One row: document_id.
SELECT document_id, count(*) AS n_documents, list("row") AS rows
FROM documents
GROUP BY document_id HAVING count(*) > 1;
