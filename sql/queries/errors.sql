-- What:      a model's most confident errors, with the words that pushed most toward them.
-- One row:   document; the two texts of a pair stand side by side.
-- Parameter: model = (all)  a model's name
-- Parameter: limit = 20     number of documents per model
SELECT
    model, document_id, label, predicted, round(confidence, 3) AS confidence,
    max_by(form, w.contribution, 5) AS top_words,
    any_value(concat_ws(' | ', text, text_pair)) AS text
FROM predictions AS p
JOIN documents AS d USING (document_id, "row", label)
JOIN words AS w USING (model, document_id)
WHERE NOT correct AND ($model = '(all)' OR model = $model)
GROUP BY model, document_id, label, predicted, p.confidence
QUALIFY row_number() OVER (PARTITION BY model ORDER BY p.confidence DESC, document_id)
    <= $limit::INTEGER
ORDER BY model, p.confidence DESC, document_id;
