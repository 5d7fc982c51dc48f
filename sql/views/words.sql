-- What:    every word of every document with its scores: the plain sums over the word's pieces.
-- One row: model, document, word (position from 0).
-- Caveat:  uniform, classifier and projected are shares of the last layer's [CLS] attention, so a
--          document's words sum to less than 1 (special pieces hold the rest); contribution is in
--          logits of the margin and signed. Beyond the model's maximum length scores are 0: see
--          predictions.truncated.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW words AS
SELECT
    s.model,
    d.document_id,
    unnest(range(len(d.form)))::INTEGER AS position,
    unnest(d.form) AS form,
    unnest(d."start") AS start_char,
    unnest(d."end") AS end_char,
    unnest(s.uniform) AS uniform,
    unnest(s.classifier) AS classifier,
    unnest(s.projected) AS projected,
    unnest(s.contribution) AS contribution
FROM read_parquet('*/scores/*.parquet') AS s
JOIN read_parquet('documents/*.parquet') AS d USING ("row");
