-- What:      a model's most confident errors, with the words that pushed most toward them.
-- One row:   document; the two texts of a pair stand side by side.
-- Parameter: model = (all)  a model's name
-- Parameter: limit = 20     number of documents per model
WITH worst AS (
    -- Found by narrow columns: words and texts are then read for these documents alone.
    SELECT model, "row", document_id, label, predicted, confidence
    FROM predictions
    WHERE NOT correct AND ($model = '(all)' OR model = $model)
    QUALIFY row_number() OVER (PARTITION BY model ORDER BY confidence DESC, document_id)
        <= $limit::INTEGER
)
SELECT
    model, w.document_id, w.label, predicted, round(confidence, 3) AS confidence,
    list_transform(
        list_reverse_sort(list_zip(contribution, form))[:5], lambda word: word[2]
    ) AS top_words,
    concat_ws(' | ', text, text_pair) AS text
FROM worst AS w
JOIN read_parquet('*/scores/*.parquet') AS s USING (model, "row")
JOIN read_parquet('documents/*.parquet') AS d USING ("row")
ORDER BY model, w.confidence DESC, w.document_id;
