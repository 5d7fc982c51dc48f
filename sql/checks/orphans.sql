-- What:    results of documents that the run does not have; no row when all is well.
-- One row: model, made, row.
SELECT model, made, "row"
FROM (
    SELECT model, 'attention' AS made, "row" FROM read_parquet('*/attention/*.parquet')
    UNION ALL
    SELECT model, 'scores', "row" FROM read_parquet('*/scores/*.parquet')
)
ANTI JOIN documents USING ("row");
