-- What:    documents with a score that is no finite number; no row when all is well.
-- One row: model, document.
SELECT model, "row", total
FROM (
    SELECT model, "row", list_sum(flatten(list_value(*COLUMNS(* EXCLUDE (model, "row"))))) AS total
    FROM read_parquet('*/scores/*.parquet')
)
WHERE NOT isfinite(total);
