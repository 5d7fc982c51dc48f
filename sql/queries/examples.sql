-- What:      errors in which a word takes most of a model's score: the evidence for one word.
-- One row:   model, document; the two texts of a pair stand side by side.
-- Parameter: form             the word, case-folded
-- Parameter: model = (all)    a model's name
-- Parameter: limit = 20       number of documents per model
SELECT
    model, document_id, p.label, predicted, round(confidence, 3) AS confidence,
    round(m.contribution, 3) AS contribution_share,
    round(m.uniform, 3) AS uniform_share,
    concat_ws(' | ', text, text_pair) AS text
FROM word_mass AS m
JOIN predictions AS p USING (model, "row")
JOIN documents AS d USING (document_id, "row")
WHERE form = $form AND NOT correct AND ($model = '(all)' OR model = $model)
QUALIFY row_number() OVER (PARTITION BY model ORDER BY m.contribution DESC, document_id)
    <= $limit::INTEGER
ORDER BY model, m.contribution DESC, document_id;
