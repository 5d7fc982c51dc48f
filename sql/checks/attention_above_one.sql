-- What:    documents whose words hold more attention than there is; no row when all is well.
-- One row: model, document.
SELECT model, "row", list_sum(uniform) AS attention
FROM read_parquet('*/scores/*.parquet')
WHERE NOT coalesce(list_sum(uniform), 0) <= 1.01;
