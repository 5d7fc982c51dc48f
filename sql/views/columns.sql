-- What:    the columns of every relation, and what they hold.
-- One row: relation, column (write "column" in SQL, where it is a keyword).
-- Caveat:  what is null for columns that are described in the head of their relation's file alone;
--          in the relations that dashboards may rely on, every column has it.
-- Source:  the comments on columns in sql/views.
CREATE OR REPLACE VIEW columns AS
WITH own AS (
    SELECT table_name AS relation, column_name AS "column", column_index AS place,
        data_type AS type, comment
    FROM duckdb_columns()
    WHERE database_name = current_database() AND (
        table_name IN (SELECT view_name FROM duckdb_views() WHERE NOT internal)
        OR table_name IN ('strata', 'tested_documents')
    )
),
everywhere("column", relation) AS (
    -- Names that mean the same in all relations, and the one that says what.
    VALUES ('document_id', 'documents'), ('row', 'documents'), ('text', 'documents'),
        ('label', 'documents'), ('slice', 'documents'), ('model', 'predictions'),
        ('score', 'word_statistics'), ('kind', 'word_statistics'), ('form', 'word_statistics')
),
of_score(score, what) AS (
    VALUES
        ('uniform', 'attention from [CLS], mean over the heads'),
        ('classifier', 'attention from [CLS], heads weighted by the class neuron, without W_o'),
        ('projected', 'attention from [CLS], heads weighted by the class neuron, through W_o'),
        ('norm', 'length of the vector that reaches [CLS] from it'),
        ('contribution', 'first-order share of the target''s margin, in logits, signed'),
        ('rollout', 'attention from [CLS] through all layers'),
        ('relevance', 'attention from [CLS] through all layers, weighted by the gradient'),
        ('conservative', 'conserved share of the target''s margin, in logits, signed'),
        ('deeplift', 'share of the margin''s difference to that of all words masked, in logits, signed')
),
-- These have columns for each score or each model, which no file can name.
of_scores AS (
    SELECT relation, "column",
        what || coalesce('; layer ' || nullif(split_part("column", '_', 2), ''), '') AS comment
    FROM own JOIN of_score ON score = split_part("column", '_', 1)
    WHERE relation = 'words'
),
of_models AS (
    SELECT 'disagreements' AS relation, model || '_' || "column" AS "column",
        model || ': ' || comment AS comment
    FROM (SELECT unnest(enum_range(NULL::model_name))::VARCHAR AS model), (
        SELECT "column", comment FROM own
        WHERE relation = 'predictions' AND "column" IN ('predicted', 'confidence')
        UNION ALL
        VALUES ('top_words', 'the five words of highest contribution, highest first')
    )
),
named AS (SELECT "column", comment FROM own SEMI JOIN everywhere USING (relation, "column")),
tested AS (
    SELECT unnest(['over_attended', 'neglected', 'under_attended']) AS relation, "column", comment
    FROM own WHERE relation = 'word_statistics'
)
SELECT relation, "column", type,
    coalesce(own.comment, tested.comment, named.comment, s.comment, m.comment) AS what
FROM own
LEFT JOIN tested USING (relation, "column")
LEFT JOIN named USING ("column")
LEFT JOIN of_scores AS s USING (relation, "column")
LEFT JOIN of_models AS m USING (relation, "column")
ORDER BY relation, place;
