-- What:    documents that a model was not asked about; no row when all is well.
-- One row: model, document.
-- Caveat:  a model may have no answer: then bad_documents has the reason.
SELECT m.model, d.document_id, d."row"
FROM documents AS d CROSS JOIN (SELECT unnest(enum_range(NULL::model_name)) AS model) AS m
ANTI JOIN (
    SELECT model, "row" FROM predictions WHERE predicted IS NOT NULL
    UNION ALL
    SELECT model, "row" FROM bad_documents
) AS said ON said."row" = d."row" AND said.model = m.model::VARCHAR;
