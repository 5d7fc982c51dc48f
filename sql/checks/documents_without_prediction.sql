-- What:    documents that a model was not asked about; no row when all is well.
-- One row: model, document.
SELECT m.model, d.document_id, d."row"
FROM documents AS d CROSS JOIN (SELECT unnest(enum_range(NULL::model_name)) AS model) AS m
ANTI JOIN predictions AS p ON p."row" = d."row" AND p.model = m.model::VARCHAR;
