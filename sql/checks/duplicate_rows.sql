-- What:    documents that are there more than once; no row when all is well.
-- One row: model (null for the documents themselves), made, row.
SELECT model, made, "row", count(*) AS n
FROM (
    SELECT NULL AS model, 'documents' AS made, "row" FROM read_parquet('documents/*.parquet')
    UNION ALL
    SELECT model, 'attention', "row" FROM read_parquet('*/attention/*.parquet')
    UNION ALL
    SELECT model, 'scores', "row" FROM read_parquet('*/scores/*.parquet')
)
GROUP BY model, made, "row" HAVING count(*) > 1;
