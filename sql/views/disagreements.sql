-- What:    documents on which the models differ in being right, side by side.
-- One row: document; per model: predicted, confidence, and its five top words.
-- Caveat:  top words are those with the highest contribution, which pushed most toward the
--          model's prediction; null for a model that has no answer (see bad_documents); empty for
--          a run with one model.
-- Source:  predictions, documents, MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW disagreements AS
WITH differing AS (
    -- Documents go by id and row through every step: so a filter on the id reaches every scan.
    SELECT document_id, "row" FROM predictions
    GROUP BY document_id, "row" HAVING bool_or(correct) AND NOT bool_and(correct)
),
read AS (
    SELECT
        s.model, d.document_id, "row",
        list_transform(
            list_reverse_sort(list_zip(s.contribution, d.form)), lambda word: word[2]
        ) AS ranked
    FROM read_parquet('*/scores/*.parquet') AS s
    JOIN read_parquet('documents/*.parquet') AS d USING ("row")
    SEMI JOIN differing USING (document_id, "row")
),
answer AS (
    SELECT
        model, document_id, "row", predicted, confidence,
        list_filter(
            ranked, lambda form, place: list_position(ranked, form) = place
        )[:5] AS top_words
    FROM read JOIN predictions USING (model, document_id, "row")
),
side_by_side AS (
    PIVOT answer ON model IN model_name
    USING first(predicted) AS predicted, first(confidence) AS confidence,
          first(top_words) AS top_words
    GROUP BY document_id, "row"
)
SELECT document_id, text, label, side_by_side.* EXCLUDE (document_id, "row")
FROM side_by_side JOIN documents USING (document_id, "row")
ORDER BY document_id;
