-- What:    shards that are planned and not there; no row when all is well.
-- One row: folder, shard.
SELECT folder, shard
FROM (
    SELECT 'documents' AS folder
    UNION ALL
    SELECT model || '/' || made
    FROM (SELECT unnest(enum_range(NULL::model_name))::VARCHAR AS model),
        (SELECT unnest(['attention', 'heads', 'agreement', 'scores', 'sums']) AS made)
) AS needed,
(SELECT printf('%05d.parquet', unnest(range(n_shards))) AS shard FROM run_parameters)
WHERE NOT EXISTS (
    -- The paths may be absolute, with either separator.
    FROM (SELECT replace(file, '\', '/') AS file
          FROM glob(['documents/*.parquet', '*/*/*.parquet']))
    WHERE ends_with('/' || file, '/' || folder || '/' || shard)
);
